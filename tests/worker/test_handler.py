"""The handler, driven as the SDK drives it, in front of the scripted engine."""

import asyncio
import base64
import inspect
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette

from scripts.scripted_engine import Engine, create_engine
from tests.servers import free_port, serve
from tests.worker.test_wire import recorded
from worker.answer import VLLMClient
from worker.chunks import PIECE_BYTES
from worker.handler import Handler, create_handler
from worker.job_input import HEADERS

CHAT = "/v1/chat/completions"
PROXY = {"protocol": 1, "request_id": "req_1"}


@pytest.fixture(scope="module")
def app() -> Starlette:
    return create_engine()


@pytest.fixture(scope="module")
def url(app: Starlette) -> Iterator[str]:
    with serve(app) as base:
        yield base


@pytest.fixture
def engine(app: Starlette) -> Engine:
    engine: Engine = app.state.engine
    return engine


@pytest.fixture(autouse=True)
async def rest(engine: Engine) -> None:
    """Nothing is left of the tests before that this one would count."""
    totals = engine.counters
    await eventually(lambda: totals.started == totals.finished + totals.aborted)


@pytest.fixture
async def client(url: str) -> AsyncIterator[VLLMClient]:
    client = VLLMClient(url, request_timeout_seconds=60)
    yield client
    await client.close()


@pytest.fixture
def handler(client: VLLMClient) -> Handler:
    return create_handler(client, [{"id": "tiny-chat"}])


def chat(proxy: dict[str, Any] | None = PROXY, **body: Any) -> dict[str, Any]:
    """A job with a chat for its input."""
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    job_input = {"openai_route": CHAT, "openai_input": body}
    return {"id": "job-1", "input": job_input | ({"proxy": proxy} if proxy else {})}


async def outputs_of(handler: Handler, job: dict[str, Any], post_seconds: float = 0) -> list[Any]:
    """All outputs, each taken up after the last one's post."""
    outputs = []
    async for output in handler(job):
        outputs.append(json.loads(json.dumps(output)))
        await asyncio.sleep(post_seconds)
    return outputs


def body_of(frames: list[dict[str, Any]]) -> bytes:
    """What the frames carry, after checking that they are numbered and closed."""
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    assert [frame.get("end", False) for frame in frames] == [False] * (len(frames) - 1) + [True]
    return b"".join(
        base64.b64decode(frame["base64"]) if "base64" in frame else frame.get("text", "").encode()
        for frame in frames
    )


def test_the_sdk_takes_it_for_a_generator(handler: Handler) -> None:
    assert inspect.isasyncgenfunction(handler)


async def test_a_stream_comes_in_whole_events(handler: Handler) -> None:
    frames = await outputs_of(handler, chat(stream=True, max_tokens=6, script={"chunk_bytes": 1}))
    assert frames[0]["status"] == 200
    assert frames[0]["content_type"] == "text/event-stream; charset=utf-8"
    assert all(frame["text"].endswith("\n\n") for frame in frames if "text" in frame)
    text = body_of(frames).decode()
    chunks = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]
    said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert said == ", 你好 🙂 naïve café and"
    assert text.endswith("data: [DONE]\n\n")


async def test_the_first_event_does_not_wait_for_the_second(handler: Handler) -> None:
    job = chat(stream=True, script={"hang_after": 1})
    stream = handler(job)
    first: Any = await anext(stream)
    assert json.loads(first["text"].split("\n\n")[0][6:])["choices"][0]["delta"]["role"]
    await stream.aclose()


