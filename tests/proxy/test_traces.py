"""Traces: one from the client over the proxy to the job, and nobody waits for a collector."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.telemetry.traces import Traces
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.otlp_receiver import Receiver, receiving
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import free_port, serve
from tests.waiting import leaving_after, wait_until

CONVENTIONS = {
    "error.type",
    "gen_ai.conversation.id",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.choice.count",
    "gen_ai.request.frequency_penalty",
    "gen_ai.request.max_tokens",
    "gen_ai.request.model",
    "gen_ai.request.presence_penalty",
    "gen_ai.request.seed",
    "gen_ai.request.stream",
    "gen_ai.request.temperature",
    "gen_ai.request.top_k",
    "gen_ai.request.top_p",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "server.address",
    "server.port",
}
"""Of the names in OpenTelemetry's GenAI conventions 0.1.0, and in those for HTTP."""
USAGE = {"usage": {"prompt_tokens": 12, "completion_tokens": 34}, "choices": []}
WITH_USAGE = [
    FRAMES[0],
    {"seq": 1, "text": f"data: {httpx.Response(200, json=USAGE).text}\n\n"},
    {"seq": 2, "text": "data: [DONE]\n\n", "end": True},
]
SECRETS = ("violets-are-blue", "roses-are-red")


class Traced:
    """A request's own span, as its client has it."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.id = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.id}-{flags}"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def variables(receiver: Receiver) -> Iterator[pytest.MonkeyPatch]:
    """The environment says where the receiver is, and that spans are sent quickly."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield patch


@pytest.fixture(scope="module")
def traced_url(
    scripted_runpod: tuple[ScriptedRunPod, str], variables: pytest.MonkeyPatch
) -> Iterator[str]:
    settings = settings_for(scripted_runpod[1], count_tokens=True)
    with serve(create_app(settings, traces=Traces())) as url:
        yield url


@pytest.fixture
def traced(traced_url: str, runpod: ScriptedRunPod) -> Iterator[httpx.Client]:
    """A client of a proxy that traces."""
    runpod.script = [Page("COMPLETED", FRAMES)]
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=traced_url, headers=headers, timeout=30) as client:
        yield client


def parent_told(runpod: ScriptedRunPod) -> list[str]:
    """The parts of the `traceparent` that the last job has for vLLM."""
    told: str = runpod.jobs[-1]["input"]["proxy"]["headers"]["traceparent"]
    return told.split("-")


