"""pydantic-ai: agents over `OpenAIChatModel` and `OpenAIResponsesModel`."""

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    TEXTS,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
    assert_close,
)

feature = pytest.mark.feature


class Place(BaseModel):
    """A place."""

    city: Literal["Ærøskøbing", "कोलकाता"]


def provider_of(target: Target, api_key: str = "") -> OpenAIProvider:
    return OpenAIProvider(base_url=target.base_url, api_key=api_key or target.api_key)


def agent_of(
    target: Target, *, model: str = "", api_key: str = "", **fields: Any
) -> Agent[Any, Any]:
    output = fields.pop("output_type", str)
    chat_model = OpenAIChatModel(model or target.model, provider=provider_of(target, api_key))
    settings: Any = {"temperature": 0, "max_tokens": MAX_TOKENS, **fields}
    return Agent(chat_model, output_type=output, model_settings=settings, retries=0)


async def streamed(agent: Agent[Any, Any], text: str) -> str:
    async with agent.run_stream(text) as answer:
        return "".join([part async for part in answer.stream_text(delta=True, debounce_by=None)])


@feature("chat")
async def test_a_chat_is_vllms(target: Target) -> None:
    answer = await agent_of(target).run(TEXTS[0])
    assert answer.output == target.told(TEXTS[0])


@feature("stream")
async def test_a_streamed_chat_is_vllms(target: Target) -> None:
    assert await streamed(agent_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
async def test_a_stream_tells_its_usage(target: Target) -> None:
    async with agent_of(target).run_stream("Hi") as answer:
        await answer.get_output()
        usage = answer.usage
    assert usage.output_tokens > 0


@feature("text")
async def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    for text in TEXTS:
        assert await streamed(agent_of(target), text) == target.told(text)


@feature("tools")
async def test_a_forced_tool_is_called(target: Target) -> None:
    agent = agent_of(target, output_type=ToolOutput(Place, strict=True))
    assert (await agent.run("Where?")).output.city in CITIES


@feature("tools-stream")
async def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    agent = agent_of(target, output_type=ToolOutput(Place, strict=True))
    async with agent.run_stream("Where?") as answer:
        place = await answer.get_output()
    assert place.city in CITIES


@feature("schema")
async def test_an_answer_follows_its_schema(target: Target) -> None:
    agent = agent_of(target, output_type=NativeOutput(Place))
    assert (await agent.run("Where?")).output.city in CITIES


@feature("logprobs")
async def test_every_token_has_logprobs(target: Target) -> None:
    answer = await agent_of(target, openai_logprobs=True, openai_top_logprobs=2).run("Hi")
    details = answer.response.provider_details
    assert details
    assert len(details["logprobs"]) == answer.usage.output_tokens


@feature("stop")
async def test_a_stop_word_ends_the_text(target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = await agent_of(target, stop_sequences=[stop]).run(TEXTS[0])
    assert answer.output == whole[: whole.index(stop)].strip()


@feature("responses")
async def test_a_response_is_the_chats_text(target: Target) -> None:
    model = OpenAIResponsesModel(target.model, provider=provider_of(target))
    agent = Agent(model, model_settings={"temperature": 0, "max_tokens": MAX_TOKENS})
    assert (await agent.run(TEXTS[0])).output == target.told(TEXTS[0])


@feature("responses-stream")
async def test_a_streamed_response_is_the_chats_text(target: Target) -> None:
    model = OpenAIResponsesModel(target.model, provider=provider_of(target))
    agent = Agent(model, model_settings={"temperature": 0, "max_tokens": MAX_TOKENS})
    assert await streamed(agent, TEXTS[0]) == target.told(TEXTS[0])


@feature("embeddings")
async def test_embeddings_are_vllms(target: Target) -> None:
    provider = OpenAIProvider(base_url=target.embeddings_url, api_key=target.api_key)
    model = OpenAIEmbeddingModel(target.embeddings_model, provider=provider)
    answer = await Embedder(model).embed_documents(list(TEXTS))
    assert_close([list(vector) for vector in answer.embeddings], target.vllm_embeddings())


@feature("error-key")
async def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(ModelHTTPError) as raised:
        await agent_of(keyed, api_key=WRONG_KEY).run("Hi")
    assert raised.value.status_code == 401


@feature("error-model")
async def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(ModelHTTPError) as raised:
        await agent_of(target, model=UNKNOWN_MODEL).run("Hi")
    assert raised.value.status_code == 404


@feature("error-request")
async def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(ModelHTTPError, match="temperature") as raised:
        await agent_of(target, temperature=-1).run("Hi")
    assert raised.value.status_code == 400


@feature("leaving")
async def test_a_client_that_leaves_its_stream_stops_vllm(target: Target) -> None:
    agent = agent_of(target, max_tokens=LONG, extra_body={"ignore_eos": True})
    with target.is_left():
        async with agent.run_stream("Hi") as answer:
            await anext(aiter(answer.stream_text(delta=True, debounce_by=None)))
            await answer.cancel()


@feature("parallel")
async def test_parallel_requests_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    agent = agent_of(target)
    answers = await asyncio.gather(*(agent.run(text) for text in texts))
    assert [answer.output for answer in answers] == [target.told(text) for text in texts]