async def test_what_follows_the_first_event_at_once_comes_with_it(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answer.LINGER_SECONDS", 20)
    body = {"prompt": "x", "stream": True, "script": {"tokens": 5, "delay_seconds": 0.05}}
    job_input = {"openai_route": "/v1/completions", "openai_input": body, "proxy": PROXY}
    frames = await outputs_of(handler, {"id": "job-1", "input": job_input})
    assert frames[0]["text"].count("data: ") >= 2
    assert frames[-1]["text"].endswith("data: [DONE]\n\n")


async def test_a_yield_carries_all_that_arrived_during_the_last_post(handler: Handler) -> None:
    job = chat(stream=True, script={"tokens": 40, "delay_seconds": 0.005})
    frames = await outputs_of(handler, job, post_seconds=0.1)
    events = body_of(frames).count(b"data: ")
    assert events == 42
    assert len(frames) < 20


async def test_a_plain_answer_is_one_frame(handler: Handler) -> None:
    [frame] = await outputs_of(handler, chat(max_tokens=3, script={"chunk_bytes": 2}))
    assert frame["content_type"] == "application/json"
    assert json.loads(body_of([frame]))["choices"][0]["finish_reason"] == "length"


async def test_a_large_answer_is_cut_below_the_limit(handler: Handler) -> None:
    text = "größe 世界 🙂 " * 60_000
    frames = await outputs_of(handler, chat(script={"text": text}))
    assert len(frames) > 1
    assert all(len(frame["text"].encode()) <= PIECE_BYTES for frame in frames)
    assert json.loads(body_of(frames))["choices"][0]["message"]["content"] == text


async def test_an_event_above_the_limit_is_cut(handler: Handler) -> None:
    script = {"tokens": 2, "event_bytes": PIECE_BYTES}
    frames = await outputs_of(handler, chat(stream=True, script=script))
    assert all(len(frame["text"].encode()) <= PIECE_BYTES for frame in frames)
    assert body_of(frames).count(b"x" * 1000) >= 600


async def test_vllms_error_is_an_answer_with_its_status(handler: Handler) -> None:
    [frame] = await outputs_of(handler, chat(model="other", stream=True))
    assert frame["status"] == 404
    assert json.loads(frame["text"])["error"]["message"] == "The model `other` does not exist."


@pytest.mark.parametrize("inputs", [2, 500])
async def test_bytes_that_are_no_text_come_as_base64_with_what_they_are(
    handler: Handler, inputs: int
) -> None:
    body = {"input": ["a"] * inputs, "encoding_format": "bytes"}
    job_input = {"route": "/v1/embeddings", "body": body, "proxy": PROXY}
    frames = await outputs_of(handler, {"id": "j", "input": job_input})
    assert "base64" in frames[0]
    assert len(body_of(frames)) == 16 * inputs
    assert len(json.loads(frames[0]["headers"]["metadata"])["data"]) == inputs


async def test_an_empty_answer_is_a_head_that_ends(handler: Handler) -> None:
    job = {"id": "j", "input": {"route": "/health", "proxy": PROXY}}
    (frame,) = await outputs_of(handler, job)
    assert frame.pop("run")
    assert frame.pop("models") == [{"id": "tiny-chat"}]
    assert frame.pop("seconds") >= 0
    assert frame == {"seq": 0, "status": 200, "content_type": "", "end": True}


async def test_a_wrong_input_is_a_400_in_a_frame(handler: Handler) -> None:
    [frame] = await outputs_of(handler, {"id": "j", "input": {"proxy": PROXY}})
    assert (frame["status"], frame["content_type"]) == (400, "application/json")
    assert json.loads(frame["text"])["error"]["param"] == "input"


async def test_vllm_is_sent_the_headers_that_the_proxy_hands_on(
    handler: Handler, engine: Engine
) -> None:
    job = recorded("passed_headers")["input"]
    told = job["proxy"]["headers"]
    async for _ in handler({"id": "job-1", "input": job}):
        pass
    sent = engine.records[-1].headers
    assert told.items() <= sent.items()
    assert set(told) == HEADERS


async def test_vllm_learns_the_request_id(handler: Handler, engine: Engine) -> None:
    await outputs_of(handler, chat())
    assert engine.records[-1].headers["x-request-id"] == "req_1"


async def test_vllm_is_asked_not_to_compress(handler: Handler, engine: Engine) -> None:
    await outputs_of(handler, chat())
    assert engine.records[-1].headers["accept-encoding"] == "identity"


async def test_vllm_gets_the_body_untouched(handler: Handler, engine: Engine) -> None:
    await outputs_of(handler, chat(logit_bias={"7": 0.1}, stop=["\u2028", "é"]))
    sent = chat(logit_bias={"7": 0.1}, stop=["\u2028", "é"])["input"]["openai_input"]
    assert engine.records[-1].body == sent


# What broke off


async def test_a_stream_that_is_cut_ends_with_an_error_event(handler: Handler) -> None:
    script = {"tokens": 9, "delay_seconds": 0.05, "cut_after": 2}
    frames = await outputs_of(handler, chat(stream=True, script=script))
    last = frames[-1]["text"].split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"
    body_of(frames)


@pytest.mark.slow
async def test_what_came_before_the_connection_was_cut_is_handed_on(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.answer.LINGER_SECONDS", 20)
    # What comes in the same moment as the cut is lost, so they are far apart.
    script = {"tokens": 9, "delay_seconds": 4, "cut_after": 1}
    body = {"prompt": "x", "stream": True, "script": script}
    job_input = {"openai_route": "/v1/completions", "openai_input": body, "proxy": PROXY}
    frames = await outputs_of(handler, {"id": "job-1", "input": job_input})
    assert '"text":" wörld"' in frames[0]["text"]
    assert '"code":"engine_failed"' in frames[-1]["text"]


async def test_a_connection_that_is_refused_is_a_503() -> None:
    client = VLLMClient(f"http://127.0.0.1:{free_port()}", request_timeout_seconds=60)
    [frame] = await outputs_of(create_handler(client, []), chat(stream=True))
    await client.close()
    assert frame["status"] == 503
    assert json.loads(frame["text"])["error"]["type"] == "server_error"


async def test_a_plain_answer_that_is_cut_is_a_503(handler: Handler) -> None:
    [frame] = await outputs_of(handler, chat(script={"cut_after": 2}))
    assert frame["status"] == 503


async def test_an_answer_that_takes_too_long_is_a_504(url: str, engine: Engine) -> None:
    client = VLLMClient(url, request_timeout_seconds=0.2)
    aborted = engine.counters.aborted
    [frame] = await outputs_of(create_handler(client, []), chat(script={"hang": True}))
    await client.close()
    assert frame["status"] == 504
    await eventually(lambda: engine.counters.aborted == aborted + 1)


async def test_a_stream_that_takes_too_long_ends_with_an_error_event(url: str) -> None:
    client = VLLMClient(url, request_timeout_seconds=0.5)
    job = chat(stream=True, script={"hang_after": 1})
    frames = await outputs_of(create_handler(client, []), job)
    await client.close()
    assert '"code":"timeout"' in frames[-1]["text"]
    body_of(frames)


async def test_answers_that_are_given_up_end_with_an_error(
    handler: Handler, client: VLLMClient
) -> None:
    busy = chat(stream=True, script={"tokens": 300_000})  # there always is something to read
    stream = asyncio.create_task(outputs_of(handler, busy, 0.01))
    silent = asyncio.create_task(outputs_of(handler, chat(script={"hang": True})))
    await asyncio.sleep(0.3)
    client.give_up()
    late = await outputs_of(handler, chat())
    assert '"code":"worker_stopping"' in (await stream)[-1]["text"]
    body_of(await stream)
    assert [(await silent)[0]["status"], late[0]["status"]] == [503, 503]


@pytest.mark.slow
async def test_giving_up_just_as_an_answers_time_is_up_is_no_error(
    url: str, engine: Engine
) -> None:
    # Long enough to be waiting by then, even on a machine that stalls.
    seconds = 4
    client = VLLMClient(url, request_timeout_seconds=seconds)
    answer = asyncio.create_task(
        outputs_of(create_handler(client, []), chat(script={"hang": True}))
    )
    given_up = asyncio.Event()

    def give_up() -> None:
        client.give_up()
        given_up.set()

    await eventually(lambda: engine.counters.running == 1)
    asyncio.get_running_loop().call_later(seconds, give_up)
    # So that both moments are seen in the same turn of the loop.
    time.sleep(seconds + 0.2)  # noqa: ASYNC251
    async with asyncio.timeout(30):
        await given_up.wait()
    assert (await answer)[0]["status"] == 503
    await client.close()


async def test_a_slow_network_slows_vllm_down(url: str, engine: Engine) -> None:
    """A megabyte each, a hundred times: only what fits into buffers is made in advance."""
    client = VLLMClient(url, request_timeout_seconds=60, piece_bytes=10_000)
    script = {"tokens": 100, "event_bytes": 1_000_000}
    stream = create_handler(client, [])(chat(stream=True, script=script))
    for _ in range(60):
        await anext(stream)
        await asyncio.sleep(0.01)
    assert engine.records[-1].tokens < 25
    await stream.aclose()
    await client.close()


# Without our proxy


async def test_without_a_proxy_a_stream_is_text(handler: Handler) -> None:
    job = chat(None, stream=True, max_tokens=3, script={"chunk_bytes": 1})
    outputs = await outputs_of(handler, job)
    assert all(isinstance(output, str) and output.endswith("\n\n") for output in outputs)
    assert "".join(outputs).endswith("data: [DONE]\n\n")


async def test_without_a_proxy_a_plain_answer_is_one_object(handler: Handler) -> None:
    [output] = await outputs_of(handler, chat(None, max_tokens=2))
    assert output["choices"][0]["message"]["content"] == ", 你好"


async def test_without_a_proxy_an_error_fails_the_job_with_json_text(handler: Handler) -> None:
    [output] = await outputs_of(handler, chat(None, model="other"))
    assert json.loads(output["error"])["error"]["code"] == 404


async def test_without_a_proxy_a_wrong_input_fails_the_job_with_json_text(
    handler: Handler,
) -> None:
    [output] = await outputs_of(handler, {"id": "j", "input": {}})
    assert json.loads(output["error"])["error"]["type"] == "invalid_request_error"


async def test_without_a_proxy_a_stream_that_is_cut_ends_with_an_error_event(
    handler: Handler,
) -> None:
    script = {"tokens": 9, "delay_seconds": 0.05, "cut_after": 2}
    outputs = await outputs_of(handler, chat(None, stream=True, script=script))
    assert '"code":"engine_failed"' in outputs[-1]


async def test_without_a_proxy_text_stays_text(handler: Handler) -> None:
    [output] = await outputs_of(handler, {"id": "j", "input": {"route": "/metrics"}})
    assert output.startswith("# HELP vllm:num_requests_running")


# Leaving


async def eventually(condition: Any) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- the engine runs in another thread
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", [{"hang": True}, {"hang_after": 1}])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_job_aborts_the_generation(
    handler: Handler, engine: Engine, script: dict[str, Any], stream: bool
) -> None:
    aborted, running = engine.counters.aborted, engine.counters.running
    task = asyncio.create_task(outputs_of(handler, chat(stream=stream, script=script)))
    await eventually(lambda: engine.counters.running == running + 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: engine.counters.aborted == aborted + 1)


async def test_a_handler_that_is_abandoned_aborts_the_generation(
    handler: Handler, engine: Engine
) -> None:
    aborted = engine.counters.aborted
    stream = handler(chat(stream=True, script={"hang_after": 1}))
    await anext(stream)
    await stream.aclose()
    await eventually(lambda: engine.counters.aborted == aborted + 1)


async def test_a_job_cancelled_during_a_post_aborts_the_generation(
    handler: Handler, engine: Engine
) -> None:
    """The SDK's task is cancelled in its post, and still holds the suspended generator."""
    aborted = engine.counters.aborted
    posting = asyncio.Event()
    stream = handler(chat(stream=True, script={"tokens": 9999, "delay_seconds": 0.01}))

    async def sdk() -> None:
        async for _ in stream:
            posting.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(sdk())
    await posting.wait()
    task.cancel()
    await eventually(lambda: engine.counters.aborted == aborted + 1)
    await stream.aclose()