def test_one_trace_goes_from_the_client_over_the_proxy_to_the_job(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    client = Traced()
    assert traced.post(CHAT, json=chat(stream=True), headers=client.headers).status_code == 200
    request, queue = receiver.of(client.trace_id, 2)
    assert (request.kind, request.parent_id) == ("SERVER", client.id)
    assert (queue.name, queue.kind, queue.parent_id) == ("runpod.queue", "INTERNAL", request.id)
    assert parent_told(runpod)[1:3] == [client.trace_id, request.id]
    assert int(parent_told(runpod)[3], 16) & 1
    assert request.start_ns <= queue.start_ns <= queue.end_ns <= request.end_ns


def test_without_a_clients_trace_there_is_a_new_one(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    traced.post(CHAT, json=chat(stream=True))
    request, queue = receiver.of(parent_told(runpod)[1], 2)
    assert (request.parent_id, queue.parent_id) == ("", request.id)


def test_a_span_tells_the_request_by_the_conventions_names(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    runpod.script = [Page("COMPLETED", WITH_USAGE[:1]), Page("COMPLETED")]
    runpod.final = {
        "status": "COMPLETED",
        "output": WITH_USAGE,
        "delayTime": 40,
        "executionTime": 1500,
    }
    client = Traced()
    asked = {"max_tokens": 7, "temperature": 0.5, "top_p": 1, "top_k": 3, "seed": -1, "n": 2}
    penalties = {"presence_penalty": 0.1, "frequency_penalty": 0.2}
    headers = client.headers | {"x-session-id": "s-1", "x-request-id": "mine"}
    body = chat(stream=True, **asked, **penalties)
    assert traced.post(CHAT, json=body, headers=headers).status_code == 200
    span, queue = receiver.of(client.trace_id, 2)
    assert span.name == "chat m"
    assert span.status == ""
    first = span.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first <= (span.end_ns - span.start_ns) / 1e9
    runpods = {
        "runpod.endpoint.id": "ep",
        "runpod.queue.duration": 0.04,
        "runpod.execution.duration": 1.5,
    }
    assert span.attributes.pop("runpod.cold_start") in (True, False)
    runpods["runpod.job.id"] = span.attributes["runpod.job.id"]
    assert span.attributes == runpods | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "runpod",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 3,
        "gen_ai.request.seed": -1,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.presence_penalty": 0.1,
        "gen_ai.request.frequency_penalty": 0.2,
        "gen_ai.conversation.id": "s-1",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": CHAT,
        "server.address": "127.0.0.1",
        "server.port": traced.base_url.port,
        "proxy.request.id": "mine",
        "proxy.key.name": "key-1",
    }
    assert {n for n in span.attributes if not n.startswith(("runpod.", "proxy."))} <= CONVENTIONS
    assert queue.attributes.items() >= runpods.items()
    assert queue.end_ns - queue.start_ns <= 40_000_000


def test_no_word_of_a_request_is_in_what_is_sent(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    runpod.script = [Page("COMPLETED", [{"text": SECRETS[1]}])]
    client = Traced()
    body = chat(
        messages=[{"role": "user", "content": SECRETS[0]}], stop=[SECRETS[0]], user=SECRETS[0]
    )
    traced.post(CHAT, json=body, headers=client.headers)
    receiver.of(client.trace_id, 2)
    sent = b"".join(receiver.raw)
    assert not [word for word in (*SECRETS, KEY, "rp-test") if word.encode() in sent]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (CHAT, {"model": "other"}, ("chat", 404, "model_not_found", "")),
        (CHAT, {"messages": []}, ("chat", 400, "invalid_request_error", "")),
        ("/v1/completions", {"prompt": "x"}, ("text_completion m", 502, "worker_failed", "error")),
        ("/v1/rerank", {}, ("rerank m", 502, "worker_failed", "error")),
    ],
)
def test_an_error_is_told_by_its_code(
    traced: httpx.Client,
    runpod: ScriptedRunPod,
    receiver: Receiver,
    path: str,
    body: dict[str, Any],
    expected: tuple[str, int, str, str],
) -> None:
    runpod.script = [Page("FAILED")]
    runpod.final = {"status": "FAILED", "error": "it broke"}
    client = Traced()
    traced.post(path, json=chat() | body, headers=client.headers)
    span = receiver.of(client.trace_id)[0]
    told = (span.attributes["http.response.status_code"], span.attributes["error.type"])
    assert (span.name, *told, span.status) == expected


@pytest.mark.parametrize(("status", "told"), [(422, ""), (500, "error")])
def test_an_error_of_vllms_own_is_an_error_of_this_server_from_500_on(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver, status: int, told: str
) -> None:
    head = {"seq": 0, "status": status, "content_type": "application/json"}
    runpod.script = [Page("COMPLETED", [head | {"text": "{}", "end": True}])]
    client = Traced()
    traced.post(CHAT, json=chat(), headers=client.headers)
    span = receiver.of(client.trace_id)[0]
    assert (span.attributes["error.type"], span.status) == ("vllm_error", told)


def test_a_stream_that_breaks_is_an_error_though_its_status_was_good(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    runpod.script = [Page("FAILED", FRAMES[:1])]
    runpod.final = {"status": "FAILED", "error": "it broke"}
    client = Traced()
    traced.post(CHAT, json=chat(stream=True), headers=client.headers)
    span = receiver.of(client.trace_id)[0]
    assert (span.attributes["http.response.status_code"], span.status) == (200, "error")
    assert span.attributes["error.type"] == "worker_failed"


def test_who_leaves_in_the_queue_has_a_span_of_its_wait_and_no_error(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    client = Traced()
    with pytest.raises(httpx.ReadTimeout):
        traced.post(CHAT, json=chat(), headers=client.headers, timeout=leaving_after(0.3))
    request, queue = receiver.of(client.trace_id, 2)
    assert (request.attributes["error.type"], request.status) == ("client_left", "")
    assert queue.end_ns == request.end_ns
    assert "runpod.queue.duration" not in queue.attributes


def test_who_leaves_a_stream_has_met_no_error(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    client = Traced()
    with traced.stream("POST", CHAT, json=chat(stream=True), headers=client.headers) as response:
        next(response.iter_raw())
    request = receiver.of(client.trace_id)[0]
    assert request.attributes["http.response.status_code"] == 200
    assert (request.attributes["error.type"], request.status) == ("client_left", "")


def test_who_joins_anothers_job_has_a_trace_of_its_own_from_when_it_came(
    traced: httpx.Client,
    runpod: ScriptedRunPod,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    answered = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=answered), Page("COMPLETED", FRAMES)]
    first, second = Traced(), Traced()
    again = {"idempotency-key": secrets.token_hex(8)}
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(traced.post, CHAT, json=chat(), headers=first.headers | again)]
        wait_until(lambda: len(runpod.jobs) == 1)
        asked.append(threads.submit(traced.post, CHAT, json=chat(), headers=second.headers | again))
        wait_until(lambda: "joins job" in caplog.text)
        answered.set()
        assert [one.result().status_code for one in asked] == [200, 200]
    (request, queue), (owner, _) = receiver.of(second.trace_id, 2), receiver.of(first.trace_id, 2)
    assert owner.start_ns < request.start_ns <= queue.start_ns <= queue.end_ns <= request.end_ns
    assert queue.attributes["runpod.job.id"] == owner.attributes["runpod.job.id"]
    assert parent_told(runpod)[1] == first.trace_id


def test_a_trace_that_its_client_does_not_sample_is_continued_and_not_sent(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    client, other = Traced(flags="00"), Traced()
    for one in (client, other):
        traced.post(CHAT, json=chat(stream=True), headers=one.headers)
        if one is client:
            _, trace_id, parent_id, flags = parent_told(runpod)
    receiver.of(other.trace_id)
    assert client.trace_id not in {span.trace_id for span in receiver.spans}
    assert (trace_id, int(flags, 16) & 1) == (client.trace_id, 0)
    assert parent_id != client.id


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "x" * 5_000},
        {"traceparent": "00-" + "a" * 32},
        {"host": "[::1"},
        {"host": "a b\t:x"},
        {"host": "proxy.example.com:99999"},
        {"x-session-id": "two words"},
    ],
    ids=str,
)
def test_what_a_client_makes_up_harms_no_span(
    traced: httpx.Client,
    runpod: ScriptedRunPod,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
) -> None:
    odd = {"seed": 10**40, "n": 1, "max_tokens": "many", "temperature": None, "top_k": [1]}
    assert traced.post(CHAT, json=chat(**odd), headers=headers).status_code == 200
    request, _ = receiver.of(parent_told(runpod)[1], 2)
    assert request.parent_id == ""
    told = {name for name in request.attributes if name.startswith("gen_ai.request")}
    assert told == {"gen_ai.request.model"}
    address = request.attributes.get("server.address")
    assert address in ((None, "proxy.example.com") if "host" in headers else ("127.0.0.1",))
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_what_no_worker_answers_has_no_span(
    traced: httpx.Client, runpod: ScriptedRunPod, receiver: Receiver
) -> None:
    client, last = Traced(), Traced()
    traced.get("/v1/models", headers=client.headers)
    traced.get("/health", headers=client.headers)
    traced.post(CHAT, json=chat(), headers=client.headers | {"authorization": "Bearer wrong"})
    traced.post(CHAT, json=chat(), headers=last.headers)
    receiver.of(last.trace_id)
    assert client.trace_id not in {span.trace_id for span in receiver.spans}


