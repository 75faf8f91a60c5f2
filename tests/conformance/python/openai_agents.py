"""openai-agents: agents over `OpenAIChatCompletionsModel` and `OpenAIResponsesModel`."""

import asyncio
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.conformance.python.target import (
    CITIES,
    LONG,
    MAX_TOKENS,
    TEXTS,
    TOO_LONG,
    UNKNOWN_MODEL,
    WRONG_KEY,
    Target,
)

feature = pytest.mark.feature
Kind = type[OpenAIChatCompletionsModel] | type[OpenAIResponsesModel]
set_tracing_disabled(disabled=True)  # traces would go to OpenAI

CONFIG = RunConfig(tracing_disabled=True)


class Place(BaseModel):
    """A place."""

    city: Literal["Ærøskøbing", "कोलकाता"]


def agent_of(
    target: Target,
    *,
    kind: type[OpenAIChatCompletionsModel]
    | type[OpenAIResponsesModel] = OpenAIChatCompletionsModel,
    model: str = "",
    api_key: str = "",
    output_type: Any = str,
    tools: Any = (),
    **settings: Any,
) -> Agent[Any]:
    client = AsyncOpenAI(base_url=target.base_url, api_key=api_key or target.api_key, max_retries=0)
    asked: Model = kind(model=model or target.model, openai_client=client)
    wanted: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, **settings}
    return Agent(
        name="checked",
        model=asked,
        model_settings=ModelSettings(**wanted),
        output_type=output_type,
        tools=list(tools),
        tool_use_behavior="stop_on_first_tool",
    )


async def said(agent: Agent[Any], text: str) -> Any:
    return (await Runner.run(agent, text, run_config=CONFIG)).final_output


async def streamed(agent: Agent[Any], text: str) -> str:
    run = Runner.run_streamed(agent, text, run_config=CONFIG)
    return "".join(
        [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]
    )


@feature("chat")
async def test_a_chat_is_vllms(target: Target) -> None:
    assert await said(agent_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("stream")
async def test_a_streamed_chat_is_vllms(target: Target) -> None:
    assert await streamed(agent_of(target), TEXTS[0]) == target.told(TEXTS[0])


@feature("usage")
async def test_a_stream_tells_its_usage(target: Target) -> None:
    run = Runner.run_streamed(agent_of(target, include_usage=True), "Hi", run_config=CONFIG)
    async for _ in run.stream_events():
        pass
    usage = run.context_wrapper.usage
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0


@feature("text")
async def test_multi_byte_text_is_vllms_to_the_letter(target: Target) -> None:
    for text in TEXTS:
        assert await streamed(agent_of(target), text) == target.told(text)


@function_tool  # type: ignore[untyped-decorator]  # known in the client's environment only
def get_weather(city: Literal["Ærøskøbing", "कोलकाता"]) -> str:
    """Weather."""
    return city


@feature("tools")
async def test_a_forced_tool_is_called(target: Target) -> None:
    agent = agent_of(target, tools=[get_weather], tool_choice="get_weather")
    assert await said(agent, "Weather?") in CITIES


@feature("tools-stream")
async def test_a_forced_tool_is_called_in_a_stream(target: Target) -> None:
    agent = agent_of(target, tools=[get_weather], tool_choice="get_weather")
    run = Runner.run_streamed(agent, "Weather?", run_config=CONFIG)
    async for _ in run.stream_events():
        pass
    assert run.final_output in CITIES


@feature("schema")
async def test_an_answer_follows_its_schema(target: Target) -> None:
    place = await said(agent_of(target, output_type=Place), "Where?")
    assert place.city in CITIES


@feature("stop")
async def test_a_stop_word_ends_the_text(target: Target) -> None:
    whole = target.told(TEXTS[0])
    stop = whole[len(whole) // 2 :].strip()[:3]
    answer = await said(agent_of(target, extra_args={"stop": [stop]}), TEXTS[0])
    assert answer == whole[: whole.index(stop)]


@feature("responses")
async def test_a_response_is_the_chats_text(target: Target) -> None:
    agent = agent_of(target, kind=OpenAIResponsesModel)
    assert await said(agent, TEXTS[0]) == target.told(TEXTS[0])


@feature("responses-stream")
async def test_a_streamed_response_is_the_chats_text(target: Target) -> None:
    agent = agent_of(target, kind=OpenAIResponsesModel)
    assert await streamed(agent, TEXTS[0]) == target.told(TEXTS[0])


@feature("error-key")
async def test_a_wrong_key_raises_its_class(keyed: Target) -> None:
    with pytest.raises(openai.AuthenticationError):
        await said(agent_of(keyed, api_key=WRONG_KEY), "Hi")


@feature("error-model")
async def test_an_unknown_model_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.NotFoundError):
        await said(agent_of(target, model=UNKNOWN_MODEL), "Hi")


@feature("error-request")
async def test_a_bad_request_raises_its_class(target: Target) -> None:
    with pytest.raises(openai.BadRequestError):
        await said(agent_of(target), TOO_LONG)


@feature("leaving")
async def test_a_run_that_is_cancelled_stops_vllm(target: Target) -> None:
    agent = agent_of(target, max_tokens=LONG, extra_body={"ignore_eos": True})
    await target.is_left_by(said(agent, "Hi"))


@feature("parallel")
async def test_parallel_runs_do_not_mix(target: Target) -> None:
    texts = [f"{TEXTS[i % 4]} {i}" for i in range(8)]
    agent = agent_of(target)
    answers = await asyncio.gather(*(said(agent, text) for text in texts))
    assert answers == [target.told(text) for text in texts]
