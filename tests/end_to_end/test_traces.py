"""One trace over the whole road: from a client through the queue and a cold start to the engine."""

import pytest

from proxy.telemetry.traces import Traces
from tests.end_to_end.conftest import road
from tests.proxy.otlp_receiver import receiving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TRACE_ID, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "one-secret-for-proxy-and-endpoint-0123456789"


@pytest.mark.parametrize("secret", ["", SECRET], ids=["plain", "sealed"])
def test_the_engines_parent_is_the_proxys_span_and_the_cold_start_is_told(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    settings = {"seal_secret": secret} if secret else {}
    worker_env = {"WORKER_SEAL_SECRET": secret} if secret else {}
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with (
            road(settings=settings, worker_env=worker_env, traces=Traces()) as stack,
            stack.sdk() as sdk,
        ):
            headers = {"traceparent": f"00-{TRACE_ID}-{CLIENT}-01"}
            sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], extra_headers=headers
            )
            request, queue = receiver.of(TRACE_ID, 2)
            (heard,) = stack.engine()["requests"]
    assert request.parent_id == CLIENT
    assert heard["headers"]["traceparent"].split("-")[1:3] == [TRACE_ID, request.id]
    assert (queue.name, queue.parent_id) == ("runpod.queue", request.id)
    assert queue.attributes["runpod.cold_start"] is True
    waited, whole = queue.end_ns - queue.start_ns, request.end_ns - request.start_ns
    assert whole / 2 < waited <= whole  # a worker and its engine had to be started
