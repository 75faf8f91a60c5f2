"""LangChain: `ChatOpenAI` in LangChain's own standard suite and beyond it, `OpenAIEmbeddings`."""

from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests
from pydantic import BaseModel, SecretStr

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    TEXTS,
    TOO_LONG,
    TOOL,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
    target_of_this_run,
)

feature = pytest.mark.feature


class Place(BaseModel):
    """A place."""

    city: str


def model_of(target: Target, **fields: Any) -> ChatOpenAI:
    settings: dict[str, Any] = {
        "base_url": target.base_url,
        "api_key": SecretStr(target.api_key),
        "model": target.model,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "max_retries": 0,
        # LangChain leaves it out with a base URL that is not OpenAI's.
        "stream_usage": True,
    }
    return ChatOpenAI(**settings | fields)


@pytest.fixture
def model(target: Target) -> ChatOpenAI:
    return model_of(target)


def streamed(model: ChatOpenAI, text: str) -> str:
    return "".join(str(chunk.content) for chunk in model.stream(text))


@feature("own-suite")
class TestStandardSuite(ChatModelIntegrationTests):  # type: ignore[misc]  # only there when it runs
    """LangChain's own, with a model that has nothing but text."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        target = target_of_this_run()
        return {
            "base_url": target.base_url,
            "api_key": target.api_key,
            "model": target.model,
            "max_tokens": 300,
            "temperature": 0,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def model_override_value(self) -> str:
        return target_of_this_run().model

    @property
    def supports_json_mode(self) -> bool:
        return True


@feature("chat")
def test_a_chat_is_vllms(model: ChatOpenAI, target: Target) -> None:
    answer = model.invoke(TEXTS[0])
    assert answer.content == target.told(TEXTS[0])
    assert answer.usage_metadata


@feature("stream")
def test_a_streamed_chat_is_vllms(model: ChatOpenAI, target: Target) -> None:
    assert streamed(model, TEXTS[0]) == target.told(TEXTS[0])


@feature("stream")
async def test_an_asynchronous_stream_is_vllms(model: ChatOpenAI, target: Target) -> None:
    text = "".join([str(chunk.content) async for chunk in model.astream(TEXTS[0])])
    assert text == target.told(TEXTS[0])


@feature("usage")
def test_a_stream_tells_its_usage(model: ChatOpenAI) -> None:
    told = [chunk.usage_metadata for chunk in model.stream("Hi") if chunk.usage_metadata]
    assert len(told) == 1
    assert told[0]["total_tokens"] == told[0]["input_tokens"] + told[0]["output_tokens"]


@feature("text")
def test_multi_byte_text_is_vllms_to_the_letter(model: ChatOpenAI, target: Target) -> None:
    assert [streamed(model, text) for text in TEXTS] == [target.told(text) for text in TEXTS]


@feature("tools")
def test_a_forced_tool_is_called(model: ChatOpenAI) -> None:
    answer = model.bind_tools([TOOL], tool_choice="get_weather").invoke("Weather?")
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]
    assert answer.tool_calls[0]["args"]["city"] in CITIES


@feature("tools-stream")
def test_a_forced_tool_is_called_in_a_stream(model: ChatOpenAI) -> None:
    first, *others = model.bind_tools([TOOL], tool_choice="any").stream("Weather?")
    whole: Any = sum(others, first)
    assert [call["name"] for call in whole.tool_calls] == ["get_weather"]
    assert whole.tool_calls[0]["args"]["city"] in CITIES


@feature("schema")
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_follows_its_schema(model: ChatOpenAI, method: Any) -> None:
    wanted = {**TOOL["function"]["parameters"], "title": "place", "description": "A place."}
    answer = model.with_structured_output(wanted, method=method, strict=True).invoke("Where?")
    assert isinstance(answer, dict)
    assert answer["city"] in CITIES


@feature("logprobs")
def test_every_token_has_logprobs(model: ChatOpenAI) -> None:
    answer = model.bind(logprobs=True).invoke("Hi")
    assert answer.usage_metadata
    tokens = answer.response_metadata["logprobs"]["content"]
    assert len(tokens) == answer.usage_metadata["output_tokens"]


@feature("choices")
def test_two_choices_are_kept_apart(target: Target) -> None:
    result = model_of(target, n=2, temperature=1, seed=1).generate([[HumanMessage("Hi")]])
    assert len([choice.text for choice in result.generations[0] if choice.text]) == 2


@feature("stop")
def test_a_stop_word_ends_the_text(model: ChatOpenAI, target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    assert model.invoke(TEXTS[0], stop=[stop]).content == whole[: whole.index(stop)]


@feature("completions")
def test_a_completion_is_vllms(target: Target) -> None:
    model = OpenAI(
        base_url=target.base_url,
        api_key=SecretStr(target.api_key),
        model=target.model,
        temperature=0,
        max_tokens=30,
        max_retries=0,
    )
    asked = {"model": target.model, "prompt": "Es war", "temperature": 0, "max_tokens": 30}
    told = target.vllm("/v1/completions", asked)["choices"][0]["text"]
    assert model.invoke("Es war") == told
    assert "".join(model.stream("Es war")) == told


@feature("responses")
def test_a_response_is_the_chats_text(target: Target) -> None:
    model = model_of(target, use_responses_api=True)
    assert model.invoke(TEXTS[0]).text == target.told(TEXTS[0])


@feature("responses-stream")
def test_a_streamed_response_is_the_chats_text(target: Target) -> None:
    model = model_of(target, use_responses_api=True)
    assert "".join(chunk.text for chunk in model.stream(TEXTS[0])) == target.told(TEXTS[0])


@feature("embeddings")
def test_embeddings_are_vllms(target: Target) -> None:
    model = OpenAIEmbeddings(
        openai_api_base=target.embeddings_url,
        openai_api_key=SecretStr(target.api_key),
        model=target.embeddings_model,
        max_retries=0,
        # Else LangChain sends the tokens of OpenAI's own tokenizer.
        check_embedding_ctx_length=False,
    )
    assert_close(model.embed_documents(list(TEXTS)), target.vllm_embeddings())


@feature("error-key")
def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(openai.AuthenticationError):
        model_of(keyed, api_key=SecretStr(WRONG_KEY)).invoke("Hi")


@feature("error-model")
def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.NotFoundError):
        model_of(target, model=UNKNOWN_MODEL).invoke("Hi")


@feature("error-request")
def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        model_of(target, temperature=-1).invoke("Hi")
    with pytest.raises(openai.BadRequestError, match=r"context length|maximum"):
        model_of(target).invoke(TOO_LONG)


@feature("leaving")
def test_a_client_that_leaves_its_stream_stops_vllm(target: Target) -> None:
    model = model_of(target, max_tokens=LONG, extra_body={"ignore_eos": True})
    with target.is_left():
        chunks = model.stream("Hi")
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]


@feature("parallel")
def test_a_batch_does_not_mix(model: ChatOpenAI, target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    answers = model.batch(list(texts))
    assert [answer.content for answer in answers] == [target.told(text) for text in texts]