def test_the_line_of_the_log_names_the_trace(
    traced: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    client = Traced()
    with caplog.at_level("INFO", "proxy.access"):
        traced.post(CHAT, json=chat(), headers=client.headers)
        wait_until(lambda: f" trace={client.trace_id}" in caplog.text)


def test_the_resource_is_the_proxy_unless_it_is_named_otherwise(
    traced: httpx.Client, receiver: Receiver, variables: pytest.MonkeyPatch
) -> None:
    client = Traced()
    traced.post(CHAT, json=chat(), headers=client.headers)
    resource = receiver.of(client.trace_id)[0].resource
    assert resource["service.name"] == "runpod-openai-proxy"
    assert resource["service.version"]
    assert receiver.paths[0] == "/v1/traces"


def test_the_usual_variables_name_the_service_and_choose_what_is_sampled(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    receiver: Receiver,
    variables: pytest.MonkeyPatch,
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SERVICE_NAME", "chat-proxy")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=abc")
        patch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        patch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        app = create_app(settings_for(scripted_runpod[1]), traces=Traces())
    headers = {"authorization": f"Bearer {KEY}"}
    client = Traced()
    with serve(app) as url:
        for _ in range(3):
            httpx.post(url + CHAT, json=chat(), headers=headers, timeout=30)
            assert not int(parent_told(runpod)[3], 16) & 1
        httpx.post(url + CHAT, json=chat(), headers=headers | client.headers, timeout=30)
        span = receiver.of(client.trace_id)[0]
    mine = [one for one in receiver.spans if one.resource["service.name"] == "chat-proxy"]
    assert {one.trace_id for one in mine} == {client.trace_id}
    assert span.resource["deployment.environment.name"] == "test"
    assert receiver.headers[-1]["x-collector-key"] == "abc"


def test_a_balanced_worker_is_told_the_proxys_span(
    scripted_runpod: tuple[ScriptedRunPod, str],
    receiver: Receiver,
    variables: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server, client = ScriptedServer(), Traced()
    server.replies = [Reply(pieces=[b'{"ok": true}'])]
    file = tmp_path / "proxy.toml"
    headers = {"authorization": f"Bearer {KEY}"} | client.headers
    with serve(server.app) as url:
        table = f'[endpoints.lb]\nkind = "load-balancing"\nurl = "{url}"\n'
        file.write_text(table + '[models.m]\nendpoint = "lb"\n')
        app = create_app(settings_for(scripted_runpod[1], config=file), traces=Traces())
        with serve(app) as proxy:
            assert httpx.post(proxy + CHAT, json=chat(), headers=headers, timeout=30).is_success
    (span,) = receiver.of(client.trace_id)
    told = server.requests[-1]["headers"]["traceparent"].split("-")
    assert (span.parent_id, told[1:3]) == (client.id, [client.trace_id, span.id])


@pytest.fixture
def start(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> Iterator[Callable[[], Proxy]]:
    """Starts a proxy in a process of its own, with the environment as it is then."""
    started: list[Proxy] = []

    def proxy() -> Proxy:
        runpod.script = [Page("COMPLETED", FRAMES)]
        started.append(Proxy(scripted_runpod[1], state_dir=tmp_path))
        return started[-1]

    yield proxy
    for one in started:
        one.close()


@pytest.mark.slow
def test_a_proxy_that_stops_sends_its_last_spans(
    start: Callable[[], Proxy],
    receiver: Receiver,
    variables: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "the-one-that-stops")
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # which makes no spans beside ours
    proxy, clients = start(), [Traced() for _ in range(20)]
    for client in clients:
        assert proxy.client.post(CHAT, json=chat(), headers=client.headers).status_code == 200
    assert not {span.trace_id for span in receiver.spans} & {one.trace_id for one in clients}
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(timeout=60) == 0
    theirs = [span for span in receiver.spans if "that-stops" in span.resource["service.name"]]
    sent = [(span.trace_id, span.name) for span in theirs]
    expected = [(one.trace_id, name) for one in clients for name in ("chat m", "runpod.queue")]
    assert sorted(sent) == sorted(expected)
    assert set(receiver.paths) == {"/v1/traces"}


@pytest.mark.slow
@pytest.mark.parametrize("collector", ["is gone", "hangs"])
def test_a_collector_that_is_away_costs_no_request_and_keeps_no_proxy_from_stopping(
    start: Callable[[], Proxy],
    variables: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    collector: str,
) -> None:
    with receiving() as receiver:
        receiver.is_held.set()
        away = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", away if collector == "is gone" else receiver.url
        )
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
        proxy = start()
        for _ in range(40):
            assert proxy.client.post(CHAT, json=chat(stream=True)).status_code == 200
        if collector == "hangs":
            wait_until(lambda: receiver.asked > 0)
        began = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(timeout=60) == 0
        assert time.monotonic() - began < 25  # OpenTelemetry's SDK alone would wait for 30
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("Failed to export") <= 1


@pytest.mark.slow
def test_that_a_collector_is_away_is_said_once_and_that_it_is_back(
    receiver: Receiver,
    traced: httpx.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.status = 400
    try:
        with caplog.at_level("INFO"):
            asked = receiver.asked
            for count in range(1, 4):
                traced.post(CHAT, json=chat())
                wait_until(lambda count=count: receiver.asked >= asked + count)  # type: ignore[misc]
            receiver.status = 200
            traced.post(CHAT, json=chat())
            wait_until(lambda: "traces are sent again" in caplog.text)
    finally:
        receiver.status = 200
    assert caplog.text.count("Failed to export") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "is_loaded"),
    [
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
    ids=str,
)
def test_where_no_traces_are_made_nothing_for_them_is_loaded(
    tmp_path: Path, given: dict[str, str], is_loaded: bool
) -> None:
    program = (
        "import sys, proxy.__main__ as command\n"
        "theirs = 'opentelemetry.sdk', 'opentelemetry.exporter', 'google.protobuf', 'requests'\n"
        "command.Server.run = lambda *_: print(*(one in sys.modules for one in theirs))\n"
        "command.main()"
    )
    enough = {
        "RUNPOD_API_KEY": "rp",
        "RUNPOD_ENDPOINT_ID": "ep",
        "PROXY_API_KEYS": KEY,
        "PROXY_PORT": "0",
        "PROXY_STATE_DIR": str(tmp_path),
    }
    inherited = {n: value for n, value in os.environ.items() if not n.startswith("OTEL_")}
    ended = subprocess.run(
        [sys.executable, "-c", program, "--env-file", os.devnull],
        env=inherited | enough | given,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert set(ended.stdout.split()) == {str(is_loaded)}, ended.stderr
