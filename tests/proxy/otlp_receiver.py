"""A collector: takes spans by OTLP over HTTP, as they are on the wire."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from tests.waiting import wait_until


@dataclass(frozen=True)
class Span:
    """A span that was sent; ids are hexadecimal, times in nanoseconds."""

    name: str
    kind: str
    trace_id: str
    id: str
    parent_id: str
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Receiver:
    """What was sent to it, and what it answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.spans: list[Span] = []
        self.paths: list[str] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.is_held = threading.Event()
        """Set, nothing is answered."""
        self.asked = 0

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """What an exporter sends."""
        self.paths.append(path)
        self.headers.append(headers)
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(span, about) for span in scope.spans]

    def of(self, trace_id: str, count: int = 1) -> list[Span]:
        """The spans of this trace, in the order of their times, once there are so many."""
        wait_until(lambda: len(self._of(trace_id)) >= count)
        return sorted(self._of(trace_id), key=lambda span: (span.start_ns, -span.end_ns))

    def _of(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A collector on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.asked += 1
            while receiver.is_held.is_set() and not is_over.wait(0.05):
                pass
            if receiver.status == 200:
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.take(self.path, headers, body)
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not a word."""

    is_over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _span(span: WireSpan, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {0: "", 1: "ok", 2: "error"}[span.status.code],
        _values(span.attributes),
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
