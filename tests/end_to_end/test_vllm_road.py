"""The whole road with nothing in it replaced: the OpenAI SDK at one end, vLLM at the other."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import runpod
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from proxy.api.rewriting import Rewriter
from scripts.local_stack import LocalStack
from tests.long_models import TOKENS
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = [
    "Hello! Who are you?",
    "Привет! Как дела?",
    "你好，请讲个故事。",
    "안녕하세요! 😀",
    "Send me some emoji",
]


@pytest.fixture(scope="module")
def sdk(vllm_stack: LocalStack) -> Iterator[openai.OpenAI]:
    wait_until(lambda: running(vllm_stack) == 0)  # what an earlier test has left
    with openai.OpenAI(
        base_url=vllm_stack.base_url, api_key=vllm_stack.api_key, max_retries=0, timeout=120
    ) as sdk:
        yield sdk


@pytest.fixture
def direct(vllm_stack: LocalStack) -> Iterator[openai.OpenAI]:
    """The same SDK, talking to the worker's vLLM itself."""
    with openai.OpenAI(base_url=f"{vllm_stack.chat.vllm_url}/v1", api_key="none") as direct:
        yield direct


def ask(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny-chat", "messages": messages, "temperature": 0, "max_tokens": 80} | fields


def streamed_text(sdk: openai.OpenAI, text: str) -> str:
    chunks = sdk.chat.completions.create(**ask(text), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("text", PROMPTS)
def test_streamed_unstreamed_and_direct_are_the_same_text(
    sdk: openai.OpenAI, direct: openai.OpenAI, text: str
) -> None:
    told = direct.chat.completions.create(**ask(text)).choices[0].message.content
    assert told
    assert sdk.chat.completions.create(**ask(text)).choices[0].message.content == told
    assert streamed_text(sdk, text) == told


def test_the_texts_are_full_of_multi_byte_characters(direct: openai.OpenAI) -> None:
    told = [
        direct.chat.completions.create(**ask(text)).choices[0].message.content for text in PROMPTS
    ]
    text = "".join(part or "" for part in told)
    assert sum(ord(char) > 127 for char in text) > 50
    assert any(ord(char) > 0xFFFF for char in text)


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_stream_ends_the_same_way_when_its_usage_is_counted(
    vllm_stack: LocalStack, is_chat: bool
) -> None:
    def ends(**fields: Any) -> list[bytes]:
        """The events with a finish reason or a fingerprint, but for ids, times and text."""
        body = ask("Hello!", stream=True, max_tokens=5, **fields)
        url = f"{vllm_stack.chat.vllm_url}/v1/chat/completions"
        if not is_chat:
            del body["messages"]
            body["prompt"] = "Es war"
            url = url.replace("/chat", "")
        text = httpx.post(url, json=body, timeout=60).content
        if fields:
            rewriter = Rewriter(both_names=False, hides_usage=True, on_tokens=lambda *_: None)
            text = rewriter.events(text)
        masked = re.sub(rb'"(id|content|text)":"(?:[^"\\]|\\.)*"|"created":\d+', b"", text)
        marks = (b'"finish_reason":"', b"fingerprint", b"usage")
        return [e for e in masked.split(b"\n\n") if any(mark in e for mark in marks)]

    alone = ends()
    assert len(alone) == 1
    assert b"system_fingerprint" in alone[0]
    assert ends(stream_options={"include_usage": True}) == alone


def test_the_bytes_of_a_plain_answer_are_vllms(vllm_stack: LocalStack) -> None:
    def masked(base_url: str) -> bytes:
        body = ask("Hello!", logprobs=True)
        headers = {"authorization": f"Bearer {vllm_stack.api_key}"}
        answer = httpx.post(f"{base_url}/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.headers["content-type"] == "application/json"
        return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", answer.content)

    assert masked(vllm_stack.base_url) == masked(f"{vllm_stack.chat.vllm_url}/v1")


def test_the_events_of_a_stream_are_vllms(vllm_stack: LocalStack) -> None:
    def text(base_url: str) -> str:
        body = ask("Привет!", stream=True, stream_options={"include_usage": True})
        headers = {"authorization": f"Bearer {vllm_stack.api_key}"}
        answer = httpx.post(f"{base_url}/chat/completions", json=body, headers=headers, timeout=60)
        events = [e for e in answer.text.split("\n\n") if not e.startswith(":")]
        # How many tokens an event holds depends on timing, what they say together does not.
        parsed = [json.loads(e.removeprefix("data: ")) for e in events if e.startswith("data: {")]
        told = "".join(c["delta"].get("content") or "" for p in parsed for c in p["choices"])
        assert events[-2:] == ["data: [DONE]", ""]
        return f"{told} {parsed[-1]['usage']} {sorted(parsed[1])}"

    assert text(vllm_stack.base_url) == text(f"{vllm_stack.chat.vllm_url}/v1")


def test_a_stream_tells_its_usage_when_asked(sdk: openai.OpenAI) -> None:
    asked = ask("Hi", stream_options={"include_usage": True})
    chunks = list(sdk.chat.completions.create(**asked, stream=True))
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_tells_no_usage_unless_asked(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(**ask("Hi"), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
FORCED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}


def called(sdk: openai.OpenAI) -> tuple[str, str]:
    """The name and the arguments of the call that an unstreamed chat ends in."""
    choice = sdk.chat.completions.create(**ask("Weather?", **FORCED)).choices[0]
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    return call.function.name, call.function.arguments


def test_a_forced_tool_is_called_with_valid_arguments(
    sdk: openai.OpenAI, direct: openai.OpenAI
) -> None:
    name, arguments = called(sdk)
    assert name == "get_weather"
    assert isinstance(json.loads(arguments), dict)
    assert (name, arguments) == called(direct)


def test_a_forced_tool_is_called_in_a_stream(sdk: openai.OpenAI, direct: openai.OpenAI) -> None:
    name, arguments = "", ""
    for chunk in sdk.chat.completions.create(**ask("Weather?", **FORCED), stream=True):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                name += (call.function and call.function.name) or ""
                arguments += (call.function and call.function.arguments) or ""
    assert (name, json.loads(arguments)) == (called(direct)[0], json.loads(called(direct)[1]))


SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["gut", "schön", "良い"]}, "score": {"enum": [1, 2, 3]}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [True, False])
def test_structured_output_follows_its_schema(sdk: openai.OpenAI, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
    if stream:
        chunks = sdk.chat.completions.create(**ask("Mood?", response_format=wanted), stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        answer = sdk.chat.completions.create(**ask("Mood?", response_format=wanted))
        text = answer.choices[0].message.content or ""
    told = json.loads(text)
    assert told["mood"] in ("gut", "schön", "良い")
    assert told["score"] in (1, 2, 3)


def test_logprobs_come_with_every_token(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(**ask("Hi", logprobs=True, top_logprobs=3))
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert answer.usage
    assert len(logprobs.content) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)


@pytest.mark.parametrize("stream", [True, False])
def test_two_choices_are_kept_apart(sdk: openai.OpenAI, stream: bool) -> None:
    fields = ask("Hi", n=2, temperature=1.0, seed=1, max_tokens=20)
    if not stream:
        choices = sdk.chat.completions.create(**fields).choices
        assert [choice.index for choice in choices] == [0, 1]
        return
    texts = {0: "", 1: ""}
    for chunk in sdk.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts.values())


def test_a_stop_word_ends_the_text(sdk: openai.OpenAI, direct: openai.OpenAI) -> None:
    whole = direct.chat.completions.create(**ask("Hello!")).choices[0].message.content or ""
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = sdk.chat.completions.create(**ask("Hello!", stop=[stop])).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content == whole[: whole.index(stop)]


@pytest.mark.parametrize("stream", [True, False])
def test_completions_are_vllms(sdk: openai.OpenAI, direct: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {
        "model": "tiny-chat", "prompt": "Es war einmal", "temperature": 0, "max_tokens": 40
    }  # fmt: skip
    told = direct.completions.create(**fields).choices[0].text
    if stream:
        text = "".join(c.choices[0].text for c in sdk.completions.create(**fields, stream=True))
    else:
        text = sdk.completions.create(**fields).choices[0].text
    assert text == told


def test_the_model_is_listed_and_described(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny-chat", "tiny-embed"]
    assert sdk.models.retrieve("tiny-chat").object == "model"


async def test_the_asynchronous_sdk_reads_the_same(
    vllm_stack: LocalStack, sdk: openai.OpenAI
) -> None:
    told = sdk.chat.completions.create(**ask("Hello!")).choices[0].message.content
    async with openai.AsyncOpenAI(
        base_url=vllm_stack.base_url, api_key=vllm_stack.api_key
    ) as client:
        plain = await client.chat.completions.create(**ask("Hello!"))
        assert plain.choices[0].message.content == told
        text = ""
        async for chunk in await client.chat.completions.create(**ask("Hello!"), stream=True):
            text += chunk.choices[0].delta.content or ""
        assert text == told
        assert [model.id async for model in client.models.list()] == ["tiny-chat", "tiny-embed"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**ask("Hello!") | {"model": "other"})


def test_each_error_raises_the_sdks_own_class(vllm_stack: LocalStack, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="sk-wrong").chat.completions.create(**ask("Hi"))
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(**ask("Hi") | {"model": "other"})
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(**ask("Hi") | {"messages": []})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        sdk.chat.completions.create(**ask("Hi") | {"temperature": -1})
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        sdk.chat.completions.create(**ask("word " * 40_000))
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        sdk.chat.completions.create(**ask("word " * 40_000), stream=True)


def test_twenty_streams_at_once_do_not_mix(sdk: openai.OpenAI, direct: openai.OpenAI) -> None:
    texts = [f"{PROMPTS[i % 5]} {i}" for i in range(20)]
    told = {
        text: direct.chat.completions.create(**ask(text)).choices[0].message.content
        for text in texts
    }
    with ThreadPoolExecutor(20) as pool:
        got = dict(zip(texts, pool.map(lambda text: streamed_text(sdk, text), texts), strict=True))
    assert got == told


def running(stack: LocalStack) -> float:
    """How many requests vLLM itself says it is working on."""
    metrics = httpx.get(f"{stack.chat.vllm_url}/metrics", timeout=60).text
    found = re.findall(
        r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)", metrics, re.MULTILINE
    )
    return sum(map(float, found))


def generated(stack: LocalStack) -> float:
    """How many tokens vLLM has made so far."""
    metrics = httpx.get(f"{stack.chat.vllm_url}/metrics", timeout=60).text
    found = re.search(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


CHOICES = 24
"""So many at once keep vLLM busy for minutes."""


@pytest.mark.parametrize("wants_stream", [True, False])
async def test_vllm_stops_for_a_client_that_leaves(
    vllm_stack: LocalStack, wants_stream: bool
) -> None:
    wait_until(lambda: running(vllm_stack) == 0, seconds=60)
    before = generated(vllm_stack)
    body = ask("Hi", temperature=1, n=CHOICES, max_tokens=TOKENS, ignore_eos=True)
    headers = {"authorization": f"Bearer {vllm_stack.api_key}"}
    async with httpx.AsyncClient(
        base_url=vllm_stack.base_url, headers=headers, timeout=None
    ) as client:
        asked = asyncio.create_task(
            client.post("chat/completions", json=body | {"stream": wants_stream})
        )
        await asyncio.to_thread(
            wait_until, lambda: asked.done() or generated(vllm_stack) > before, seconds=60
        )
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    # While it generates at full speed vLLM is late to answer for its metrics and to hear of the
    # client that left. But had it gone on to the end, there would be all of the tokens.
    wait_until(lambda: running(vllm_stack) == 0, seconds=60)
    assert generated(vllm_stack) - before < 0.8 * CHOICES * TOKENS


def test_langchain_streams_a_chat(vllm_stack: LocalStack, sdk: openai.OpenAI) -> None:
    chat = ChatOpenAI(
        base_url=vllm_stack.base_url, api_key=SecretStr(vllm_stack.api_key), model="tiny-chat",
        temperature=0, max_completion_tokens=80,
    )  # fmt: skip
    told = "".join(str(chunk.content) for chunk in chat.stream("Hello!"))
    assert told == sdk.chat.completions.create(**ask("Hello!")).choices[0].message.content


def test_runpods_own_client_gets_an_answer(vllm_stack: LocalStack) -> None:
    runpod.api_key = vllm_stack.runpod_api_key
    runpod.endpoint_url_base = vllm_stack.runpod_url
    endpoint = runpod.Endpoint(vllm_stack.chat.id)
    fields = {"prompt": "Hello", "sampling_params": {"max_tokens": 5, "temperature": 0}}
    output = endpoint.run_sync({"input": fields}, timeout=60)
    assert output[0]["choices"][0]["text"]
    assert endpoint.health(timeout=60)["jobs"]["completed"] > 0


def test_a_first_try_by_curl_gets_an_answer(vllm_stack: LocalStack) -> None:
    answer = httpx.post(
        f"{vllm_stack.runpod_url}/{vllm_stack.chat.id}/runsync",
        content='{"input": {"prompt": "Hello"}}',
        headers={"authorization": vllm_stack.runpod_api_key},
        timeout=60,
    ).json()
    assert answer["status"] == "COMPLETED"
    assert answer["output"][0]["choices"][0]["text"]


def test_fifty_quick_requests_leave_nothing_behind(
    vllm_stack: LocalStack, sdk: openai.OpenAI
) -> None:
    with ThreadPoolExecutor(50) as pool:
        fields = [ask("Hi", max_tokens=1) for _ in range(50)]
        answers = list(pool.map(lambda one: sdk.chat.completions.create(**one), fields))
    assert all(answer.choices for answer in answers)
    wait_until(lambda: jobs(vllm_stack)["inQueue"] + jobs(vllm_stack)["inProgress"] == 0)


def jobs(stack: LocalStack) -> dict[str, int]:
    """RunPod's counts of jobs."""
    health: dict[str, dict[str, int]] = httpx.get(
        f"{stack.runpod_url}/{stack.chat.id}/health",
        headers={"authorization": stack.runpod_api_key},
        timeout=60,
    ).json()
    return health["jobs"]
