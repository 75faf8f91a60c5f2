"""instructor, over the OpenAI SDK."""

import asyncio
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel

from tests.conformance.python.target import (
    CITIES,
    LONG,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    chat,
)

feature = pytest.mark.feature


class Place(BaseModel):
    """A place."""

    city: Literal["Ærøskøbing", "कोलकाता"]


class get_weather(BaseModel):
    """Weather. The name of the class is the tool's."""

    city: str


def client_of(
    target: Target, mode: instructor.Mode = instructor.Mode.JSON_SCHEMA, **fields: Any
) -> instructor.Instructor:
    settings: dict[str, Any] = {
        "base_url": target.base_url,
        "api_key": target.api_key,
        "max_retries": 0,
    }
    return instructor.from_openai(openai.OpenAI(**settings | fields), mode=mode)


def asked(target: Target, text: str = "Where?", **fields: Any) -> dict[str, Any]:
    # One try: what the model answers to a question asked again is not the subject.
    return chat(text, model=target.model, max_retries=0, **fields)


@feature("schema")
def test_an_answer_follows_its_schema(target: Target) -> None:
    place = client_of(target).chat.completions.create(response_model=Place, **asked(target))
    assert place.city in CITIES


@feature("schema")
def test_a_list_comes_piece_by_piece(target: Target) -> None:
    parts = client_of(target).chat.completions.create_partial(response_model=Place, **asked(target))
    *_, last = parts
    assert last.city in CITIES


@feature("tools")
def test_a_forced_tool_is_called(target: Target) -> None:
    # instructor does not ask for `strict` arguments, so this is a tool that the model knows.
    weather = client_of(target, instructor.Mode.TOOLS).chat.completions.create(
        response_model=get_weather, **asked(target, "Weather?")
    )
    assert weather.city


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    *_, last = client_of(target, instructor.Mode.TOOLS).chat.completions.create_partial(
        response_model=get_weather, **asked(target, "Weather?")
    )
    assert last.city


@feature("usage")
def test_the_completion_tells_its_usage(target: Target) -> None:
    client = client_of(target)
    _, completion = client.chat.completions.create_with_completion(
        response_model=Place, **asked(target)
    )
    assert completion.usage.completion_tokens > 0


def cause(raised: pytest.ExceptionInfo[InstructorRetryException]) -> object:
    """instructor's own class wraps the SDK's."""
    attempts = raised.value.failed_attempts or []
    return attempts[-1].exception if attempts else raised.value.__cause__


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(InstructorRetryException) as raised:
        client_of(keyed, api_key=WRONG_KEY).chat.completions.create(
            response_model=Place, **asked(keyed)
        )
    assert isinstance(cause(raised), openai.AuthenticationError)


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(InstructorRetryException) as raised:
        client_of(target).chat.completions.create(
            response_model=Place, **asked(target) | {"model": UNKNOWN_MODEL}
        )
    assert isinstance(cause(raised), openai.NotFoundError)


@feature("error-request")
def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(InstructorRetryException, match="temperature") as raised:
        client_of(target).chat.completions.create(
            response_model=Place, **asked(target) | {"temperature": -1}
        )
    assert isinstance(cause(raised), openai.BadRequestError)


@feature("leaving")
async def test_a_client_that_is_cancelled_stops_vllm(target: Target) -> None:
    async with openai.AsyncOpenAI(
        base_url=target.base_url, api_key=target.api_key, max_retries=0
    ) as sdk:
        client = instructor.from_openai(sdk, mode=instructor.Mode.TOOLS)
        fields = asked(target) | {"max_tokens": LONG, "extra_body": {"ignore_eos": True}}
        await target.is_left_by(
            client.chat.completions.create(response_model=get_weather, **fields)
        )


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    async with openai.AsyncOpenAI(
        base_url=target.base_url, api_key=target.api_key, max_retries=0
    ) as sdk:
        client = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)
        places = await asyncio.gather(
            *(
                client.chat.completions.create(response_model=Place, **asked(target))
                for _ in range(8)
            )
        )
    assert {place.city for place in places} <= set(CITIES)
