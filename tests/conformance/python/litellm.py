"""LiteLLM as a client, by its provider for vLLM, `hosted_vllm/`."""

import asyncio
import json
from typing import Any

import litellm
import pytest

from tests.conformance.python.target import (
    CITIES,
    FORCED_TOOL,
    LONG,
    MAX_TOKENS,
    RESPONSE_FORMAT,
    TEXTS,
    TOO_LONG,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
    chat,
)

feature = pytest.mark.feature


def reached(target: Target, **fields: Any) -> dict[str, Any]:
    """Where LiteLLM finds the target."""
    return {
        "model": f"hosted_vllm/{target.model}",
        "api_base": target.base_url,
        "api_key": target.api_key,
        "num_retries": 0,
        **fields,
    }


def told_by(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@feature("models")
def test_the_model_is_listed(target: Target) -> None:
    names = litellm.get_valid_models(
        check_provider_endpoint=True,
        custom_llm_provider="hosted_vllm",
        api_key=target.api_key,
        api_base=target.base_url,
    )
    assert any(name.endswith(target.model) for name in names)


@feature("chat")
def test_a_chat_is_vllms(target: Target) -> None:
    answer = litellm.completion(**chat(TEXTS[0]), **reached(target))
    assert answer.choices[0].message.content == target.told(TEXTS[0])
    assert answer.usage.total_tokens > 0


@feature("stream")
def test_a_streamed_chat_is_vllms(target: Target) -> None:
    chunks = litellm.completion(**chat(TEXTS[0]), **reached(target), stream=True)
    assert told_by(chunks) == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(target: Target) -> None:
    asked = chat("Hi", stream_options={"include_usage": True})
    chunks = list(litellm.completion(**asked, **reached(target), stream=True))
    usage = chunks[-1].usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    for text in TEXTS:
        chunks = litellm.completion(**chat(text), **reached(target), stream=True)
        assert told_by(chunks) == target.told(text)


@feature("tools")
def test_a_forced_tool_is_called(target: Target) -> None:
    answer = litellm.completion(**chat("Weather?", **FORCED_TOOL), **reached(target))
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "get_weather"
    # LiteLLM takes `strict` out of what it sends to a vLLM, so the schema binds nobody.
    assert isinstance(json.loads(call.arguments), dict)


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    asked = chat("Weather?", **FORCED_TOOL)
    chunks = list(litellm.completion(**asked, **reached(target), stream=True))
    call = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0].function
    assert call.name == "get_weather"
    # LiteLLM takes `strict` out of what it sends to a vLLM, so the schema binds nobody.
    assert isinstance(json.loads(call.arguments), dict)


@feature("schema")
def test_an_answer_follows_its_schema(target: Target) -> None:
    asked = chat("Where?", response_format=RESPONSE_FORMAT)
    answer = litellm.completion(**asked, **reached(target))
    assert json.loads(answer.choices[0].message.content)["city"] in CITIES


@feature("logprobs")
def test_every_token_has_logprobs(target: Target) -> None:
    answer = litellm.completion(**chat("Hi", logprobs=True, top_logprobs=2), **reached(target))
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


@feature("choices")
def test_two_choices_are_kept_apart(target: Target) -> None:
    asked = chat("Hi", n=2, seed=1) | {"temperature": 1.0}
    answer = litellm.completion(**asked, **reached(target))
    assert [choice.index for choice in answer.choices] == [0, 1]


@feature("stop")
def test_a_stop_word_ends_the_text(target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = litellm.completion(**chat(TEXTS[0], stop=[stop]), **reached(target))
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


@feature("completions")
@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_vllms(target: Target, stream: bool) -> None:
    asked: dict[str, Any] = {"prompt": "Es war", "temperature": 0, "max_tokens": 30}
    answer = litellm.text_completion(**asked, **reached(target), stream=stream)
    text = "".join(c.choices[0].text or "" for c in answer) if stream else answer.choices[0].text
    told = target.vllm("/v1/completions", asked | {"model": target.model})
    assert text == told["choices"][0]["text"]


@feature("responses")
def test_a_response_is_the_chats_text(target: Target) -> None:
    answer = litellm.responses(
        input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS, **reached(target)
    )
    assert answer.output[0].content[0].text == target.told(TEXTS[0])


@feature("responses-stream")
def test_a_streamed_response_is_the_chats_text(target: Target) -> None:
    events = litellm.responses(
        input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS, stream=True, **reached(target)
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == target.told(TEXTS[0])


@feature("messages")
async def test_a_message_is_the_chats_text(target: Target) -> None:
    messages = [{"role": "user", "content": TEXTS[0]}]
    answer = await litellm.anthropic.messages.acreate(
        messages=messages, max_tokens=MAX_TOKENS, temperature=0, **reached(target)
    )
    assert answer["content"][0]["text"] == target.told(TEXTS[0])


@feature("messages-stream")
async def test_a_streamed_message_is_the_chats_text(target: Target) -> None:
    messages = [{"role": "user", "content": TEXTS[0]}]
    events = await litellm.anthropic.messages.acreate(
        messages=messages, max_tokens=MAX_TOKENS, temperature=0, stream=True, **reached(target)
    )
    raw = "".join([event.decode() async for event in events])
    data = [
        json.loads(line.removeprefix("data: ")) for line in raw.split("\n") if "data: {" in line
    ]
    deltas = [one["delta"] for one in data if one["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == target.told(TEXTS[0])


@feature("embeddings")
def test_embeddings_are_vllms(target: Target) -> None:
    answer = litellm.embedding(
        model=f"hosted_vllm/{target.embeddings_model}",
        input=list(TEXTS),
        api_base=target.embeddings_url,
        api_key=target.api_key,
    )
    assert_close([one["embedding"] for one in answer.data], target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**chat("Hi"), **reached(keyed, api_key=WRONG_KEY))


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**chat("Hi"), **reached(target, model=f"hosted_vllm/{UNKNOWN_MODEL}"))


@feature("error-request")
def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**chat("Hi") | {"temperature": -1}, **reached(target))
    with pytest.raises(litellm.BadRequestError, match=r"context length|maximum"):
        litellm.completion(**chat(TOO_LONG), **reached(target))


@feature("leaving")
async def test_a_client_that_leaves_its_stream_stops_vllm(target: Target) -> None:
    asked = chat("Hi") | {"max_tokens": LONG}

    async def read() -> None:
        extra = {"ignore_eos": True}
        chunks = await litellm.acompletion(
            **asked, **reached(target), stream=True, extra_body=extra
        )
        async for _ in chunks:
            pass

    # Not by `aclose()`: that leaves LiteLLM's connection open.
    await target.is_left_by(read())


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    asked = (litellm.acompletion(**chat(text), **reached(target)) for text in texts)
    answers = await asyncio.gather(*asked)
    assert [answer.choices[0].message.content for answer in answers] == [
        target.told(text) for text in texts
    ]
