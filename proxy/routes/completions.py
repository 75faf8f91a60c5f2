"""`POST /v1/chat/completions` and `POST /v1/completions`: one request, one job, one answer."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from proxy import request_body
from proxy.answer import Answer
from proxy.disconnect import unless_client_leaves
from proxy.keep_alive import keep_alive
from proxy.request_body import Body
from proxy.services import Services, services
from proxy.sse import EventStream
from proxy.wire import PROTOCOL

router = APIRouter(prefix="/v1")


@router.post("/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completions, streamed or not."""
    return await _create(request, "/v1/chat/completions", prompt_field="messages")


@router.post("/completions")
async def create_completion(request: Request) -> Response:
    """OpenAI's completions, streamed or not."""
    return await _create(request, "/v1/completions", prompt_field="prompt")


async def _create(request: Request, route: str, *, prompt_field: str) -> Response:
    here = services(request)
    here.keys.check(request)
    raw = await request_body.read(request, max_bytes=here.settings.max_body_bytes)
    body = request_body.check(raw, prompt_field=prompt_field)
    here.models.check(body.model)
    job_input = _job_input(here, route, body, request.state.request_id)
    job = await unless_client_leaves(request, here.jobs.submit(job_input))
    request.state.job_id = job.id
    answer = Answer(job, wants_stream=body.wants_stream)
    try:
        return await _respond(request, here, answer, route, body)
    except BaseException:
        job.close()
        raise


def _job_input(here: Services, route: str, body: Body, request_id: str) -> dict[str, Any]:
    """The job's input: the body exactly as the client sent it, and what our own worker reads."""
    raw = body.without_model() if here.models.is_placeholder(body.model) else body.raw
    return {
        "openai_route": route,
        "openai_input": orjson.Fragment(raw),
        "proxy": {"protocol": PROTOCOL, "request_id": request_id},
    }


async def _respond(
    request: Request, here: Services, answer: Answer, route: str, body: Body
) -> Response:
    """A stream begins after a short hold, so that an early failure keeps its HTTP status."""
    opening = asyncio.create_task(answer.open())
    try:
        hold = here.settings.first_byte_hold_seconds if body.wants_stream else None
        await unless_client_leaves(request, asyncio.wait({opening}, timeout=hold))
        headers = {"x-runpod-job-id": answer.job.id}
        if opening.done() and here.models.wants_to_learn:
            here.models.learn_from(opening.result())
        is_plain = opening.done() and not (answer.head and answer.head.is_event_stream)
        if not body.wants_stream or is_plain:
            return await _plain(request, here, answer, opening.result(), headers)
    except BaseException:
        opening.cancel()
        raise
    return EventStream(
        answer,
        opening,
        keep_alive=keep_alive(here.settings.keep_alive_mode, route=route, model=body.model),
        keep_alive_seconds=here.settings.keep_alive_seconds,
        longest_drain_seconds=here.settings.longest_drain_seconds,
        headers=headers,
    )


async def _plain(
    request: Request, here: Services, answer: Answer, first: bytes, headers: dict[str, str]
) -> Response:
    """The whole answer with the worker's own status."""
    body = first + await unless_client_leaves(request, answer.rest())
    head = answer.head
    assert head is not None
    if head.status >= 400:
        headers["x-should-retry"] = "false"
    return Response(body, head.status, headers | {"content-type": head.content_type})
