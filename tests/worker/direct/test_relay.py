"""One job on both roads, whatever becomes of the channel."""

import asyncio
from functools import partial
from typing import Any

import pytest

from tests.wire.record import body_of
from tests.worker.direct.conftest import Worker, eventually
from tests.worker.direct.scripted_proxy import ScriptedProxy
from worker.answer import VLLMClient
from worker.chunks import PIECE_BYTES
from worker.direct.outbox import WINDOW_BYTES
from worker.handler import create_handler

LONG = {"tokens": 100_000, "delay_seconds": 0.01}
HANGS = {"hang_after": 1}


def texts(frames: list[dict[str, Any]]) -> str:
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    return body_of(frames).decode()


def has_more(frames: list[dict[str, Any]], known: int) -> bool:
    return len(frames) > known


async def head_of(worker: Worker, channel: Any, **body: Any) -> tuple[Any, dict[str, Any]]:
    """A job that nobody listens to yet, and its head frame."""
    posted = worker.run(channel, **body)
    await eventually(lambda: posted.frames)
    return posted, posted.frames[0]


async def open_channel(worker: Worker, proxy: ScriptedProxy) -> None:
    """Have the worker open its door to this proxy."""
    posted = worker.run(proxy.channel(port=worker.port), max_tokens=1)
    await worker.end_of(posted)


