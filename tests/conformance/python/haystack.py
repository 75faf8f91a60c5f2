"""Haystack: `OpenAIChatGenerator`, `OpenAIResponsesChatGenerator` and `OpenAITextEmbedder`."""

import asyncio
from typing import Any

import openai
import pytest
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import (
    OpenAIChatGenerator,
    OpenAIResponsesChatGenerator,
)
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import Tool
from haystack.utils import Secret

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    PARAMETERS,
    RESPONSE_FORMAT,
    TEXTS,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
)

feature = pytest.mark.feature
FORCED = {"type": "function", "function": {"name": "get_weather"}}


def generator_of(
    target: Target, *, model: str = "", api_key: str = "", tools: Any = None, **fields: Any
) -> OpenAIChatGenerator:
    return OpenAIChatGenerator(
        model=model or target.model,
        api_base_url=target.base_url,
        api_key=Secret.from_token(api_key or target.api_key),
        generation_kwargs={"temperature": 0, "max_tokens": MAX_TOKENS, **fields},
        max_retries=0,
        timeout=120,
        tools=tools,
        tools_strict=tools is not None,
    )


def responses_of(target: Target) -> OpenAIResponsesChatGenerator:
    return OpenAIResponsesChatGenerator(
        model=target.model,
        api_base_url=target.base_url,
        api_key=Secret.from_token(target.api_key),
        generation_kwargs={"temperature": 0, "max_output_tokens": MAX_TOKENS},
        max_retries=0,
        timeout=120,
    )


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage.from_user(text)]


def reply(generator: Any, text: str, **fields: Any) -> ChatMessage:
    found: ChatMessage = generator.run(messages=asked(text), **fields)["replies"][0]
    return found


def streamed(generator: Any, text: str) -> str:
    parts: list[str] = []

    def take(chunk: StreamingChunk) -> None:
        parts.append(chunk.content)

    reply(generator, text, streaming_callback=take)
    return "".join(parts)


def weather() -> Tool:
    return Tool(
        name="get_weather",
        description="Weather",
        parameters=PARAMETERS,
        function=lambda city: city,
    )


@feature("chat")
def test_a_chat_is_vllms(target: Target) -> None:
    answer = reply(generator_of(target), TEXTS[0])
    assert answer.text == target.told(TEXTS[0])
    assert answer.meta["usage"]["completion_tokens"] > 0


@feature("stream")
def test_a_streamed_chat_is_vllms(target: Target) -> None:
    assert streamed(generator_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(target: Target) -> None:
    generator = generator_of(target, stream_options={"include_usage": True})
    answer = reply(generator, "Hi", streaming_callback=lambda chunk: None)
    assert answer.meta["usage"]["completion_tokens"] > 0


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    for text in TEXTS:
        assert streamed(generator_of(target), text) == target.told(text)


@feature("tools")
def test_a_forced_tool_is_called(target: Target) -> None:
    answer = reply(generator_of(target, tools=[weather()], tool_choice=FORCED), "Weather?")
    [call] = answer.tool_calls
    assert call.tool_name == "get_weather"
    assert call.arguments["city"] in CITIES


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    generator = generator_of(target, tools=[weather()], tool_choice=FORCED)
    [call] = reply(generator, "Weather?", streaming_callback=lambda chunk: None).tool_calls
    assert call.arguments["city"] in CITIES


@feature("schema")
def test_an_answer_follows_its_schema(target: Target) -> None:
    answer = reply(generator_of(target, response_format=RESPONSE_FORMAT), "Where?")
    assert any(city in str(answer.text) for city in CITIES)


@feature("logprobs")
def test_every_token_has_logprobs(target: Target) -> None:
    answer = reply(generator_of(target, logprobs=True), "Hi")
    assert len(answer.meta["logprobs"]["content"]) == answer.meta["usage"]["completion_tokens"]


@feature("choices")
def test_several_choices_come(target: Target) -> None:
    answer = generator_of(target, n=3, temperature=1).run(messages=asked(TEXTS[0]))
    assert len(answer["replies"]) == 3


@feature("stop")
def test_a_stop_word_ends_the_text(target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    assert reply(generator_of(target, stop=[stop]), TEXTS[0]).text == whole[: whole.index(stop)]


@feature("responses")
def test_a_response_is_the_chats_text(target: Target) -> None:
    assert reply(responses_of(target), TEXTS[0]).text == target.told(TEXTS[0])


@feature("responses-stream")
def test_a_streamed_response_is_the_chats_text(target: Target) -> None:
    assert streamed(responses_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("embeddings")
def test_embeddings_are_vllms(target: Target) -> None:
    embedder = OpenAITextEmbedder(
        model=target.embeddings_model,
        api_base_url=target.embeddings_url,
        api_key=Secret.from_token(target.api_key),
    )
    vectors = [embedder.run(text=text)["embedding"] for text in TEXTS]
    assert_close(vectors, target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(openai.AuthenticationError):
        reply(generator_of(keyed, api_key=WRONG_KEY), "Hi")


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.NotFoundError):
        reply(generator_of(target, model=UNKNOWN_MODEL), "Hi")


@feature("error-request")
def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        reply(generator_of(target, temperature=-1), "Hi")


@feature("leaving")
async def test_a_run_that_is_cancelled_stops_vllm(target: Target) -> None:
    generator = generator_of(target, max_tokens=LONG, extra_body={"ignore_eos": True})
    await target.is_left_by(generator.run_async(messages=asked("Hi")))


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    generator = generator_of(target)
    answers = await asyncio.gather(*(generator.run_async(messages=asked(t)) for t in texts))
    said = [answer["replies"][0].text for answer in answers]
    assert said == [target.told(text) for text in texts]
