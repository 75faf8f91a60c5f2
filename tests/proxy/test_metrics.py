"""The numbers at /metrics say what happened."""

import hashlib
import logging
import re
import signal
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.app import create_app
from proxy.telemetry.metrics import Metrics
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Fault, Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
VLLM_ERROR = 'data: {"error": {"message": "out of memory", "code": 500}}\n\ndata: [DONE]\n\n'


def value(client: httpx.Client, name: str, **labels: str) -> float:
    """A sample's value; 0 if it is not there yet."""
    text = client.get("/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def exposed() -> dict[str, tuple[str, set[str]]]:
    """Each metric's name, as Prometheus shows it, with its type and its labels."""
    found = {}
    for collector in Metrics().registry._collector_to_names:
        kind, name = collector._type, collector._name  # type: ignore[attr-defined]
        name += "_total" * (kind == "counter")
        found[name] = (kind, set(collector._labelnames))  # type: ignore[attr-defined]
    return found


def test_the_document_lists_every_metric_with_its_labels() -> None:
    section = (ROOT / "docs/configuration.md").read_text().partition("\n## Metrics\n")[2]
    rows = re.findall(r"^\| (`.*?`) \|", section.partition("\n## ")[0], re.MULTILINE)
    listed = re.findall(r"`([\w:]+)\{([\w,]+)\}`", " ".join(rows))
    documented = {name: set(labels.split(",")) for name, labels in listed}
    assert documented == {name: labels for name, (_, labels) in exposed().items()}


def test_the_numbers_need_a_key(proxy_url: str) -> None:
    assert httpx.get(f"{proxy_url}/metrics").status_code == 401


@pytest.mark.parametrize("settings", [{"metrics_key": "scrape"}], indirect=True)
def test_a_key_of_their_own_opens_the_numbers_and_nothing_else(client: httpx.Client) -> None:
    own = {"authorization": "Bearer scrape"}
    assert "proxy_requests" in client.get("/metrics", headers=own).text
    assert client.get("/metrics", headers={"x-api-key": "scrape", "authorization": ""}).is_success
    assert client.get("/v1/models", headers=own).status_code == 401
    refused = client.get("/metrics")
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/metrics", headers={"authorization": ""}).status_code == 401


def test_an_administrator_reads_the_numbers_that_have_a_key_of_their_own(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path
) -> None:
    config = tmp_path / "proxy.toml"
    known = hashlib.sha256(b"boss").hexdigest()
    config.write_text(
        f"[endpoints.ep]\n[models.m]\nendpoint = 'ep'\n"
        f"[keys.boss]\nsha256 = '{known}'\nmay_administer = true\n"
    )
    settings = settings_for(scripted_runpod[1], config=config, metrics_key="scrape")
    with serve(create_app(settings)) as url:
        for key, status in (("boss", 200), ("scrape", 200), (KEY, 401)):
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.get(f"{url}/metrics", headers=headers, timeout=30)
            assert answer.status_code == status


@pytest.mark.parametrize("settings", [{"metrics_public": True}], indirect=True)
def test_the_numbers_are_shown_to_all_where_the_operator_says_so(proxy_url: str) -> None:
    assert "proxy_requests" in httpx.get(f"{proxy_url}/metrics", timeout=30).text
    assert httpx.get(f"{proxy_url}/v1/models", timeout=30).status_code == 401


def test_requests_calls_and_first_bytes_are_counted(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    fresh_client.post(CHAT, json=chat(stream=True))
    fresh_client.post(CHAT, json=chat(model="of a client's making"))
    counted = "proxy_requests_total"
    good = {"model": "m", "status": "200", "outcome": "completed"}
    wait_until(lambda: value(fresh_client, counted, **good) == 1)
    unknown = {"model": "", "status": "404", "outcome": "model_not_found"}
    wait_until(lambda: value(fresh_client, counted, **unknown) == 1)
    assert value(fresh_client, "proxy_first_byte_seconds_count", model="m") == 1
    calls = {"endpoint": "ep", "operation": "run", "outcome": "200"}
    assert value(fresh_client, "runpod_calls_total", **calls) == 1
    assert value(fresh_client, "proxy_worker_seconds_total", endpoint="ep") > 0


SPACED_ERROR = 'data: { "error" : {"message": "x", "code": 500}}\n\n'
ERROR_IN_A_CHUNK = 'data: {"id": "1", "choices": [], "error": {"message": "x"}}\n\n'
ERROR_OF_LINES = 'data: {\ndata: "error": {"message": "x"}}\n\n'
FAILED_RESPONSE = 'event: response.failed\ndata: {"type": "response.failed", "response": {}}\n\n'
BROKEN_STREAMS: dict[str, tuple[list[Page | Fault], str]] = {
    "a job that is forgotten": ([Page("IN_PROGRESS", FRAMES[:1]), Fault(404)], "worker_failed"),
    "vLLM's own error": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": VLLM_ERROR, "end": True}])],
        "vllm_error",
    ),
    "an error with blanks": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": SPACED_ERROR, "end": True}])],
        "vllm_error",
    ),
    "an error beside other fields": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": ERROR_IN_A_CHUNK, "end": True}])],
        "vllm_error",
    ),
    "an error over several lines": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": ERROR_OF_LINES, "end": True}])],
        "vllm_error",
    ),
    "an error without its end": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": SPACED_ERROR.strip(), "end": True}])],
        "vllm_error",
    ),
    "a response that failed": (
        [Page("COMPLETED", [FRAMES[0], {"seq": 1, "text": FAILED_RESPONSE, "end": True}])],
        "vllm_error",
    ),
    "an early error": ([Page("FAILED")], "worker_failed"),
}


