"""Traces, by OpenTelemetry: a span for each request, from its client's trace on to vLLM's.

Imported only where traces are wanted. Attributes have the names of OpenTelemetry's conventions for
generative AI (0.1.0) and for HTTP; no convention knows a queue or a cold start, so these are
`runpod.*`. No span holds a word of what was asked or answered.
"""

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from proxy import __version__
from proxy.api.call import Call, JSONContent
from proxy.telemetry.ended_request import EndedRequest

log = logging.getLogger(__name__)

NAME: Final = "runpod-openai-proxy"
TRACE: Final = "traceparent"
MAX_TRACE_CHARS: Final = 200
_UNNAMED: Final = "unknown_service"
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
}
"""What the conventions have a name for; the others are called by their path."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_whole: Final = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)])
_several: Final = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=2, le=2**53)])
_number: Final = msgspec.json.Decoder(float)
_ASKED: Final[dict[str, tuple[str, msgspec.json.Decoder[Any]]]] = {
    "max_tokens": ("gen_ai.request.max_tokens", _whole),
    "max_output_tokens": ("gen_ai.request.max_tokens", _whole),
    "max_completion_tokens": ("gen_ai.request.max_tokens", _whole),
    "temperature": ("gen_ai.request.temperature", _number),
    "top_p": ("gen_ai.request.top_p", _number),
    "top_k": ("gen_ai.request.top_k", _whole),
    "seed": ("gen_ai.request.seed", _whole),
    "n": ("gen_ai.request.choice.count", _several),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", _number),
    "presence_penalty": ("gen_ai.request.presence_penalty", _number),
}
"""Of a body, the numbers that are told."""

_propagator = TraceContextTextMapPropagator()


class Traces:
    """Makes spans, and sends them from a thread of its own; what cannot be sent is dropped.

    Raises ValueError for a variable whose value OpenTelemetry cannot take.
    """

    def __init__(self) -> None:
        resource = Resource.create({SERVICE_VERSION: __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith(_UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter()))
        self._tracer = self._provider.get_tracer(NAME, __version__)

    def begin(self, headers: Mapping[str, str], route: str, began: float) -> "RequestTrace":
        """The trace of a request that began then (monotonic clock): its client's, or a new one.

        Whether it is sampled is decided now, as vLLM is told.
        """
        start_ns = time.time_ns() - round((time.monotonic() - began) * 1e9)
        method, _, path = route.partition(" ")
        span = self._tracer.start_span(
            operation := _OPERATIONS.get(path, path.removeprefix("/v1").lstrip("/")),
            _propagator.extract({TRACE: headers.get(TRACE, "")[:MAX_TRACE_CHARS]}),
            SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "runpod",
                "http.request.method": method,
                "http.route": path,
            },
            start_time=start_ns,
        )
        if span.is_recording():
            span.set_attributes(_address(headers.get("host", "")))
        return RequestTrace(self._tracer, span, operation, began, start_ns)

    async def close(self, seconds: float) -> None:
        """Send what has not been sent, in so much time at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, seconds)


