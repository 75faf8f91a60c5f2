"""openai-python, asynchronous."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.conformance.python.target import (
    CITIES,
    FORCED_TOOL,
    LONG,
    MAX_TOKENS,
    RESPONSE_FORMAT,
    TEXTS,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
    chat,
)

feature = pytest.mark.feature


@pytest.fixture
async def client(target: Target) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=target.base_url, api_key=target.api_key, max_retries=0
    ) as client:
        yield client


async def streamed(client: openai.AsyncOpenAI, target: Target, text: str) -> str:
    chunks = await client.chat.completions.create(**chat(text), model=target.model, stream=True)
    parts = [choice.delta.content or "" async for chunk in chunks for choice in chunk.choices]
    return "".join(parts)


@feature("models")
async def test_the_model_is_listed(client: openai.AsyncOpenAI, target: Target) -> None:
    assert target.model in [model.id async for model in client.models.list()]


@feature("chat")
async def test_a_chat_is_vllms(client: openai.AsyncOpenAI, target: Target) -> None:
    answer = await client.chat.completions.create(**chat(TEXTS[0]), model=target.model)
    assert answer.choices[0].message.content == target.told(TEXTS[0])


@feature("stream")
async def test_a_streamed_chat_is_vllms(client: openai.AsyncOpenAI, target: Target) -> None:
    assert await streamed(client, target, TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
async def test_the_last_chunk_tells_the_usage(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", stream_options={"include_usage": True}, model=target.model)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 0


@feature("text")
async def test_multi_byte_text_is_vllms_to_the_letter(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    for text in TEXTS:
        assert await streamed(client, target, text) == target.told(text)


@feature("tools")
async def test_a_forced_tool_is_called(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Weather?", model=target.model, **FORCED_TOOL)
    calls = (await client.chat.completions.create(**asked)).choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments)["city"] in CITIES


@feature("tools-stream")
async def test_a_forced_tool_is_called_in_a_stream(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    asked: dict[str, Any] = chat("Weather?", model=target.model, **FORCED_TOOL)
    async with client.chat.completions.stream(**asked) as stream:
        calls = (await stream.get_final_completion()).choices[0].message.tool_calls
    assert calls
    assert json.loads(calls[0].function.arguments)["city"] in CITIES


@feature("schema")
async def test_an_answer_follows_its_schema(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Where?", model=target.model, response_format=RESPONSE_FORMAT)
    answer = await client.chat.completions.create(**asked)
    assert json.loads(answer.choices[0].message.content or "")["city"] in CITIES


@feature("logprobs")
async def test_every_token_of_a_stream_has_logprobs(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model, logprobs=True, top_logprobs=2)
    asked["stream_options"] = {"include_usage": True}
    tokens, usage = 0, None
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        usage = chunk.usage
        for choice in chunk.choices:
            tokens += len((choice.logprobs and choice.logprobs.content) or [])
    assert usage
    assert tokens == usage.completion_tokens


@feature("choices")
async def test_two_choices_are_kept_apart(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model, n=2, seed=1) | {"temperature": 1.0}
    answer = await client.chat.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


@feature("stop")
async def test_a_stop_word_ends_the_stream(client: openai.AsyncOpenAI, target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    asked: dict[str, Any] = chat(TEXTS[0], model=target.model, stop=[stop])
    parts, reasons = [], []
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        parts.append(chunk.choices[0].delta.content or "")
        reasons.append(chunk.choices[0].finish_reason)
    assert "".join(parts) == whole[: whole.index(stop)]
    assert reasons[-1] == "stop"


@feature("completions")
async def test_a_streamed_completion_is_vllms(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = {"prompt": "Es war", "temperature": 0, "max_tokens": 30}
    asked["model"] = target.model
    chunks = await client.completions.create(**asked, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in chunks])
    assert text == target.vllm("/v1/completions", asked)["choices"][0]["text"]


@feature("responses")
async def test_a_response_is_the_chats_text(client: openai.AsyncOpenAI, target: Target) -> None:
    answer = await client.responses.create(
        model=target.model, input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS
    )
    assert answer.output_text == target.told(TEXTS[0])


@feature("responses-stream")
async def test_a_streamed_response_is_the_chats_text(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    async with client.responses.stream(
        model=target.model, input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS
    ) as stream:
        answer = await stream.get_final_response()
    assert answer.output_text == target.told(TEXTS[0])


@feature("responses-stored")
async def test_a_stored_response_is_read_again(client: openai.AsyncOpenAI, target: Target) -> None:
    made = await client.responses.create(
        model=target.model, input=TEXTS[0], max_output_tokens=MAX_TOKENS, store=True
    )
    assert (await client.responses.retrieve(made.id)).output_text == made.output_text


@feature("embeddings")
async def test_embeddings_are_vllms(target: Target) -> None:
    async with openai.AsyncOpenAI(
        base_url=target.embeddings_url, api_key=target.api_key, max_retries=0
    ) as client:
        answer = await client.embeddings.create(model=target.embeddings_model, input=list(TEXTS))
    assert_close([one.embedding for one in answer.data], target.vllm_embeddings())


@feature("error-key")
async def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    async with openai.AsyncOpenAI(
        base_url=keyed.base_url, api_key=WRONG_KEY, max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(**chat("Hi"), model=keyed.model)


@feature("error-model")
async def test_an_unknown_model_raises_its_class(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(**chat("Hi"), model=UNKNOWN_MODEL)


@feature("error-request")
async def test_a_bad_request_raises_its_class(client: openai.AsyncOpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model) | {"temperature": -1}
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.chat.completions.create(**asked)


@feature("leaving")
async def test_a_client_that_leaves_its_stream_stops_vllm(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model) | {"max_tokens": LONG}
    with target.is_left():
        chunks = await client.chat.completions.create(
            **asked, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(chunks))
        await chunks.close()


@feature("leaving")
async def test_a_client_that_gives_up_waiting_stops_vllm(
    client: openai.AsyncOpenAI, target: Target
) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model) | {"max_tokens": LONG}
    waiting = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    await target.is_left_by(waiting)


@feature("parallel")
async def test_parallel_streams_do_not_mix(client: openai.AsyncOpenAI, target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(16)]
    told = [target.told(text) for text in texts]
    assert await asyncio.gather(*(streamed(client, target, text) for text in texts)) == told
