"""Every route that a worker answers: one request, one call, one answer."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from fastapi import APIRouter, HTTPException, Request, Response

from proxy.api.answer import Answer
from proxy.api.call import Call, read_call
from proxy.api.dialects import StreamContext
from proxy.api.keep_alive import keep_alive
from proxy.api.rewriting import Rewriter, asking_for_usage
from proxy.api.route_table import route_of
from proxy.backends.deadlines import Terms
from proxy.config.settings import Settings
from proxy.errors import InvalidRequest
from proxy.http.disconnect import unless_client_leaves
from proxy.http.plain import plain_response
from proxy.http.sse import EventStream
from proxy.keys import Key
from proxy.services import Services, services
from proxy.serving.models import Model

PATIENCE = "x-cold-start-timeout"
"""A client's own limit, in seconds, for how long a worker may be waited for."""

_RESPONSE_ID = re.compile(rb'"id": ?"([A-Za-z0-9._:-]{1,200})"')
"""The first one in an answer; a client may choose it, as vLLM's `request_id`."""


def create_router(patterns: Iterable[str]) -> APIRouter:
    """The routes of an allow-list of `METHOD /path` patterns, all served alike."""
    router = APIRouter()
    for pattern in patterns:
        method, _, path = pattern.partition(" ")

        async def endpoint(request: Request, method: str = method, path: str = path) -> Response:
            if request.method != method:  # HEAD, which Starlette adds to GET
                raise HTTPException(405, headers={"Allow": method})
            return await _serve(request, path)

        router.add_route(path, endpoint, methods=[method])
    return router


async def _serve(request: Request, pattern: str) -> Response:
    here = services(request)
    route = route_of(request, pattern)
    key = here.check_caller(request)
    call = await read_call(request, route, here.bodies)
    model = await _model(here, call, key)
    label = request.state.model = model.label or model.name
    call, rewriter = _rewriter(here, call, label)
    terms = _terms(request, model, key)
    asked = await here.shield.answer(call, model, terms)
    answer = request.state.answer = here.sharing.share(request, key, call, asked)
    call = call.without_body()  # the answer has it, as long as it may have to be sent
    try:
        return await _respond(request, here, call, model, key, terms, answer, rewriter)
    except BaseException:
        answer.close()
        raise


async def _model(here: Services, call: Call, key: Key) -> Model:
    """The model that is asked, or the one that has the stored response."""
    if call.route.response_id is not None:
        return await here.stored_responses.model_of(
            call.route.response_id, key, here.keys, here.models
        )
    model = here.models.find(call.model, key)
    await here.stored_responses.check(call, key, here.keys, here.models)
    return model


def _rewriter(here: Services, call: Call, label: str) -> tuple[Call, Rewriter | None]:
    """What the settings have changed in the answer, and the call that it takes."""
    both_names = here.settings.reasoning_fields == "both"
    if not here.settings.count_tokens:
        return call, Rewriter(both_names=True) if both_names else None
    call, hides_usage = asking_for_usage(call)
    on_tokens = partial(here.metrics.note_tokens, label)
    return call, Rewriter(both_names=both_names, hides_usage=hides_usage, on_tokens=on_tokens)


def _terms(request: Request, model: Model, key: Key) -> Terms:
    """The model's deadlines, with the key's and the client's own wishes."""
    terms = model.terms
    if key.keep_alive_seconds is not None:
        terms = replace(terms, poll=key.keep_alive_seconds)
    if (patience := request.headers.get(PATIENCE)) is not None:
        if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", patience) or float(patience) <= 0:
            raise InvalidRequest(f"The header {PATIENCE} is not a number of seconds.")
        if float(patience) < terms.queue:
            terms = replace(terms, queue=float(patience), queue_setting=PATIENCE)
    return terms


async def _respond(
    request: Request,
    here: Services,
    call: Call,
    model: Model,
    key: Key,
    terms: Terms,
    answer: Answer,
    rewriter: Rewriter | None,
) -> Response:
    """A stream begins after a short hold, so that an early failure keeps its HTTP status."""
    opening = asyncio.create_task(_open(here, call, key, model, answer))
    try:
        hold = _hold_seconds(model, key) if call.wants_stream else None
        await unless_client_leaves(request, asyncio.wait({opening}, timeout=hold))
        headers = {"x-runpod-job-id": answer.job_id} if answer.job_id else {}
        is_plain = opening.done() and not (answer.head and answer.head.is_event_stream)
        if not call.wants_stream or is_plain:
            return await plain_response(
                request,
                call,
                answer,
                opening.result(),
                model=model.name,
                headers=headers,
                rewriter=rewriter,
                memory=here.memory,
            )
    except BaseException:
        opening.cancel()
        raise
    dialect = call.route.dialect
    context = StreamContext(call.request_id, model.name, f"{call.route.method} {call.route.path}")
    return EventStream(
        answer,
        opening,
        dialect=dialect,
        context=context,
        rewriter=rewriter,
        keep_alive=keep_alive(
            key.keep_alive_mode or model.keep_alive_mode,
            dialect,
            context,
            waited=model.backend.watch.clock.waited if model.backend.watch else lambda _: "",
            notice_fields=_notice_fields(here.settings),
        ),
        keep_alive_seconds=terms.poll,
        longest_drain_seconds=here.settings.longest_drain_seconds,
        memory=here.memory,
        headers=headers | dict(answer.head.headers if answer.head else {}),
    )


def _notice_fields(settings: Settings) -> tuple[str, ...]:
    """The delta's fields in which a chat is told that a worker is waited for."""
    if settings.cold_start_notice == "off":
        return ()
    both = settings.reasoning_fields == "both"
    return ("reasoning_content", "reasoning") if both else ("reasoning_content",)


def _hold_seconds(model: Model, key: Key) -> float:
    wanted = key.first_byte_hold_seconds
    return model.first_byte_hold_seconds if wanted is None else wanted


async def _open(here: Services, call: Call, key: Key, model: Model, answer: Answer) -> bytes:
    """Open the answer, and learn from its beginning what it tells by the way."""
    began = time.monotonic()
    first = await answer.open()
    here.metrics.note_first_byte(model.label or model.name, time.monotonic() - began)
    if call.route.path == "/v1/responses" and (found := _RESPONSE_ID.search(first)):
        here.stored_responses.note(found[1].decode(), key, model)
    return first
