#!/usr/bin/env bash
# opentelemetry-exporter-otlp-proto-http 1.45.2 (opentelemetry-exporter-otlp-common 0.66b2).
#
# An answer of 301 to 399 counts as success, and is not followed: `export` returns SUCCESS, nothing
# is logged, and the spans are nowhere. So a collector behind a server that sends http:// to https://
# gets nothing, and nobody is told. The OTLP specification, "OTLP/HTTP Response", has success as 200
# alone. (opentelemetry/exporter/otlp/common/http.py, `200 <= status_code < 400`.)
#
# Seen on 2026-11-29:
#   answered 308: SUCCESS, 1 request at the server, 0 where it was sent on to
#   answered 404: FAILURE
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-exporter-otlp-common==0.66b2
cat > try.py <<'PY'
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.disable(logging.CRITICAL)


class Server:
    def __init__(self, status: int, location: str = "") -> None:
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                if location:
                    self.send_header("location", location)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1/traces"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


memory = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
provider.get_tracer("try").start_span("a span").end()
spans = memory.get_finished_spans()

collector = Server(200)
moved = Server(308, collector.url)
result = OTLPSpanExporter(endpoint=moved.url).export(spans).name
print(
    f"answered 308: {result}, {moved.requests} request at the server, "
    f"{collector.requests} where it was sent on to"
)
print("answered 404:", OTLPSpanExporter(endpoint=Server(404).url).export(spans).name)
PY
venv/bin/python try.py | tee seen
diff seen - <<'SEEN'
answered 308: SUCCESS, 1 request at the server, 0 where it was sent on to
answered 404: FAILURE
SEEN
