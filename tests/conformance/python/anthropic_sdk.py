"""anthropic-python, whose own API vLLM serves too."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    PARAMETERS,
    TEXTS,
    TOO_LONG,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
)

feature = pytest.mark.feature
FORCED_TOOL: dict[str, Any] = {
    "tools": [
        {
            "name": "get_weather",
            "description": "Weather",
            "input_schema": PARAMETERS,
            "strict": True,
        }
    ],
    "tool_choice": {"type": "tool", "name": "get_weather"},
}


@pytest.fixture
def client(target: Target) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=target.root_url, api_key=target.api_key, max_retries=0
    ) as client:
        yield client


def asked(target: Target, text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": target.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": MAX_TOKENS,
        # Anthropic's own models take no temperature any more, so the SDK has no name for it.
        "extra_body": {"temperature": 0},
        **fields,
    }


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def streamed(client: anthropic.Anthropic, target: Target, text: str) -> str:
    with client.messages.stream(**asked(target, text)) as stream:
        return "".join(stream.text_stream)


@feature("messages")
def test_a_message_is_the_chats_text(client: anthropic.Anthropic, target: Target) -> None:
    message = client.messages.create(**asked(target, TEXTS[0]))
    assert [block.type for block in message.content] == ["text"]
    assert text_of(message) == target.told(TEXTS[0])
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 0


@feature("messages")
def test_a_system_prompt_is_taken(client: anthropic.Anthropic, target: Target) -> None:
    message = client.messages.create(**asked(target, "Hi", system="Be brief."))
    assert message.role == "assistant"


@feature("messages-stream")
def test_a_streamed_message_is_the_chats_text(client: anthropic.Anthropic, target: Target) -> None:
    with client.messages.stream(**asked(target, TEXTS[0])) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert text_of(message) == target.told(TEXTS[0])
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


@feature("usage")
def test_a_stream_tells_its_usage(client: anthropic.Anthropic, target: Target) -> None:
    with client.messages.stream(**asked(target, "Hi")) as stream:
        assert stream.get_final_message().usage.output_tokens > 0


@feature("count-tokens")
def test_the_count_is_what_the_message_costs(client: anthropic.Anthropic, target: Target) -> None:
    messages: Any = [{"role": "user", "content": TEXTS[0]}]
    counted = client.messages.count_tokens(model=target.model, messages=messages)
    message = client.messages.create(**asked(target, TEXTS[0]))
    assert counted.input_tokens == message.usage.input_tokens


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(
    client: anthropic.Anthropic, target: Target
) -> None:
    assert [streamed(client, target, text) for text in TEXTS] == [
        target.told(text) for text in TEXTS
    ]


@feature("tools")
def test_a_forced_tool_is_called(client: anthropic.Anthropic, target: Target) -> None:
    message = client.messages.create(**asked(target, "Weather?", **FORCED_TOOL))
    call = next(block for block in message.content if block.type == "tool_use")
    assert (call.name, call.input["city"] in CITIES) == ("get_weather", True)
    assert message.stop_reason == "tool_use"


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(client: anthropic.Anthropic, target: Target) -> None:
    with client.messages.stream(**asked(target, "Weather?", **FORCED_TOOL)) as stream:
        message = stream.get_final_message()
    call = next(block for block in message.content if block.type == "tool_use")
    assert (call.name, call.input["city"] in CITIES) == ("get_weather", True)


@feature("schema")
def test_an_answer_follows_its_schema(client: anthropic.Anthropic, target: Target) -> None:
    wanted = {"format": {"type": "json_schema", "schema": PARAMETERS}}
    message = client.messages.create(**asked(target, "Where?", output_config=wanted))
    assert json.loads(text_of(message))["city"] in CITIES


@feature("stop")
def test_a_stop_word_ends_the_text(client: anthropic.Anthropic, target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    message = client.messages.create(**asked(target, TEXTS[0], stop_sequences=[stop]))
    assert text_of(message) == whole[: whole.index(stop)]


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with (
        anthropic.Anthropic(base_url=keyed.root_url, api_key=WRONG_KEY, max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        client.messages.create(**asked(keyed, "Hi"))


@feature("error-model")
def test_an_unknown_model_raises_its_class(client: anthropic.Anthropic, target: Target) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked(target, "Hi") | {"model": UNKNOWN_MODEL})
    with (
        pytest.raises(anthropic.NotFoundError),
        client.messages.stream(**asked(target, "Hi") | {"model": UNKNOWN_MODEL}) as stream,
    ):
        stream.get_final_message()


@feature("error-request")
def test_a_bad_request_raises_its_class(client: anthropic.Anthropic, target: Target) -> None:
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**asked(target, TOO_LONG))


@feature("leaving")
def test_a_client_that_leaves_its_stream_stops_vllm(
    client: anthropic.Anthropic, target: Target
) -> None:
    long = asked(target, "Hi", extra_body={"ignore_eos": True}) | {"max_tokens": LONG}
    with target.is_left(), client.messages.stream(**long) as stream:
        next(stream.text_stream)


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    async with anthropic.AsyncAnthropic(
        base_url=target.root_url, api_key=target.api_key, max_retries=0
    ) as client:
        messages = await asyncio.gather(
            *(client.messages.create(**asked(target, text)) for text in texts)
        )
    assert [text_of(message) for message in messages] == [target.told(text) for text in texts]
