"""Every route that a worker answers: from a request to a call, an answer and a response."""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from fastapi import HTTPException, Request, Response

from proxy.access.keys import Key
from proxy.api.answer import Answer
from proxy.api.call import Call
from proxy.api.dialects import StreamContext
from proxy.api.keep_alive import KeepAlive, keep_alive
from proxy.api.rewriting import Rewriter
from proxy.api.route_table import Route, find_route, named_by
from proxy.api.token_estimate import Tokens, estimated_tokens
from proxy.api.usage import asking_for_usage
from proxy.backends.deadlines import Terms
from proxy.config.settings import Settings
from proxy.errors import UnknownRoute
from proxy.http.authentication import KeyedRouter, key_of
from proxy.http.body import read_call
from proxy.http.context import RequestContext, context_of, headers_of, services_of
from proxy.http.disconnect import while_client_stays
from proxy.http.plain import plain_response
from proxy.http.sse import EventStream
from proxy.services import Services
from proxy.serving.flows import flow_of
from proxy.serving.models import Model
from proxy.serving.passed_headers import passed_headers
from proxy.serving.terms import call_terms

_RESPONSE_ID = re.compile(rb'"id": ?"([A-Za-z0-9._:-]{1,200})"')
"""The first one in an answer; a client may choose it, as vLLM's `request_id`."""


def create_router(patterns: Iterable[str]) -> KeyedRouter:
    """The routes of an allow-list of `METHOD /path` patterns, all served alike."""
    router = KeyedRouter(starts_jobs=True)
    for route in map(find_route, patterns):
        router.add(route.path, partial(serve, route), [route.method])
    return router


async def serve(route: Route, request: Request) -> Response:
    """Answer one request of this route, by the rights of the key that is noted in its record."""
    if request.method != route.method:  # HEAD, which Starlette adds to GET
        raise HTTPException(405, headers={"Allow": route.method})
    services, context, key = services_of(request), context_of(request), key_of(request)
    context.route = str(route)
    headers = headers_of(request)
    if services.traces is not None:
        context.trace = services.traces.begin(headers, context.route, context.began)
    call = await read_call(request, _named(request, route))
    model = await _model(services, call, key)
    context.model = model.label or model.name
    call = _with_headers(call, passed_headers(headers, key, call), context)
    flow = flow_of(key, services.keys, headers)
    terms = call_terms(model.terms, key, headers, flow)
    call = await _let_in(services, context, key, call, model)
    call, rewriter = _rewriter(services, key, call, context)
    answer = context.answer = await _answer(services, context, headers, call, model, terms)
    services.metrics.live.begin(answer, model.base_label)
    call = call.without_body()  # the answer has it, as long as it may have to be sent
    try:
        return await _respond(request, call, model, terms, answer, rewriter)
    except BaseException:
        answer.close()
        raise


def _with_headers(call: Call, headers: Mapping[str, str], context: RequestContext) -> Call:
    """The call with what vLLM is sent of its client's headers, and is to continue of its trace."""
    if context.trace is not None:
        headers = {**headers, **context.trace.headers}
    if headers:
        call = replace(call, headers=headers)
    if context.trace is not None:
        context.trace.note_call(call)
    return call


def _named(request: Request, route: Route) -> Route:
    """The route that the request names by it; raises UnknownRoute if it is spelt with tricks."""
    is_plain = b"%" not in request.scope["raw_path"]
    if (named := named_by(route, request.path_params, is_plain=is_plain)) is None:
        raise UnknownRoute(f"Unknown request URL: {request.method} {request.url.path}.")
    return named


async def _model(services: Services, call: Call, key: Key) -> Model:
    """The model that is asked, or the one that has the stored response."""
    stored = services.stored_responses
    if call.route.response_id is not None:
        return await stored.model_of(call.route.response_id, key, services.keys, services.models)
    model = services.models.find(call.model, key)
    await stored.check(call, key, services.keys, services.models)
    return model


