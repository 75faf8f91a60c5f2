"""What the built-in model is clever enough for, asked through the whole road."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from scripts.local_stack import LocalStack

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

CITY = "Reykjavik"
"""One that no training has read."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def sdk(vllm_stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=vllm_stack.base_url, api_key=vllm_stack.api_key, max_retries=0, timeout=120
    ) as sdk:
        yield sdk


def chat(*said: str | dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A request; texts are the user's and the model's in turns."""
    roles = ("user", "assistant")
    messages = [
        text if isinstance(text, dict) else {"role": roles[i % 2], "content": text}
        for i, text in enumerate(said)
    ]
    return {
        "model": "tiny-chat",
        "messages": messages,
        "temperature": 0,
        "max_tokens": 120,
    } | fields


def answer(sdk: openai.OpenAI, *said: str | dict[str, Any], **fields: Any) -> str:
    """What it says, having stopped by itself."""
    choice = sdk.chat.completions.create(**chat(*said, **fields)).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content or ""


def test_it_chooses_a_tool_in_a_stream_and_copies_a_city_it_has_never_seen(
    sdk: openai.OpenAI,
) -> None:
    asked = chat(f"What is the weather in {CITY}?", tools=[WEATHER], stream=True)
    name, arguments, finish = "", "", None
    for chunk in sdk.chat.completions.create(**asked):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            assert not choice.delta.content
            for call in choice.delta.tool_calls or []:
                assert call.function
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert (name, json.loads(arguments), finish) == ("get_weather", {"city": CITY}, "tool_calls")


def test_it_calls_twice_where_two_are_asked_for(sdk: openai.OpenAI) -> None:
    question = f"What is the weather in {CITY} and in Quito?"
    message = sdk.chat.completions.create(**chat(question, tools=[WEATHER])).choices[0].message
    calls = [call for call in message.tool_calls or [] if call.type == "function"]
    told = [json.loads(call.function.arguments) for call in calls]
    assert told == [{"city": CITY}, {"city": "Quito"}]


def test_it_uses_in_a_sentence_what_a_tool_has_told(sdk: openai.OpenAI) -> None:
    question = f"What is the weather in {CITY}?"
    message = sdk.chat.completions.create(**chat(question, tools=[WEATHER])).choices[0].message
    [call] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
    told = answer(sdk, question, message.model_dump(exclude_none=True), result, tools=[WEATHER])
    assert f"{CITY}: sunny, 21 degrees" in told


def test_it_calls_no_tool_for_a_greeting(sdk: openai.OpenAI) -> None:
    assert "Hello" in answer(sdk, "Hello!", tools=[WEATHER])


def test_it_remembers_a_name_and_spells_it_in_capitals(sdk: openai.OpenAI) -> None:
    said = answer(sdk, "Hi! My name is Marisol.")
    assert "Marisol" in said
    assert "Marisol" in answer(sdk, "Hi! My name is Marisol.", said, "What is my name?")
    assert "MARISOL" in answer(sdk, "Write marisol in capitals")


def test_it_thinks_when_asked(sdk: openai.OpenAI) -> None:
    told = answer(sdk, "Think step by step: what is 2 + 3?")
    assert told.startswith("<think>")
    assert told.rstrip().endswith("= 5.")
    switched = chat(
        "What is 2 + 3?", extra_body={"chat_template_kwargs": {"enable_thinking": True}}
    )
    message = sdk.chat.completions.create(**switched).choices[0].message
    assert (message.content or "").startswith("<think>")


def test_a_schema_is_filled_with_what_the_request_says(sdk: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    told = answer(sdk, "Marisol is 42 years old.", response_format=wanted)
    assert json.loads(told) == {"name": "Marisol", "age": 42}


def test_it_says_how_to_point_an_app_at_it(sdk: openai.OpenAI) -> None:
    assert "http://127.0.0.1:8080/v1" in answer(sdk, "How do I point my app at you?")
