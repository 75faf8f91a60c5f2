"""smolagents: `OpenAIModel`, and an agent's turn with it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from smolagents import ChatMessage, MessageRole, OpenAIModel, Tool

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    RESPONSE_FORMAT,
    TEXTS,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
)

feature = pytest.mark.feature


def model_of(target: Target, *, model: str = "", api_key: str = "", **fields: Any) -> OpenAIModel:
    wanted: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, **fields}
    return OpenAIModel(
        model or target.model,
        api_base=target.base_url,
        api_key=api_key or target.api_key,
        client_kwargs={"max_retries": 0},
        retry=False,
        **wanted,
    )


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


def said(model: OpenAIModel, text: str) -> str:
    return str(model.generate(asked(text)).content)


def streamed(model: OpenAIModel, text: str) -> str:
    return "".join(delta.content or "" for delta in model.generate_stream(asked(text)))


class GetWeather(Tool):  # type: ignore[misc]  # it is known in the client's environment only
    """A tool whose argument has a schema."""

    name = "get_weather"
    description = "Weather"
    inputs = {"city": {"type": "string", "description": "City", "enum": list(CITIES)}}  # noqa: RUF012
    output_type = "string"

    def forward(self, city: str) -> str:
        return city


@feature("chat")
def test_a_chat_is_vllms(target: Target) -> None:
    assert said(model_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("stream")
def test_a_streamed_chat_is_vllms(target: Target) -> None:
    assert streamed(model_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(target: Target) -> None:
    last = [d for d in model_of(target).generate_stream(asked("Hi")) if d.token_usage]
    assert last[-1].token_usage.input_tokens > 0
    assert last[-1].token_usage.output_tokens > 0


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    for text in TEXTS:
        assert streamed(model_of(target), text) == target.told(text)


@feature("tools")
def test_a_forced_tool_is_called(target: Target) -> None:
    answer = model_of(target).generate(
        asked("Weather?"), tools_to_call_from=[GetWeather()], tool_choice="required"
    )
    [call, *_] = answer.tool_calls
    assert call.function.name == "get_weather"


@feature("schema")
def test_an_answer_follows_its_schema(target: Target) -> None:
    answer = model_of(target).generate(asked("Where?"), response_format=RESPONSE_FORMAT)
    assert any(city in str(answer.content) for city in CITIES)


@feature("stop")
def test_a_stop_word_ends_the_text(target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = model_of(target).generate(asked(TEXTS[0]), stop_sequences=[stop])
    assert answer.content == whole[: whole.index(stop)]


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(openai.AuthenticationError):
        said(model_of(keyed, api_key=WRONG_KEY), "Hi")


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.NotFoundError):
        said(model_of(target, model=UNKNOWN_MODEL), "Hi")


@feature("error-request")
def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        said(model_of(target, temperature=-1), "Hi")


@feature("leaving")
def test_a_stream_that_is_left_stops_vllm(target: Target) -> None:
    model = model_of(target, max_tokens=LONG, extra_body={"ignore_eos": True})
    with target.is_left():
        # It has no way to leave a stream but to close the client that it asks by.
        next(iter(model.generate_stream(asked("Hi"))))
        model.client.close()


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    model = model_of(target)
    with ThreadPoolExecutor(8) as pool:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(loop.run_in_executor(pool, said, model, text) for text in texts)
        )
    assert answers == [target.told(text) for text in texts]
