"""What a client is checked against: the proxy, or vLLM itself. The environment tells which.

Standard library only: this is imported in the environment of every client.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

QUESTIONS: dict[str, Any] = json.loads(
    Path(__file__).parents[1].joinpath("questions.json").read_text(encoding="utf-8")
)
"""What is asked; the clients for Node ask the same."""

TEXTS: tuple[str, ...] = tuple(QUESTIONS["texts"])
"""Questions; the model answers each in its language, with characters of up to four bytes."""

MAX_TOKENS: int = QUESTIONS["max_tokens"]
"""Enough for the model to end by itself."""

LONG: int = QUESTIONS["long"]
"""Tokens of an answer that takes the model half a minute, so that a client can leave meanwhile."""

TOO_LONG = "word " * QUESTIONS["too_long"]
"""A question that the model has no room for."""

PARAMETERS: dict[str, Any] = QUESTIONS["parameters"]
"""A schema whose two answers the model would never give of itself."""

CITIES: tuple[str, ...] = tuple(PARAMETERS["properties"]["city"]["enum"])
UNKNOWN_MODEL: str = QUESTIONS["unknown_model"]
WRONG_KEY: str = QUESTIONS["wrong_key"]

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather",
        "parameters": PARAMETERS,
        # vLLM holds the arguments to their schema only with this.
        "strict": True,
    },
}
FORCED_TOOL: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
}
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "place", "schema": PARAMETERS, "strict": True},
}

WAIT_SECONDS = 60.0
BUSY_SECONDS = 3.0
"""Without metrics for so long, vLLM is busy: on the CPU, one request can keep its API from more."""


@dataclass(frozen=True)
class Target:
    """Where requests go, and where vLLM is, which answers them in the end."""

    base_url: str
    """As OpenAI's clients want it, so with `/v1`."""
    api_key: str
    model: str
    vllm_url: str
    """Without `/v1`."""
    asks_for_keys: bool
    embeddings_model: str
    embeddings_url: str
    """As `base_url`: vLLM serves one model, so its own is another one."""
    vllm_embeddings_url: str

    @property
    def root_url(self) -> str:
        """As Anthropic's clients want it, so without `/v1`."""
        return self.base_url.removesuffix("/v1")

    def told(self, text: str, **fields: Any) -> str:
        """What vLLM itself says to a greedy chat."""
        answer = self.vllm("/v1/chat/completions", chat(text, model=self.model, **fields))
        content: str = answer["choices"][0]["message"]["content"]
        return content

    def vllm(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """vLLM's own answer."""
        return _post(f"{self.vllm_url}{path}", body)

    def vllm_embeddings(self, texts: tuple[str, ...] = TEXTS) -> list[list[float]]:
        """What vLLM itself makes of the texts."""
        body = {"model": self.embeddings_model, "input": list(texts)}
        answer = _post(f"{self.vllm_embeddings_url}/v1/embeddings", body)
        return [one["embedding"] for one in answer["data"]]

    @contextmanager
    def is_left(self) -> Iterator[None]:
        """A client that asks for LONG tokens inside and leaves stops vLLM before they are made.

        What vLLM made is counted rather than timed, since its speed is the machine's.
        """
        self._wait_until(is_busy=False)
        before = self._metric("generation_tokens_total")
        yield
        self._wait_until(is_busy=False)
        made = self._metric("generation_tokens_total") - before
        assert 0 < made < LONG, f"vLLM made {made:.0f} tokens"

    async def is_left_by(self, request: Coroutine[Any, Any, object]) -> None:
        """The same for a request that is cancelled while vLLM works on it."""
        with self.is_left():
            task = asyncio.create_task(request)
            await asyncio.to_thread(self._wait_until, is_busy=True)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _wait_until(self, *, is_busy: bool) -> None:
        """Until vLLM works on something, or on nothing."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self._is_busy() != is_busy:
            assert time.monotonic() < deadline, "vLLM does not start, or does not come to rest"
            time.sleep(0.05)

    def _is_busy(self) -> bool:
        try:
            return self._metric("num_requests_running", timeout=BUSY_SECONDS) > 0
        except TimeoutError:
            return True

    def _metric(self, name: str, *, timeout: float = WAIT_SECONDS) -> float:
        with urlopen(f"{self.vllm_url}/metrics", timeout=timeout) as answer:
            text = answer.read().decode()
        return sum(map(float, re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)", text, re.MULTILINE)))


def target_of_this_run() -> Target:
    """The target that the environment names."""
    told = {
        name.removeprefix("CONFORMANCE_").lower(): value
        for name, value in os.environ.items()
        if name.startswith("CONFORMANCE_") and name != "CONFORMANCE_RESULTS"
    }
    return Target(**{**told, "asks_for_keys": told["asks_for_keys"] == "yes"})  # type: ignore[arg-type]


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a greedy chat."""
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, **fields}


def assert_close(got: list[list[float]], told: list[list[float]]) -> None:
    """The same vectors, but for the last digits that an encoding may cost."""
    assert [len(vector) for vector in got] == [len(vector) for vector in told]
    for one, other in zip(got, told, strict=True):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4


def _post(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    request = Request(url, json.dumps(body).encode(), headers)
    with urlopen(request, timeout=WAIT_SECONDS) as answer:
        parsed: dict[str, Any] = json.load(answer)
    return parsed
