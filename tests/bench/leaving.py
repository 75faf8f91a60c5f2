"""How long vLLM works on for a client that has left."""

import time
from typing import Final

import httpx
import msgspec

from tests.bench.load import Spread
from tests.bench.stacks import Opened
from tests.waiting import wait_until

TIMES: Final = 10
CHUNKS: Final = 5
"""Of an answer, before its client leaves."""
TOKENS: Final = 10_000
PATIENCE_SECONDS: Final = 60.0


class Leaving(msgspec.Struct, kw_only=True):
    """What was seen of one target."""

    target: str
    seconds: Spread | None = None
    """From the client's closing its connection to vLLM's losing its own."""
    error: str = ""


def leaving(name: str, opened: Opened) -> Leaving:
    """Leave some streams of this target in the middle."""
    found = Leaving(target=name)
    try:
        with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
            found.seconds = Spread.of([_leave(client, opened) for _ in range(TIMES)])
    except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
        found.error = str(error) or repr(error)
    return found


def _leave(client: httpx.Client, opened: Opened) -> float:
    before = len(_left(client, opened))
    body = {
        "model": opened.model,
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": TOKENS,
        "stream": True,
    }
    headers = {"authorization": f"Bearer {opened.key}", "connection": "close"}
    url = f"{opened.url}/chat/completions"
    with client.stream("POST", url, json=body, headers=headers) as response:
        response.raise_for_status()
        count = 0
        for line in response.iter_lines():
            count += line.startswith("data:")
            if count == CHUNKS:
                break
    gone = time.monotonic()
    wait_until(lambda: len(_left(client, opened)) > before, seconds=PATIENCE_SECONDS)
    return max(0.0, _left(client, opened)[-1] - gone)


def _left(client: httpx.Client, opened: Opened) -> list[float]:
    """When each stream that was left so far had lost its reader, as the engine tells."""
    moments: list[float] = client.get(f"{opened.engine_url}/bench/left").raise_for_status().json()
    return moments
