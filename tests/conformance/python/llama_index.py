"""LlamaIndex: `OpenAILike` and `OpenAILikeEmbedding`."""

import asyncio
from typing import Any

import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.conformance.python.target import (
    LONG,
    MAX_TOKENS,
    TEXTS,
    TOO_LONG,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
)

feature = pytest.mark.feature


class Place(BaseModel):
    """A place."""

    city: str


def model_of(target: Target, **fields: Any) -> OpenAILike:
    settings: dict[str, Any] = {
        "api_base": target.base_url,
        "api_key": target.api_key,
        "model": target.model,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "context_window": 2048,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "max_retries": 0,
    }
    return OpenAILike(**settings | fields)


@pytest.fixture
def model(target: Target) -> OpenAILike:
    return model_of(target)


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def streamed(model: OpenAILike, text: str) -> str:
    return "".join(part.delta or "" for part in model.stream_chat(asked(text)))


def get_weather(city: str) -> str:
    """Weather."""
    return f"Rain in {city}."


@feature("chat")
def test_a_chat_is_vllms(model: OpenAILike, target: Target) -> None:
    assert model.chat(asked(TEXTS[0])).message.content == target.told(TEXTS[0])


@feature("chat")
def test_a_prompt_is_sent_as_a_chat(model: OpenAILike, target: Target) -> None:
    assert model.complete(TEXTS[0]).text == target.told(TEXTS[0])


@feature("stream")
def test_a_streamed_chat_is_vllms(model: OpenAILike, target: Target) -> None:
    assert streamed(model, TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(target: Target) -> None:
    model = model_of(target, additional_kwargs={"stream_options": {"include_usage": True}})
    *_, last = model.stream_chat(asked("Hi"))
    assert last.raw.usage.completion_tokens > 0


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(model: OpenAILike, target: Target) -> None:
    assert [streamed(model, text) for text in TEXTS] == [target.told(text) for text in TEXTS]


@feature("tools")
def test_a_forced_tool_is_called(target: Target) -> None:
    model = model_of(target, strict=True)
    tool = FunctionTool.from_defaults(get_weather)
    answer = model.chat_with_tools([tool], user_msg="Weather?", tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    assert [call.tool_name for call in calls] == ["get_weather"]
    assert isinstance(calls[0].tool_kwargs["city"], str)


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    model = model_of(target, strict=True)
    tool = FunctionTool.from_defaults(get_weather)
    *_, last = model.stream_chat_with_tools([tool], user_msg="Weather?", tool_required=True)
    calls = model.get_tool_calls_from_response(last)
    assert [call.tool_name for call in calls] == ["get_weather"]
    assert isinstance(calls[0].tool_kwargs["city"], str)


@feature("schema")
def test_an_answer_follows_its_schema(target: Target) -> None:
    model = model_of(target, should_use_structured_outputs=True)
    answer = model.as_structured_llm(Place).chat(asked("Where?"))
    assert isinstance(answer.raw, Place)


@feature("logprobs")
def test_every_token_has_logprobs(target: Target) -> None:
    answer = model_of(target, logprobs=True, top_logprobs=2).chat(asked("Hi"))
    assert answer.logprobs
    assert len(answer.logprobs) == answer.raw.usage.completion_tokens


@feature("stop")
def test_a_stop_word_ends_the_text(model: OpenAILike, target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = model.chat(asked(TEXTS[0]), stop=[stop])
    assert answer.message.content == whole[: whole.index(stop)]


@feature("completions")
def test_a_completion_is_vllms(target: Target) -> None:
    model = model_of(target, is_chat_model=False, max_tokens=30)
    fields = {"model": target.model, "prompt": "Es war", "temperature": 0, "max_tokens": 30}
    told = target.vllm("/v1/completions", fields)["choices"][0]["text"]
    assert model.complete("Es war").text == told
    assert "".join(part.delta or "" for part in model.stream_complete("Es war")) == told


@feature("embeddings")
def test_embeddings_are_vllms(target: Target) -> None:
    model = OpenAILikeEmbedding(
        model_name=target.embeddings_model,
        api_base=target.embeddings_url,
        api_key=target.api_key,
        max_retries=0,
    )
    assert_close(model.get_text_embedding_batch(list(TEXTS)), target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(openai.AuthenticationError):
        model_of(keyed, api_key=WRONG_KEY).chat(asked("Hi"))


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.NotFoundError):
        model_of(target, model=UNKNOWN_MODEL).chat(asked("Hi"))


@feature("error-request")
def test_a_bad_request_raises_its_class(model: OpenAILike) -> None:
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        model.chat(asked(TOO_LONG))


@feature("leaving")
async def test_a_client_that_is_cancelled_stops_vllm(target: Target) -> None:
    model = model_of(target, max_tokens=LONG)

    async def read() -> None:
        parts = await model.astream_chat(asked("Hi"), extra_body={"ignore_eos": True})
        async for _ in parts:
            pass

    # Not by closing the generator: that leaves LlamaIndex's connection open.
    await target.is_left_by(read())


@feature("parallel")
async def test_parallel_requests_do_not_mix(model: OpenAILike, target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    answers = await asyncio.gather(*(model.achat(asked(text)) for text in texts))
    assert [answer.message.content for answer in answers] == [target.told(text) for text in texts]
