"""The load generator sees what is wrong with an answer."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.bench.load import Load, Run, Seen
from tests.servers import serve


def event(number: int, text: str = "x") -> bytes:
    """A chunk that was made now."""
    delta = {"content": f"{number} {time.monotonic():.6f} {text}"}
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@contextmanager
def answering(answer: Callable[[dict[str, Any]], Response]) -> Iterator[str]:
    async def chat(request: Request) -> Response:
        return answer(await request.json())

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    with serve(app) as url:
        yield f"{url}/v1"


async def seen(url: str, **changes: Any) -> Seen:
    fields: dict[str, Any] = {
        "kind": "streams",
        "ramp_seconds": 0.01,
        "window_seconds": 0.05,
    } | changes
    return await Run(Load(url=url, key="k", model="m", **fields)).go()


def streamed(*parts: bytes) -> Callable[[dict[str, Any]], Response]:
    """Each part comes by itself, whatever was asked for."""

    async def pieces() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return lambda _: StreamingResponse(pieces(), media_type="text/event-stream")


async def test_chunks_that_are_missing_or_come_twice_are_counted() -> None:
    chunks = [event(0), event(1), event(1), event(4)]
    with answering(streamed(*chunks, DONE)) as url:
        found = await seen(url, tokens=6)
    assert (found.lost, found.repeated, found.failed) == (3, 1, {})  # 2, 3, and 5 at the end


async def test_chunks_that_are_cut_anywhere_are_whole_again() -> None:
    answer = b"".join(event(number) for number in range(5)) + DONE
    pieces = [answer[at : at + 7] for at in range(0, len(answer), 7)]
    with answering(streamed(*pieces)) as url:
        found = await seen(url, tokens=5)
    assert (found.tokens, found.lost, found.repeated, found.failed) == (5, 0, 0, {})
    assert found.first_token is not None


async def test_a_stream_that_ends_without_done_has_failed() -> None:
    with answering(streamed(event(0))) as url:
        found = await seen(url, tokens=1)
    assert found.failed == {"the stream had no [DONE]": 1}


async def test_a_refusal_is_told_by_its_status() -> None:
    with answering(lambda _: JSONResponse({"error": "busy"}, 429)) as url:
        found = await seen(url, streams=2)
    [reason] = found.failed
    assert reason.startswith("HTTP 429")
    assert found.failed[reason] == 2
    assert found.first_token is None


async def test_plain_requests_are_timed() -> None:
    with answering(lambda body: JSONResponse({"model": body["model"]})) as url:
        found = await seen(url, kind="plain", requests_a_second=100)
    assert found.plain is not None
    assert found.plain.count == 5


async def test_chunks_without_a_stamp_are_counted_as_they_come() -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'
    empty = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    with answering(streamed(empty, chunk, chunk + chunk, DONE)) as url:
        found = await seen(url, is_stamped=False, tokens=50)
    assert (found.tokens, found.lost, found.delay) == (3, 0, None)