@pytest.mark.usefixtures("believed_at_once")
@pytest.mark.parametrize(("script", "outcome"), BROKEN_STREAMS.values(), ids=BROKEN_STREAMS.keys())
def test_a_stream_that_fails_is_counted_and_logged_by_what_failed(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    caplog: pytest.LogCaptureFixture,
    script: list[Page | Fault],
    outcome: str,
) -> None:
    runpod.script = script
    with caplog.at_level(logging.INFO, "proxy.access"):
        status = fresh_client.post(CHAT, json=chat(stream=True)).status_code
        wait_until(lambda: f" {status} {outcome} " in caplog.text)
    labels = {"model": "m", "status": str(status), "outcome": outcome}
    assert value(fresh_client, "proxy_requests_total", **labels) == 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_is_counted_as_such(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, is_stream: bool
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    with asked(fresh_client, stream=is_stream):
        wait_until(lambda: runpod.stream_calls > 0)
    labels = {"model": "m", "outcome": "client_left"}

    def is_counted() -> bool:
        statuses = ("0", "200", "499")
        counts = [
            value(fresh_client, "proxy_requests_total", status=status, **labels)
            for status in statuses
        ]
        return sum(counts) == 1

    wait_until(is_counted)


@pytest.mark.parametrize(
    ("handed_out", "aggregate", "lost", "repaired", "broken"),
    [
        (FRAMES, FRAMES, 0, 0, 0),
        (FRAMES[:1], FRAMES, 2, 2, 0),
        ([FRAMES[0], FRAMES[2]], FRAMES, 1, 1, 0),
        ([], FRAMES, 3, 3, 0),
        ([FRAMES[0], FRAMES[2]], [FRAMES[0], FRAMES[2]], 1, 0, 1),
    ],
)
def test_lost_repaired_and_unrepairable_frames_are_counted(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    handed_out: list[dict[str, object]],
    aggregate: list[dict[str, object]],
    lost: int,
    repaired: int,
    broken: int,
) -> None:
    runpod.script = [Page("COMPLETED", handed_out), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": aggregate}
    fresh_client.post(CHAT, json=chat(stream=True))
    assert value(fresh_client, "proxy_frames_lost_total", endpoint="ep") == lost
    assert value(fresh_client, "proxy_frames_repaired_total", endpoint="ep") == repaired
    assert value(fresh_client, "proxy_answers_unrepairable_total", endpoint="ep") == broken


def test_jobs_in_flight_and_cancelled_ones_are_counted(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    with fresh_client.stream("POST", CHAT, json=chat(stream=True)) as response:
        pieces = response.iter_bytes()  # kept: without it the connection would be closed
        next(pieces)
        waiting = {"endpoint": "ep", "phase": "waiting"}
        wait_until(lambda: value(fresh_client, "proxy_jobs", **waiting) == 1)
    wait_until(lambda: value(fresh_client, "proxy_jobs_cancelled_total", endpoint="ep") == 1)
    assert value(fresh_client, "proxy_jobs", **waiting) == 0


@pytest.mark.slow
def test_jobs_in_flight_are_counted_across_changes_of_the_file(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    config = tmp_path / "proxy.toml"
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", hold=threading.Event())]
    running = {"endpoint": "ep", "phase": "running"}
    text = "[endpoints.ep]\nprice_per_second = {}\n[models.{}]\nendpoint = 'ep'\n"
    config.write_text(text.format(1, "m"))
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path, config=config)
    try:
        with proxy.client.stream("POST", CHAT, json=chat(stream=True)) as response:
            pieces = response.iter_bytes()
            next(pieces)
            wait_until(lambda: value(proxy.client, "proxy_jobs", **running) == 1)
            config.write_text(text.format(2, "n"))
            proxy.process.send_signal(signal.SIGHUP)
            wait_until(lambda: proxy.client.get("/v1/models/n").status_code == 200)
            assert value(proxy.client, "proxy_jobs", **running) == 1
    finally:
        proxy.close()