async def _let_in(
    services: Services, context: RequestContext, key: Key, call: Call, model: Model
) -> Call:
    """The call, once its key's limits have room for it; what it costs is counted against them."""
    if key.limits.are_any:
        is_counted = key.limits.tokens_per_minute is not None
        tokens = estimated_tokens(call, model.known_max_model_len) if is_counted else Tokens()
        context.permit = await services.limiter.admit(key, tokens)
    on_spent = context.account_for(services, model, services.on_spent(key, model))
    return replace(call, on_spent=on_spent)


def _rewriter(
    services: Services, key: Key, call: Call, context: RequestContext
) -> tuple[Call, Rewriter | None]:
    """What is to be changed in the answer, or counted of it, and the call that this takes."""
    both_names = services.settings.reasoning_fields == "both"
    is_counted = services.settings.count_tokens or services.ledger is not None
    if not is_counted and key.limits.tokens_per_minute is None:
        return call, Rewriter(both_names=True) if both_names else None
    call, hides_usage = asking_for_usage(call)

    return call, Rewriter(
        both_names=both_names,
        hides_usage=hides_usage,
        on_tokens=context.note_tokens,
        tokens_of=call.route.dialect.tokens_of,
    )


async def _answer(
    services: Services,
    context: RequestContext,
    headers: Mapping[str, str],
    call: Call,
    model: Model,
    terms: Terms,
) -> Answer:
    """The chain of answers, from the inside out; nothing is asked before it is opened.

    What wakes no GPU, where that will do, or the model's backend with its fallback behind it; and
    around it what lets a request that comes again join the one that is under way.
    """
    answer = await services.shield.answer(call, model) or model.ask(call, terms)
    assert context.key is not None
    return services.sharing.share(headers, context.began, context.key, call, answer)


async def _respond(
    request: Request,
    call: Call,
    model: Model,
    terms: Terms,
    answer: Answer,
    rewriter: Rewriter | None,
) -> Response:
    """A stream begins after a short hold, so that an early failure keeps its HTTP status."""
    opening = asyncio.create_task(_open(request, call, model, answer))
    try:
        hold = terms.first_byte_hold_seconds if call.wants_stream else None
        with while_client_stays(request.scope, request.receive):
            await asyncio.wait({opening}, timeout=hold)
        headers = {"x-runpod-job-id": answer.job_id} if answer.job_id else {}
        is_plain = opening.done() and not (answer.head and answer.head.is_event_stream)
        if not call.wants_stream or is_plain:
            first = opening.result()
            return await plain_response(request, call, answer, first, model.name, headers, rewriter)
    except BaseException:
        opening.cancel()
        raise
    settings = services_of(request).settings
    context = StreamContext(call.request_id, model.name, str(call.route))
    return EventStream(
        answer,
        opening,
        dialect=call.route.dialect,
        context=context,
        rewriter=rewriter,
        keep_alive=_keep_alive(settings, terms, model, call, context),
        keep_alive_seconds=terms.keep_alive_seconds,
        memory=services_of(request).memory,
        headers=headers | dict(answer.head.headers if answer.head else {}),
    )


def _keep_alive(
    settings: Settings, terms: Terms, model: Model, call: Call, context: StreamContext
) -> KeepAlive:
    """How the stream is kept alive, and in which of a chat's fields a cold start is told."""
    fields: tuple[str, ...] = ("reasoning_content",)
    if settings.cold_start_notice == "off":
        fields = ()
    elif settings.reasoning_fields == "both":
        fields = ("reasoning_content", "reasoning")
    monitor = model.backend.monitor
    return keep_alive(
        terms.keep_alive_mode,
        call.route.dialect,
        context,
        waited=monitor.clock.waited if monitor else lambda _: "",
        notice_fields=fields,
    )


async def _open(request: Request, call: Call, model: Model, answer: Answer) -> bytes:
    """Open the answer, and learn from its beginning what it tells by the way."""
    began = time.monotonic()
    first = await answer.open()
    context_of(request).first_byte_seconds = time.monotonic() - began
    if call.route.stores_response and (found := _RESPONSE_ID.search(first)):
        stored = services_of(request).stored_responses
        await stored.note(found[1].decode(), key_of(request), model)
    return first
