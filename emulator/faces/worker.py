"""The face RunPod shows to workers: job-take, job-stream, job-done, job-stop and ping.

What the `runpod` SDK (1.10 to 1.12) expects of it: polls are held, since it asks again at once
after an empty answer; POST bodies are JSON although they are labelled as a form; `isStream` says
the opposite of what it means and is not needed. Held polls of a worker that was told to stop end
within DRAIN_PAUSE_SECONDS, because the SDK leaves only between two polls.
"""

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emulator.endpoint import QueueEndpoint
from emulator.errors import BadRequest, TooLarge
from emulator.gateway.http import Json, hold, parse_object, read_body, whole_number
from emulator.gateway.layers import Operation, with_auth, with_faults, with_latency
from emulator.settings import OperationName
from emulator.work.job import Job
from emulator.work.workers import Worker

DRAIN_PAUSE_SECONDS: Final = 0.2


async def job_take(request: Request, endpoint: QueueEndpoint) -> Response:
    """One job as an object, or 204 when none came in time."""
    jobs = await _take(request, endpoint, limit=1)
    return Json(jobs[0].for_worker()) if jobs else Response(status_code=204)


async def job_take_batch(request: Request, endpoint: QueueEndpoint) -> Response:
    """Up to `batch_size` jobs as a list, or 204 when none came in time."""
    limit = whole_number(request, "batch_size", 1)
    if limit < 1:
        raise BadRequest("batch_size must be positive")
    jobs = await _take(request, endpoint, limit)
    return Json([job.for_worker() for job in jobs]) if jobs else Response(status_code=204)


async def job_stop(request: Request, endpoint: QueueEndpoint) -> Response:
    """The ids of jobs to stop, or 204 when there were none in time."""
    worker = endpoint.queue.register(request.path_params["worker"])
    is_there = await hold(
        request,
        worker.changed,
        lambda: worker.is_draining or worker.has_due_orders(),
        endpoint.settings.stop_hold_seconds,
    )
    if is_there and (job_ids := endpoint.queue.take_stops(worker)):
        return Json({"jobsToStop": job_ids})
    return await _nothing(worker)


async def job_stream(request: Request, endpoint: QueueEndpoint) -> Response:
    """One yield of a handler."""
    chunk = await _read_result(request, endpoint)
    worker_id, job_id = _names(request)
    endpoint.queue.add_chunk(worker_id, job_id, chunk.get("output"))
    return Json({})


async def job_done(request: Request, endpoint: QueueEndpoint) -> Response:
    """A handler's result, or its progress when the body says IN_PROGRESS.

    A result above the payload limit is refused and the job is COMPLETED without output, which is
    how users of RunPod meet that limit.
    """
    worker_id, job_id = _names(request)
    try:
        result = await _read_result(request, endpoint)
    except TooLarge:
        endpoint.queue.finish(worker_id, job_id, {})
        raise
    if result.get("status") == "IN_PROGRESS":
        endpoint.queue.progress(worker_id, job_id, result.get("output"))
    else:
        endpoint.queue.finish(worker_id, job_id, result)
    return Json({})


async def ping(request: Request, endpoint: QueueEndpoint) -> Response:
    """A sign of life with the ids of the jobs in hand."""
    job_ids = filter(None, request.query_params.get("job_id", "").split(","))
    is_healthy = request.query_params.get("status") != "unhealthy"
    endpoint.queue.ping(request.path_params["worker"], job_ids, is_healthy=is_healthy)
    return Json({})


def routes() -> list[Route]:
    """Every worker route."""
    return [
        _route("/job-take/{worker}", "GET", "job-take", job_take),
        _route("/job-take-batch/{worker}", "GET", "job-take", job_take_batch),
        _route("/job-stop/{worker}", "GET", "job-stop", job_stop),
        _route("/job-stream/{worker}/{job}", "POST", "job-stream", job_stream),
        _route("/job-done/{worker}/{job}", "POST", "job-done", job_done),
        _route("/ping/{worker}", "GET", "ping", ping),
    ]


def _route(
    path: str, method: str, name: OperationName, operation: Operation[QueueEndpoint]
) -> Route:
    layers = with_auth(QueueEndpoint, with_latency("worker", with_faults(name, operation)))
    return Route("/v2/{endpoint}" + path, layers, methods=[method])


def _names(request: Request) -> tuple[str, str]:
    return request.path_params["worker"], request.path_params["job"]


async def _take(request: Request, endpoint: QueueEndpoint, limit: int) -> list[Job]:
    """Hold until there is a job for this worker; a job is never given to a caller that left."""
    queue = endpoint.queue
    worker = queue.register(request.path_params["worker"])
    is_there = await hold(
        request,
        queue.arrivals,
        lambda: queue.turns_away(worker) or bool(queue.waiting),
        endpoint.settings.take_hold_seconds,
    )
    jobs = queue.take(worker, limit) if is_there else []
    if jobs and await request.is_disconnected():
        queue.give_back(jobs)
        return []
    if not jobs:
        await _pause_draining(worker)
    return jobs


async def _nothing(worker: Worker) -> Response:
    await _pause_draining(worker)
    return Response(status_code=204)


async def _pause_draining(worker: Worker) -> None:
    """The SDK asks again at once until it has noticed the signal: do not let it spin."""
    if worker.is_draining:
        await asyncio.sleep(DRAIN_PAUSE_SECONDS)


async def _read_result(request: Request, endpoint: QueueEndpoint) -> dict[str, Any]:
    """The posted JSON; what a job may return is limited like what it may be given."""
    is_sync = request.path_params["job"].startswith("sync-")
    settings = endpoint.settings
    limit = settings.max_runsync_bytes if is_sync else settings.max_run_bytes
    return parse_object(await read_body(request, limit))