class RequestTrace:
    """The span of one request. One that is not sampled has an id, and tells nothing."""

    __slots__ = ("_began", "_operation", "_span", "_start_ns", "_tracer")

    def __init__(
        self, tracer: Tracer, span: Span, operation: str, began: float, start_ns: int
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._operation = operation
        self._began = began
        self._start_ns = start_ns

    @property
    def id(self) -> str:
        """The id of the trace, in hexadecimal."""
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def headers(self) -> dict[str, str]:
        """What makes others' spans children of this one."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(self._span))
        return carrier

    def note_call(self, call: Call) -> None:
        """What was asked for, but for the prompt."""
        if not self._span.is_recording():
            return
        told: dict[str, AttributeValue] = {}
        if call.wants_stream:
            told["gen_ai.request.stream"] = True
        if session := call.headers.get("x-session-id"):
            told["gen_ai.conversation.id"] = session
        fields = call.content.fields if isinstance(call.content, JSONContent) else {}
        for name, (attribute, decoder) in _ASKED.items():
            if name in fields:
                with contextlib.suppress(msgspec.DecodeError):  # vLLM refuses it
                    told[attribute] = decoder.decode(fields[name])
        self._span.set_attributes(told)

    def end(self, ended: EndedRequest) -> None:
        """The request has ended."""
        if not self._span.is_recording():
            return
        if ended.model:
            self._span.update_name(f"{self._operation} {ended.model}")
        self._span.set_attributes(_attributes(ended))
        if ended.outcome != "completed":
            is_code = ended.outcome != "failed"
            self._span.set_attribute("error.type", ended.outcome if is_code else str(ended.status))
            if ended.outcome != "client_left" and not 300 <= ended.status < 500:
                self._span.set_status(StatusCode.ERROR)
        end_ns = self._start_ns + round(ended.seconds * 1e9)
        self._add_queue(ended, end_ns)
        self._span.end(end_ns)

    def _add_queue(self, ended: EndedRequest, end_ns: int) -> None:
        """A span for the wait in RunPod's queue, of a job that has been there."""
        course = ended.course
        if course.submitted is None:
            return
        # A request that joined another one's job may have come after it was submitted.
        start_ns = self._start_ns + max(0, round((course.submitted - self._began) * 1e9))
        waited_ns = end_ns if course.queue_seconds is None else round(course.queue_seconds * 1e9)
        span = self._tracer.start_span(
            "runpod.queue",
            set_span_in_context(self._span),
            attributes=_runpod(ended),
            start_time=start_ns,
        )
        span.end(max(start_ns, min(start_ns + waited_ns, end_ns)))


class _Exporter(OTLPSpanExporter):
    """Sends spans; that it cannot is logged when it begins, and when it is over."""

    _fails = False

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(self._is_news)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send these."""
        result = super().export(spans)
        if self._fails and result is SpanExportResult.SUCCESS:
            log.info("traces are sent again")
        self._fails = result is not SpanExportResult.SUCCESS
        return result

    def _is_news(self, _: logging.LogRecord) -> bool:
        return not self._fails


def _attributes(ended: EndedRequest) -> dict[str, AttributeValue]:
    """What is told of a request by its span, as far as it is known."""
    tokens_in, tokens_out = ended.tokens
    known: dict[str, AttributeValue | None] = {
        "http.response.status_code": ended.status or None,
        "gen_ai.request.model": ended.model or None,
        "gen_ai.response.time_to_first_chunk": (
            ended.first_byte_seconds if ended.is_stream else None
        ),
        "gen_ai.usage.input_tokens": tokens_in or None,
        "gen_ai.usage.output_tokens": tokens_out or None,
        "proxy.request.id": ended.id,
        "proxy.key.name": ended.key or None,
        "proxy.road": ended.road or None,
    }
    return {name: value for name, value in known.items() if value is not None} | _runpod(ended)


def _runpod(ended: EndedRequest) -> dict[str, AttributeValue]:
    """What is known of its way through RunPod; times are in seconds."""
    course = ended.course
    known: dict[str, AttributeValue | None] = {
        "runpod.endpoint.id": course.endpoint_id or None,
        "runpod.job.id": ended.job_id or None,
        "runpod.cold_start": course.was_cold,
        "runpod.queue.duration": course.queue_seconds,
        "runpod.execution.duration": course.execution_seconds,
    }
    return {name: value for name, value in known.items() if value is not None}


def _address(host: str) -> dict[str, AttributeValue]:
    """By which address the client knows this proxy, where it has said so in order."""
    if (found := _HOST.fullmatch(host)) is None:
        return {}
    told: dict[str, AttributeValue] = {"server.address": found[1].strip("[]")}
    return told if found[2] is None else told | {"server.port": int(found[2])}
