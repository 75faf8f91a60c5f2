"""openai-python, synchronous."""

import json
from array import array
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.conformance.python.target import (
    CITIES,
    FORCED_TOOL,
    LONG,
    MAX_TOKENS,
    PARAMETERS,
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


@pytest.fixture
def client(target: Target) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=target.base_url, api_key=target.api_key, max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, target: Target, text: str) -> str:
    chunks = client.chat.completions.create(**chat(text), model=target.model, stream=True)
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


@feature("models")
def test_the_model_is_listed_and_described(client: openai.OpenAI, target: Target) -> None:
    assert target.model in [model.id for model in client.models.list()]


@feature("chat")
def test_a_chat_is_vllms(client: openai.OpenAI, target: Target) -> None:
    answer = client.chat.completions.create(**chat(TEXTS[0]), model=target.model)
    assert answer.choices[0].message.content == target.told(TEXTS[0])
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@feature("stream")
def test_a_streamed_chat_is_vllms(client: openai.OpenAI, target: Target) -> None:
    assert streamed(client, target, TEXTS[0]) == target.told(TEXTS[0])


@feature("stream")
def test_the_helper_for_streams_reads_it_to_its_end(client: openai.OpenAI, target: Target) -> None:
    with client.chat.completions.stream(**chat(TEXTS[0]), model=target.model) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == target.told(TEXTS[0])


