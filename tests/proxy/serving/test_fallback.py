"""A model that fails before its first byte, or is too slow, is answered by its fallback."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from proxy.app import create_app
from proxy.backends.relay import address
from proxy.serving.fallback import MAX_ERROR_BYTES
from tests.proxy.conftest import KEY, asked, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, FRAMES, event, last_error, stream
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import WORKER, Reply, ScriptedServer
from tests.proxy.serving.test_shield import TITLE
from tests.proxy.test_metrics import value
from tests.servers import serve
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
SSE = "text/event-stream"
CONFIG = """
[endpoints.gpu]
[endpoints.spare]
[models.m]
endpoint = "gpu"
fallback = {{ url = "{url}{path}", model = "cloud-model", api_key_env = "CLOUD_KEY" }}
[models.hasty]
endpoint = "gpu"
fallback = {{ url = "{url}{path}", model = "cloud-model", api_key_env = "CLOUD_KEY" }}
fallback_after_seconds = 1
[models.n]
endpoint = "gpu"
fallback = "o"
[endpoints.lb]
kind = "load-balancing"
url = "{url}"
[models.p]
endpoint = "lb"
fallback = "o"
[models.o]
endpoint = "spare"
fallback = "n"
"""
PLAIN = {"seq": 0, "status": 200, "content_type": "application/json", "text": "1", "end": True}
TOO_MANY = {"status": "FAILED", "error": str({"message": "", "code": 429})}
CLOUD = Reply(200, [b'{"from": "the cloud"}'], headers={})


@pytest.fixture
def cloud() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def client(
    request: pytest.FixtureRequest,
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    cloud: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[httpx.Client]:
    monkeypatch.setenv("CLOUD_KEY", "sk-cloud")
    cloud.replies = [CLOUD]
    with ExitStack() as stack:
        path = tmp_path / "proxy.toml"
        changes = dict(getattr(request, "param", {}))
        base_path = changes.pop("path", "/v1")
        url = stack.enter_context(serve(cloud.app))
        path.write_text(CONFIG.format(url=url, path=base_path))
        app = create_app(settings_for(scripted_runpod[1], config=path, **changes))
        url = stack.enter_context(serve(app))
        headers = {"authorization": f"Bearer {KEY}"}
        yield stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=30))


def test_a_model_that_answers_is_not_replaced(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    assert client.post(CHAT, json=chat()).text == "1"
    assert cloud.requests == []


@pytest.mark.parametrize(
    ("model", "run_answers", "script", "final"),
    [
        ("m", [Response(status_code=401)], [], None),
        ("m", [Response(status_code=500)], [], None),
        ("m", [], [Page("FAILED")], {"status": "FAILED", "error": "job timed out after 1 retries"}),
        ("m", [], [Page("COMPLETED")], {"status": "COMPLETED"}),
        ("m", [], [Page("COMPLETED", [PLAIN | {"status": 503}])], None),
        ("m", [], [Page("COMPLETED", [PLAIN | {"status": 429}])], None),
        ("m", [], [Page("FAILED")], TOO_MANY),
        ("hasty", [], [Page("IN_QUEUE")], None),
        ("hasty", [], [Page("IN_PROGRESS")], None),
    ],
)
def test_a_model_that_fails_or_is_too_cold_is_answered_by_the_cloud(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    cloud: ScriptedServer,
    model: str,
    run_answers: list[Response],
    script: list[Page],
    final: dict[str, Any] | None,
) -> None:
    runpod.run_answers, runpod.script, runpod.final = run_answers, script, final
    response = client.post(CHAT, json=chat(model=model, x=[1.50]))
    assert (response.status_code, response.json()) == (200, {"from": "the cloud"})
    (request,) = cloud.requests
    assert request["path"] == CHAT
    assert request["headers"]["authorization"] == "Bearer sk-cloud"
    assert httpx.Response(200, content=request["body"]).json()["model"] == "cloud-model"
    if model == "hasty":
        wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.parametrize(
    ("url", "target", "wanted"),
    [
        ("http://h", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h:8000/v1", "/v1/chat/completions", "http://h:8000/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/api/v1", "/v1/models", "http://h/api/v1/models"),
        (
            "http://h/v1beta/openai",
            "/v1/chat/completions",
            "http://h/v1beta/openai/chat/completions",
        ),
        ("http://h/v1beta/openai/", "/v1/embeddings", "http://h/v1beta/openai/embeddings"),
        ("http://h/api/paas/v4", "/v1/chat/completions", "http://h/api/paas/v4/chat/completions"),
        (
            "http://h/v1/openai",
            "/v1/responses/r?stream=true",
            "http://h/v1/openai/responses/r?stream=true",
        ),
        ("http://h/v1", "/tokenize", "http://h/tokenize"),
        ("http://h", "/rerank", "http://h/rerank"),
        ("http://h/openai", "/v2/embed", "http://h/openai/v2/embed"),
    ],
)
def test_a_base_url_with_a_path_is_the_base(url: str, target: str, wanted: str) -> None:
    assert address(url, target, is_base=True) == wanted


@pytest.mark.parametrize("url", ["http://h/lb/ep", "http://h/lb/ep/", "http://h/lb/ep/v1"])
def test_the_url_of_a_load_balancing_endpoint_is_where_its_routes_begin(url: str) -> None:
    assert address(url, "/v1/models", is_base=False) == "http://h/lb/ep/v1/models"


@pytest.mark.parametrize("client", [{"path": "/v1beta/openai"}], indirect=True)
def test_a_fallback_is_asked_below_its_base_url(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": "boom"}
    assert client.post(CHAT, json=chat()).json() == {"from": "the cloud"}
    assert cloud.requests[0]["path"] == "/v1beta/openai/chat/completions"


@pytest.mark.slow
def test_a_stream_is_taken_over_before_its_first_byte_only(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    cloud.replies = [Reply(200, [BODY.encode()], headers={}, content_type=SSE)]
    runpod.script = [Page("IN_QUEUE")]
    assert stream(client, model="hasty") == (200, BODY)
    runpod.reset()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("FAILED")]
    _, text = stream(client)
    assert text.startswith(event("Grüße "))
    assert last_error(text)["code"] == "worker_failed"
    assert len(cloud.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
def test_what_is_wrong_with_the_request_is_not_asked_twice(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer, status: int
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | {"status": status}])]
    assert client.post(CHAT, json=chat()).status_code == status
    assert cloud.requests == []


def test_what_runpods_worker_says_is_wrong_is_not_asked_twice(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    error = {"message": "no such thing", "type": "NotFoundError", "code": 404}
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": str(error)}
    assert client.post(CHAT, json=chat()).status_code == 404
    assert cloud.requests == []


def test_a_server_that_answers_with_an_error_is_hung_up_on(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    cloud.replies = [Reply(500, [b"{", b"}"], WORKER, hold=threading.Event())]
    runpod.scripts = {"spare": [Page("COMPLETED", [PLAIN])]}
    assert client.post(CHAT, json=chat(model="p")).text == "1"
    assert len(cloud.requests) == 1
    wait_until(lambda: cloud.open == 0)


BUSY = '{"error": {"message": "engine died", "code": %d}}'


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_error_with_a_good_status_is_answered_by_the_fallback(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer, is_stream: bool
) -> None:
    cloud.replies = [Reply(200, [(BUSY % 503).encode()])]
    runpod.scripts = {"spare": [Page("COMPLETED", [PLAIN])]}
    assert client.post(CHAT, json=chat(model="p", stream=is_stream)).text == "1"
    cloud.replies.append(CLOUD)
    runpod.script = [Page("COMPLETED", [PLAIN | {"text": BUSY % 503}])]
    answer = client.post(CHAT, json=chat(model="m", stream=is_stream))
    assert answer.json() == {"from": "the cloud"}


def test_a_small_answer_that_breaks_off_is_answered_by_the_fallback(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    cloud.replies = [Reply(200, [b'{"x": '], breaks=True)]
    runpod.scripts = {"spare": [Page("COMPLETED", [PLAIN])]}
    assert client.post(CHAT, json=chat(model="p")).text == "1"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (BUSY % 400, 400),
        ('{"object": "response", "error": {"code": 503}}', 200),
        ('{"x": "' + "y" * 3 * MAX_ERROR_BYTES + '"}', 200),
        ('{"x": "' + "y" * 2 * 2**20 + '"}', 200),
        ("", 200),
    ],
)
def test_any_other_answer_with_a_good_status_is_passed_on_whole(
    client: httpx.Client, cloud: ScriptedServer, body: str, status: int
) -> None:
    third = len(body) // 3
    pieces = [body[:third].encode(), body[third:].encode()]
    sent = threading.Event()
    sent.set()
    cloud.replies = [Reply(200, pieces, WORKER, hold=sent)]
    answer = client.post(CHAT, json=chat(model="p"))
    assert (answer.status_code, answer.text) == (status, body)
    assert len(cloud.requests) == 1


@pytest.mark.slow
def test_a_caller_who_will_not_wait_gets_the_fallback(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    runpod.scripts = {"spare": [Page("COMPLETED", [PLAIN])]}
    headers = {"x-cold-start-timeout": "0.2"}
    response = client.post(CHAT, json=chat(model="n"), headers=headers)
    assert (response.status_code, response.text) == (200, "1")
    assert runpod.endpoints == ["gpu", "spare"]


def test_a_fallback_has_no_fallback(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": "boom"}
    response = client.post(CHAT, json=chat(model="n"))
    assert (response.status_code, error_of(response)["code"]) == (502, "worker_failed")
    assert runpod.endpoints == ["gpu", "spare"]


def test_an_endpoint_known_to_be_broken_is_not_even_asked(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    runpod.workers = {"unhealthy": 2}

    def state() -> str:
        return str(client.get("/v1/models/m").json()["state"])

    wait_until(lambda: state() == "unhealthy")
    assert client.post(CHAT, json=chat()).json() == {"from": "the cloud"}
    assert runpod.jobs == []


def test_an_endpoint_whose_start_failed_is_answered_for_and_not_asked_again(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    error = str({"message": "Lower it.", "type": "startup_error", "code": None})
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": error}
    for _ in range(3):
        assert client.post(CHAT, json=chat()).json() == {"from": "the cloud"}
    assert len(runpod.jobs) == 1
    entry = client.get("/v1/models/m").json()
    assert entry["state"] == "unhealthy"
    assert "Lower it." in entry["state_reason"]


@pytest.mark.slow
def test_an_endpoint_that_is_well_again_is_asked_again_though_nobody_lists_it(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    cloud: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.backends.health_monitor.WANTED_SECONDS", 1.0)
    monkeypatch.setattr("proxy.backends.health_monitor.LOOK_SECONDS", 0.1)
    runpod.workers, runpod.script = {"unhealthy": 2}, [Page("COMPLETED", [PLAIN])]
    wait_until(lambda: client.get("/v1/models/m").json()["state"] == "unhealthy")
    looks = 0
    while looks < runpod.looks["gpu"]:  # until nobody looks any more
        looks = runpod.looks["gpu"]
        time.sleep(1.5)
    runpod.workers = {}
    wait_until(lambda: client.post(CHAT, json=chat()).text == "1")


@pytest.mark.parametrize("client", [{"wake_shield": True}], indirect=True)
def test_a_uis_own_request_goes_to_the_fallback_while_the_gpu_sleeps(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    own = [{"role": "user", "content": TITLE}]
    assert client.post(CHAT, json=chat(messages=own)).json() == {"from": "the cloud"}
    assert len(cloud.requests) == 1
    assert value(client, "proxy_fallbacks_total", model="m") == 1
    # The fallback of this one is an endpoint that sleeps as well.
    answer = client.post(CHAT, json=chat(model="n", messages=own)).json()
    assert "title" in answer["choices"][0]["message"]["content"]
    assert runpod.jobs == []


@pytest.mark.slow
def test_a_client_that_leaves_the_fallback_closes_that_too(
    client: httpx.Client, runpod: ScriptedRunPod, cloud: ScriptedServer
) -> None:
    pieces = [event("a").encode(), event("b").encode()]
    cloud.replies = [Reply(200, pieces, {}, SSE, hold=threading.Event())]
    runpod.script = [Page("IN_QUEUE")]
    with asked(client, model="hasty", stream=True):
        wait_until(lambda: cloud.open == 1)
    wait_until(lambda: cloud.open == 0)
