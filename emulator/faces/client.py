"""The face RunPod shows to clients: /v2/{endpoint}/run, /runsync, /status, /stream and the rest.

Differs from RunPod on purpose: the bodies of refusals (400, 401, 404) are `{"error": "..."}`, since
RunPod's own are not known, and execution timeouts and TTLs may be as short as a test likes.
"""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from emulator.endpoint import Endpoint, QueueEndpoint
from emulator.errors import NotFound
from emulator.gateway.http import Json, hold, parse_object, read_body, whole_number
from emulator.gateway.layers import (
    Operation,
    behind_edge,
    with_auth,
    with_faults,
    with_latency,
    with_limits,
)
from emulator.settings import OperationName
from emulator.work.job import Job
from emulator.work.submission import parse

MIN_WAIT_MS: Final = 1_000
MAX_WAIT_MS: Final = 300_000
RUNSYNC_WAIT_SECONDS: Final = 90.0
EITHER_KIND: Final[type[Endpoint]] = Endpoint  # type: ignore[type-abstract]  # only for isinstance


async def run(request: Request, endpoint: QueueEndpoint) -> Response:
    """Queue a job and answer at once."""
    body = await read_body(request, endpoint.settings.max_run_bytes)
    job = _submit(endpoint, parse_object(body), is_sync=False)
    return Json({"id": job.id, "status": job.status})


async def runsync(request: Request, endpoint: QueueEndpoint) -> Response:
    """Queue a job and hold the call until it is over or `wait` has passed."""
    seconds = _wait_seconds(request, RUNSYNC_WAIT_SECONDS)
    body = await read_body(request, endpoint.settings.max_runsync_bytes)
    job = _submit(endpoint, parse_object(body), is_sync=True)
    return await _view_when_over(request, job, seconds)


async def status(request: Request, endpoint: QueueEndpoint) -> Response:
    """The job as it stands; `ttl` milliseconds from now it is forgotten."""
    job = _job(request, endpoint)
    if "ttl" in request.query_params:
        endpoint.queue.keep_for(job, whole_number(request, "ttl", 0) / 1000)
    return Json(job.view())


async def status_sync(request: Request, endpoint: QueueEndpoint) -> Response:
    """The job when it is over or `wait` has passed; RunPod's JS and Go clients still use it."""
    seconds = _wait_seconds(request, RUNSYNC_WAIT_SECONDS)
    return await _view_when_over(request, _job(request, endpoint), seconds)


async def stream(request: Request, endpoint: QueueEndpoint) -> Response:
    """The chunks not read yet; held until there is one, the job ends, or `wait` passes."""
    job = _job(request, endpoint)
    seconds = _wait_seconds(request, endpoint.settings.stream_hold_seconds)
    is_there = await hold(request, job.changed, job.has_news, seconds)
    _refuse_forgotten(job)
    chunks = job.drain() if is_there else []
    return Json({"status": job.status, "stream": chunks})


async def cancel(request: Request, endpoint: QueueEndpoint) -> Response:
    """Cancel the job; one that is over keeps its status."""
    job = endpoint.queue.cancel(request.path_params["job"])
    return Json({"id": job.id, "status": job.status})


async def retry(request: Request, endpoint: QueueEndpoint) -> Response:
    """Queue a failed job again under the same id."""
    job = endpoint.queue.retry(request.path_params["job"])
    return Json({"id": job.id, "status": job.status})


async def purge_queue(_: Request, endpoint: QueueEndpoint) -> Response:
    """Forget the jobs no worker has taken."""
    return Json({"removed": endpoint.queue.purge(), "status": "completed"})


async def health(_: Request, endpoint: Endpoint) -> Response:
    """Counters of jobs and workers, for either kind of endpoint."""
    return Json(endpoint.health())


async def metrics(_: Request, endpoint: Endpoint) -> Response:
    """Which workers are ready; RunPod's own tools read it, its documents do not name it."""
    return Json(endpoint.metrics())


def routes() -> list[Route]:
    """Every client route."""
    get, post = ["GET"], ["POST"]
    return [
        _route("/run", post, "run", run),
        _route("/runsync", post, "runsync", runsync),
        _route("/status/{job}", get + post, "status", status),
        _route("/status-sync/{job}", get + post, "status", status_sync),
        _route("/stream/{job}", get + post, "stream", stream),
        _route("/cancel/{job}", post, "cancel", cancel),
        _route("/retry/{job}", post, "retry", retry),
        _route("/purge-queue", post, "purge-queue", purge_queue),
        _either("/health", "health", health),
        _either("/metrics", "metrics", metrics),
    ]


def _route(
    path: str, methods: list[str], name: OperationName, operation: Operation[QueueEndpoint]
) -> Route:
    """A call passes the key check, the network, faults, limits and the edge, then it is served."""
    near = with_faults(name, with_limits(name, behind_edge(operation)))
    layers = with_auth(QueueEndpoint, with_latency("client", near))
    return Route("/v2/{endpoint}" + path, layers, methods=methods)


def _either(path: str, name: OperationName, operation: Operation[Endpoint]) -> Route:
    """A call that endpoints of both kinds answer, and that nothing limits."""
    layers = with_auth(EITHER_KIND, with_latency("client", with_faults(name, operation)))
    return Route("/v2/{endpoint}" + path, layers, methods=["GET"])


def _job(request: Request, endpoint: QueueEndpoint) -> Job:
    return endpoint.queue.get(request.path_params["job"])


def _refuse_forgotten(job: Job) -> None:
    """A job may be forgotten while a call for it is held: NotFound, as for any later call."""
    if job.is_forgotten:
        raise NotFound("job not found")


async def _view_when_over(request: Request, job: Job, seconds: float) -> Response:
    await hold(request, job.changed, lambda: job.is_over, seconds)
    _refuse_forgotten(job)
    return Json(job.view())


def _submit(endpoint: QueueEndpoint, body: dict[str, Any], *, is_sync: bool) -> Job:
    submission = parse(body, endpoint.queue.default_policy())
    return endpoint.queue.submit(
        submission.input, submission.policy, submission.extras, is_sync=is_sync
    )


def _wait_seconds(request: Request, default: float) -> float:
    """`?wait=` in milliseconds, forced into RunPod's bounds."""
    if "wait" not in request.query_params:
        return default
    return min(max(whole_number(request, "wait", 0), MIN_WAIT_MS), MAX_WAIT_MS) / 1000