@feature("usage")
def test_the_last_chunk_tells_the_usage(client: openai.OpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", stream_options={"include_usage": True}, model=target.model)
    *others, last = client.chat.completions.create(**asked, stream=True)
    assert last.usage
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert last.choices == []
    assert all(chunk.usage is None for chunk in others)


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(client: openai.OpenAI, target: Target) -> None:
    told = [target.told(text) for text in TEXTS]
    assert any(ord(char) > 0xFFFF for char in "".join(told))
    assert [streamed(client, target, text) for text in TEXTS] == told


@feature("tools")
def test_a_forced_tool_is_called(client: openai.OpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Weather?", model=target.model, **FORCED_TOOL)
    calls = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert json.loads(calls[0].function.arguments)["city"] in CITIES


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(client: openai.OpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Weather?", model=target.model, **FORCED_TOOL)
    with client.chat.completions.stream(**asked) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "get_weather"
    assert json.loads(calls[0].function.arguments)["city"] in CITIES


@feature("schema")
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_its_schema(client: openai.OpenAI, target: Target, stream: bool) -> None:
    asked: dict[str, Any] = chat("Where?", model=target.model, response_format=RESPONSE_FORMAT)
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(choice.delta.content or "" for c in chunks for choice in c.choices)
    else:
        text = client.chat.completions.create(**asked).choices[0].message.content or ""
    assert json.loads(text)["city"] in CITIES


@feature("logprobs")
def test_every_token_has_logprobs(client: openai.OpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model, logprobs=True, top_logprobs=2)
    answer = client.chat.completions.create(**asked)
    assert answer.usage
    assert answer.choices[0].logprobs
    tokens = answer.choices[0].logprobs.content or []
    assert len(tokens) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


@feature("choices")
@pytest.mark.parametrize("stream", [False, True])
def test_two_choices_are_kept_apart(client: openai.OpenAI, target: Target, stream: bool) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model, n=2, seed=1) | {"temperature": 1.0}
    texts = {0: "", 1: ""}
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            for part in chunk.choices:
                texts[part.index] += part.delta.content or ""
    else:
        for choice in client.chat.completions.create(**asked).choices:
            texts[choice.index] = choice.message.content or ""
    assert all(texts.values())


@feature("stop")
def test_a_stop_word_ends_the_text(client: openai.OpenAI, target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = client.chat.completions.create(**chat(TEXTS[0]), stop=[stop], model=target.model)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


@feature("completions")
@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_vllms(client: openai.OpenAI, target: Target, stream: bool) -> None:
    asked: dict[str, Any] = {"prompt": "Es war", "temperature": 0, "max_tokens": 30}
    asked["model"] = target.model
    if stream:
        text = "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True))
    else:
        text = client.completions.create(**asked).choices[0].text
    assert text == target.vllm("/v1/completions", asked)["choices"][0]["text"]


@feature("responses")
def test_a_response_is_the_chats_text(client: openai.OpenAI, target: Target) -> None:
    answer = client.responses.create(
        model=target.model, input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS
    )
    assert answer.output_text == target.told(TEXTS[0])
    assert answer.usage


@feature("responses")
def test_a_response_calls_a_tool(client: openai.OpenAI, target: Target) -> None:
    answer = client.responses.create(
        model=target.model,
        input="Weather?",
        temperature=0,
        max_output_tokens=MAX_TOKENS,
        tools=[
            {
                "type": "function",
                "name": "get_weather",
                "description": "Weather",
                "parameters": PARAMETERS,
                "strict": True,
            }
        ],
        tool_choice="required",
    )
    call = answer.output[0]
    assert call.type == "function_call"
    assert json.loads(call.arguments)["city"] in CITIES


@feature("responses-stream")
def test_a_streamed_response_is_the_chats_text(client: openai.OpenAI, target: Target) -> None:
    with client.responses.create(
        model=target.model, input=TEXTS[1], temperature=0, max_output_tokens=MAX_TOKENS, stream=True
    ) as events:
        seen = list(events)
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == target.told(TEXTS[1])
    assert seen[0].type == "response.created"
    assert seen[-1].type in ("response.completed", "response.incomplete")


@feature("responses-stored")
def test_a_stored_response_is_read_again(client: openai.OpenAI, target: Target) -> None:
    made = client.responses.create(
        model=target.model, input=TEXTS[0], temperature=0, max_output_tokens=MAX_TOKENS, store=True
    )
    assert client.responses.retrieve(made.id).output_text == made.output_text


@feature("responses-stored")
def test_a_response_in_the_background_is_cancelled(client: openai.OpenAI, target: Target) -> None:
    made = client.responses.create(
        model=target.model,
        input="Hi",
        max_output_tokens=LONG,
        extra_body={"ignore_eos": True},
        background=True,
        store=True,
    )
    assert client.responses.cancel(made.id).status == "cancelled"


@feature("responses-stored")
def test_a_response_nobody_made_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nobody_made_this")


@feature("embeddings")
@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_vllms(target: Target, encoding: Any) -> None:
    encoded = {"encoding_format": encoding} if encoding else {}
    with openai.OpenAI(
        base_url=target.embeddings_url, api_key=target.api_key, max_retries=0
    ) as client:
        answer = client.embeddings.create(
            model=target.embeddings_model, input=list(TEXTS), **encoded
        )
    vectors: list[Any] = [one.embedding for one in answer.data]
    if encoding == "base64":
        # Asked for, it is handed over as it came.
        vectors = [list(array("f", b64decode(vector))) for vector in vectors]
    assert_close(vectors, target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with (
        openai.OpenAI(base_url=keyed.base_url, api_key=WRONG_KEY, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.chat.completions.create(**chat("Hi"), model=keyed.model)


@feature("error-model")
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_raises_its_class(client: openai.OpenAI, stream: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**chat("Hi"), model=UNKNOWN_MODEL, stream=stream)


@feature("error-request")
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_raises_its_class(client: openai.OpenAI, target: Target, stream: Any) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model) | {"temperature": -1}
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**asked, stream=stream)
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        client.chat.completions.create(**chat(TOO_LONG), model=target.model, stream=stream)


@feature("leaving")
def test_a_client_that_leaves_its_stream_stops_vllm(client: openai.OpenAI, target: Target) -> None:
    asked: dict[str, Any] = chat("Hi", model=target.model) | {"max_tokens": LONG}
    with target.is_left():
        stream = client.chat.completions.create(
            **asked, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()


@feature("parallel")
def test_parallel_streams_do_not_mix(client: openai.OpenAI, target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    told = [target.told(text) for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        assert list(pool.map(lambda text: streamed(client, target, text), texts)) == told