async def test_without_anybody_at_the_channel_a_job_looks_as_ever(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    posted = await worker.end_of(worker.run(proxy.channel(port=worker.port), max_tokens=4))
    assert texts(posted.outputs).endswith("data: [DONE]\n\n")
    told = posted.frames[0]["channel"]
    assert (told["protocol"], told["host"], told["port"]) == (1, "127.0.0.1", worker.port)
    assert len(told["certificate"]) == 64


async def test_without_anybody_at_the_channel_outputs_grow_while_one_is_posted(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    worker.post_seconds = 0.1
    script = {"tokens": 40, "delay_seconds": 0.005}
    posted = await worker.end_of(worker.run(proxy.channel(port=worker.port), script=script))
    assert texts(posted.outputs).count("data: ") == 42
    assert len(posted.outputs) < 20


async def test_a_job_that_begins_on_an_open_channel_is_sent_from_its_start(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        posted = worker.run(offer, max_tokens=4, stream_options={"include_usage": True})
        frames = await channel.end_of(offer["nonce"])
        assert texts(frames).endswith("data: [DONE]\n\n")
        await channel.say(["got", offer["nonce"], len(frames), 0])
        await worker.end_of(posted)
    assert posted.frames == []
    assert posted.outputs[0]["run"] == frames[0]["run"]
    assert posted.summary is not None
    assert posted.summary["usage"]["completion_tokens"] == 4
    assert (posted.summary["frames"], posted.summary["posted"]) == (len(frames), 0)
    assert posted.summary["seconds"] >= 0


async def test_a_proxy_that_comes_later_is_told_what_runs_and_takes_it_where_it_likes(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    offer = proxy.channel(port=worker.port)
    posted, head = await head_of(worker, offer, script={"tokens": 50, "delay_seconds": 0.02})
    nonce = offer["nonce"]
    async with proxy.dial(worker.port, head["channel"]["certificate"]) as channel:
        await channel.until(lambda: ["have", nonce] in channel.items)
        assert channel.frames[nonce] == []
        await eventually(lambda: len(posted.frames) > 2)
        await channel.say(["take", nonce, 2])
        frames = await channel.end_of(nonce)
        await channel.say(["got", nonce, frames[-1]["seq"] + 1, 0])
        await worker.end_of(posted)
    assert frames[0]["seq"] == 2
    assert texts(posted.frames[:2] + frames).count("data: ") == 52


async def test_frames_are_sent_again_to_a_proxy_that_asks(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        nonce = offer["nonce"]
        worker.run(offer, script={"tokens": 4, "delay_seconds": 0.01})
        frames = [*await channel.end_of(nonce)]
        channel.frames.clear()
        await channel.say(["take", nonce, 1])
        assert await channel.end_of(nonce) == frames[1:]


async def test_a_job_that_is_not_known_is_gone(worker: Worker, proxy: ScriptedProxy) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        await channel.say(["take", "0" * 32, 0], ["cancel", "1" * 32], ["got", "2" * 32, 1, 1])
        await channel.say(["ping", 7])
        await channel.until(lambda: ["pong", 7] in channel.items)
    assert channel.items == [["gone", "0" * 32], ["gone", "1" * 32], ["pong", 7]]


async def test_a_cancel_stops_vllm_and_ends_the_job(worker: Worker, proxy: ScriptedProxy) -> None:
    await open_channel(worker, proxy)
    aborted = worker.engine.counters.aborted
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        posted = worker.run(offer, script=HANGS)
        await channel.until(lambda: channel.frames[offer["nonce"]])
        await channel.say(["cancel", offer["nonce"]])
        await worker.end_of(posted)
        await eventually(lambda: worker.engine.counters.aborted == aborted + 1)
        await channel.until(lambda: ["gone", offer["nonce"]] in channel.items)
    assert posted.summary is not None
    assert posted.summary["cancelled"]


async def test_a_job_cancelled_while_it_is_posted_stops_vllm_at_once(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    aborted = worker.engine.counters.aborted
    worker.post_seconds = 3600
    offer = proxy.channel(port=worker.port)
    _, head = await head_of(worker, offer, script=LONG)
    async with proxy.dial(worker.port, head["channel"]["certificate"]) as channel:
        await channel.say(["cancel", offer["nonce"]])
        await eventually(lambda: worker.engine.counters.aborted == aborted + 1)


async def test_the_sdks_cancel_stops_vllm_and_the_proxy_hears_that_it_is_gone(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    aborted = worker.engine.counters.aborted
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        worker.run(offer, script=HANGS)
        await channel.until(lambda: channel.frames[offer["nonce"]])
        worker.tasks[-1].cancel()
        await channel.until(lambda: ["gone", offer["nonce"]] in channel.items)
        await eventually(lambda: worker.engine.counters.aborted == aborted + 1)


@pytest.mark.slow
async def test_what_is_not_acknowledged_is_posted_as_well_and_the_job_ends(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        posted = worker.run(offer, max_tokens=6, script={"tokens": 6, "delay_seconds": 0.02})
        frames = await channel.end_of(offer["nonce"])
        await channel.say(["got", offer["nonce"], 2, 2])
        await worker.end_of(posted)
    assert posted.frames == frames[2:]
    assert posted.summary is not None
    assert posted.summary["posted"] == len(frames) - 2
    assert len(posted.outputs) < len(frames), "what is due at once is one output"


async def test_a_cut_hands_the_rest_to_the_queue_at_once(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    offer = proxy.channel(port=worker.port)
    nonce = offer["nonce"]
    async with proxy.dial(worker.port) as channel:
        posted = worker.run(offer, script={"tokens": 40, "delay_seconds": 0.02})
        await channel.until(lambda: len(channel.frames[nonce]) > 4)
        await channel.say(["got", nonce, 3, 3])
        await channel.say(["ping", 1])
        await channel.until(lambda: ["pong", 1] in channel.items)
    await worker.end_of(posted)
    first = posted.frames[0]["seq"]
    assert first == 3
    assert texts(channel.frames[nonce][:first] + posted.frames).count("data: ") == 42


async def test_a_channel_that_comes_back_takes_over_again(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    offer = proxy.channel(port=worker.port)
    nonce = offer["nonce"]
    async with proxy.dial(worker.port) as first:
        posted = worker.run(offer, script={"tokens": 60, "delay_seconds": 0.02})
        await first.until(lambda: len(first.frames[nonce]) > 2)
    await eventually(lambda: len(posted.frames) > 5)
    known = posted.frames[-1]["seq"] + 1
    async with proxy.dial(worker.port) as second:
        await second.until(lambda: ["have", nonce] in second.items)
        await second.say(["take", nonce, known])
        frames = await second.end_of(nonce)
        await second.say(["got", nonce, frames[-1]["seq"] + 1, 0])
        await worker.end_of(posted)
    assert texts(posted.frames[:known] + frames).count("data: ") == 62


async def test_a_slow_client_slows_its_own_job_alone(worker: Worker, proxy: ScriptedProxy) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        slow, quick = proxy.channel(port=worker.port), proxy.channel(port=worker.port)
        worker.run(slow, script={"tokens": 400, "event_bytes": 100_000})
        await channel.until(lambda: channel.size_of(slow["nonce"]) > WINDOW_BYTES)
        record = worker.engine.records[-1]
        posted = worker.run(quick, max_tokens=9)
        frames = await channel.end_of(quick["nonce"])
        await channel.say(["got", quick["nonce"], len(frames), len(frames)])
        await worker.end_of(posted)
        await asyncio.sleep(0.2)
        assert channel.size_of(slow["nonce"]) < WINDOW_BYTES + 2 * PIECE_BYTES
        assert record.tokens < 200, "vLLM waits as well"


async def test_credit_lets_a_slow_job_go_on(worker: Worker, proxy: ScriptedProxy) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        nonce = offer["nonce"]
        posted = worker.run(offer, script={"tokens": 30, "event_bytes": 100_000})
        while not any(frame.get("end") for frame in channel.frames[nonce]):
            known = len(channel.frames[nonce])
            await channel.say(["got", nonce, known, known])
            await channel.until(partial(has_more, channel.frames[nonce], known))
        await channel.say(["got", nonce, len(channel.frames[nonce]), 0])
        await worker.end_of(posted)
        assert posted.frames == []
    assert texts(channel.frames[nonce]).count("data: ") == 32


async def test_many_jobs_share_messages(worker: Worker, proxy: ScriptedProxy) -> None:
    await open_channel(worker, proxy)
    async with proxy.dial(worker.port) as channel:
        offers = [proxy.channel(port=worker.port) for _ in range(30)]
        for offer in offers:
            worker.run(offer, script={"tokens": 30})
        for offer in offers:
            await channel.end_of(offer["nonce"])
    assert channel.messages < sum(map(len, channel.frames.values()))


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server whose plain answer is cut half way."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 9999\r\n\r\n" + b"x" * 5000)
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()


async def test_a_plain_answer_that_breaks_off_fails_the_job_and_is_gone(
    worker: Worker, proxy: ScriptedProxy
) -> None:
    await open_channel(worker, proxy)
    server = await asyncio.start_server(breaks_off, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = VLLMClient(f"http://127.0.0.1:{port}", request_timeout_seconds=60, piece_bytes=1000)
    worker.handler = create_handler(client, [], worker.road)
    async with server, proxy.dial(worker.port) as channel:
        offer = proxy.channel(port=worker.port)
        posted = await worker.end_of(worker.run(offer))
        await channel.until(lambda: ["gone", offer["nonce"]] in channel.items)
        await client.close()
    assert channel.frames[offer["nonce"]]
    assert "error" in posted.outputs[-1]
