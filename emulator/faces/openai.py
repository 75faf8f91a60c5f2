"""The face RunPod shows to OpenAI's clients: /v2/{endpoint}/openai/{any route}.

A call becomes a job with `openai_route` and `openai_input`, and what the handler yields becomes
the answer. As on RunPod, an error is answered with 200 and the error's JSON, the job's id is not
told, a stream that takes too long just ends, and a client that leaves does not stop the job.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from emulator.endpoint import QueueEndpoint
from emulator.gateway.dropped import Dropped
from emulator.gateway.http import Json, hold, parse_object, read_body
from emulator.gateway.layers import behind_edge, with_auth, with_faults, with_latency, with_limits
from emulator.gateway.state import state_of
from emulator.work.job import ABSENT, Job, Status


async def openai(request: Request, endpoint: QueueEndpoint) -> Response:
    """Run a job for the call; a stream's answer begins with its first chunk."""
    settings = endpoint.settings
    body = {}
    if request.method == "POST":
        body = parse_object(await read_body(request, settings.max_runsync_bytes))
    job_input = {"openai_route": f"/{request.path_params['route']}", "openai_input": body}
    job = endpoint.queue.submit(job_input, is_sync=True)
    deadline = time.monotonic() + settings.openai_cut_seconds
    if not body.get("stream"):
        await hold(request, job.changed, lambda: job.is_over, settings.openai_cut_seconds)
        return _whole(job) if job.is_over else Dropped()
    await hold(request, job.changed, job.has_news, settings.openai_cut_seconds)
    if job.chunks or not job.is_over:
        return StreamingResponse(_events(request, job, deadline), media_type="text/event-stream")
    return _whole(job)


def routes() -> list[Route]:
    """The one route there is: any below /openai."""
    near = with_faults("openai", with_limits("openai", behind_edge(openai)))
    layers = with_auth(QueueEndpoint, with_latency("client", near))
    return [Route("/v2/{endpoint}/openai/{route:path}", layers, methods=["GET", "POST"])]


async def _events(request: Request, job: Job, deadline: float) -> AsyncIterator[bytes]:
    """The chunks as server-sent events, to the end of the job or of the time there is."""
    state = state_of(request.app)
    while True:
        for chunk in job.drain():
            yield _event(chunk["output"])
        if job.is_over:
            break
        seconds = deadline - time.monotonic()
        is_news = await job.changed.wait_for(lambda: state.is_closing or job.has_news(), seconds)
        if state.is_closing or not is_news:
            return
    if job.status is not Status.COMPLETED:
        yield _event(_error(job))


def _event(output: Any) -> bytes:
    """Text is taken for events that are framed already; what is parsed is framed here."""
    return (
        output.encode()
        if isinstance(output, str)
        else b"data: " + msgspec.json.encode(output) + b"\n\n"
    )


def _whole(job: Job) -> Response:
    """The answer to a call that does not stream, with status 200 whatever happened."""
    if job.status is not Status.COMPLETED:
        return Json(_error(job))
    outputs = [chunk["output"] for chunk in job.drain()]
    if not outputs:
        outputs = job.output if isinstance(job.output, list) else [job.output]
    if all(isinstance(output, str) for output in outputs):
        return Response("".join(outputs), media_type="application/json")
    return Json(None if outputs[0] is ABSENT else outputs[0])


def _error(job: Job) -> Any:
    """The error of a job that did not end well: as it is if it is JSON, else wrapped."""
    try:
        parsed = msgspec.json.decode(job.error)
    except (ValueError, TypeError, RecursionError):
        parsed = None
    text = job.status.value if job.error is ABSENT else str(job.error)
    return parsed if isinstance(parsed, dict) else {"error": text}
