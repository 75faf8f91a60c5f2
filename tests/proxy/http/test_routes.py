"""Every route of the allow-list reaches the worker, and nothing else does."""

import base64
import http.client
import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from starlette.routing import BaseRoute, Route

from proxy.api.route_table import ROUTES
from proxy.app import create_app
from proxy.serving.sharing import Sharing
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import without_comments
from tests.proxy.scripted_runpod import Fault, Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

BODY = '{"object": "list",  "data": [1e-7, "🌍"]}'
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": BODY, "end": True}
PATHS = [route.split(" ")[1] for route in ROUTES if route.startswith("POST") and "{" not in route]


def body_for(path: str) -> dict[str, Any]:
    """As much of a body as each route has to have."""
    if path in ("/v1/chat/completions", "/v1/messages"):
        return chat(extra={"deep": [1, 2.50]})
    return {"model": "m", "prompt": "hi", "input": "hi", "extra": {"deep": [1, 2.50]}}


@pytest.mark.parametrize("path", PATHS)
def test_a_json_route_reaches_the_worker_and_its_answer_the_client(
    client: httpx.Client, runpod: ScriptedRunPod, path: str
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    response = client.post(path, json=body_for(path))
    assert (response.status_code, response.text) == (200, BODY)
    assert runpod.jobs[0]["input"]["openai_route"] == path
    assert runpod.jobs[0]["input"]["openai_input"] == body_for(path)


@pytest.mark.parametrize("path", ["/tokenize", "/pooling", "/v1/responses", "/v1/rerank"])
def test_a_route_whose_clients_need_not_name_a_model_gets_the_only_one(
    client: httpx.Client, runpod: ScriptedRunPod, path: str
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert client.post(path, json={"prompt": "hi"}).status_code == 200
    assert runpod.jobs[0]["input"]["openai_input"] == {"model": "m", "prompt": "hi"}


def test_a_stored_response_is_read_and_cancelled_without_a_body(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    made = Page("COMPLETED", [FRAME | {"text": '{"id":"resp_1"}'}])
    runpod.scripts["ep"] = [made, *(Page("COMPLETED", [FRAME]) for _ in range(2))]
    client.post("/v1/responses", json={"model": "m", "input": "hi"})
    assert client.get("/v1/responses/resp_1?starting_after=3").status_code == 200
    assert runpod.jobs[1]["input"]["route"] == "/v1/responses/resp_1?starting_after=3"
    assert runpod.jobs[1]["input"]["method"] == "GET"
    assert client.post("/v1/responses/resp_1/cancel").status_code == 200
    assert runpod.jobs[2]["input"]["route"] == "/v1/responses/resp_1/cancel"
    assert runpod.jobs[2]["input"]["method"] == "POST"


def test_an_upload_reaches_the_worker_byte_for_byte(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    audio = bytes(range(256)) * 40
    request = client.build_request(
        "POST",
        "/v1/audio/transcriptions",
        data={"model": "m", "language": "de"},
        files={"file": ("ü.wav", audio, "audio/wav")},
    )
    sent = request.read()
    assert client.send(request).status_code == 200
    job_input = runpod.jobs[0]["input"]
    assert base64.b64decode(job_input["body_base64"]) == sent
    assert job_input["content_type"] == request.headers["content-type"]
    assert (job_input["route"], job_input["method"]) == ("/v1/audio/transcriptions", "POST")


def test_bytes_that_are_no_text_reach_the_client(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    sound = bytes(range(256)) * 10
    half = len(sound) // 2 + 1
    frames = [
        {"seq": 0, "status": 200, "content_type": "audio/mpeg"},
        {"seq": 1, "base64": base64.b64encode(sound[:half]).decode()},
        {"seq": 2, "base64": base64.b64encode(sound[half:]).decode(), "end": True},
    ]
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in frames]
    response = client.post("/v1/audio/speech", json={"model": "m", "input": "hi", "voice": "x"})
    assert (response.content, response.headers["content-type"]) == (sound, "audio/mpeg")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/../chat/completions",
        "/v1/%2e%2e/v1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions%00",
        "/v1/responses/..",
        "/v1/responses/a%2F..%2Fb",
        "/v1/responses/a%20b",
        "/http://evil.example/v1/chat/completions",
        "/sleep",
        "/v1/load_lora_adapter",
        "/collective_rpc",
        "/invocations",
        "/metrics/../tokenize",
        "/V1/chat/completions",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_outside_the_list_never_becomes_a_job(
    proxy_url: str, runpod: ScriptedRunPod, path: str, method: str
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    response = raw_request(proxy_url, method, path)
    assert response.status_code in (404, 405)
    codes = ("unknown_url", "model_not_found", "method_not_allowed")
    assert error_of(response)["code"] in codes
    assert runpod.jobs == []


def test_a_stored_responses_head_alone_is_no_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    response = client.head("/v1/responses/resp_1")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert runpod.jobs == []


def raw_request(url: str, method: str, path: str) -> httpx.Response:
    """A request whose path no client library has tidied up."""
    connection = http.client.HTTPConnection(httpx.URL(url).netloc.decode(), timeout=30)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request(method, path, json.dumps(chat()), headers)
    answer = connection.getresponse()
    response = httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
    connection.close()
    return response


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions/",
        "/chat/completions",
        "/v1/v1/chat/completions",
    ],
)
def test_a_base_url_with_a_slash_too_many_or_v1_twice_or_not_at_all_is_forgiven(
    proxy_url: str, runpod: ScriptedRunPod, path: str
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert raw_request(proxy_url, "POST", path).status_code == 200
    assert runpod.jobs[0]["input"]["openai_route"] == "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/models", "/v1/models/", "/v1//models", "/models/m"])
def test_the_list_of_models_is_found_by_any_of_these(client: httpx.Client, path: str) -> None:
    assert "m" in client.get(path).text


@pytest.mark.parametrize("settings", [{"routes": "POST /tokenize,GET /version"}], indirect=True)
def test_the_list_is_a_setting(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert client.post("/v1/chat/completions", json=chat()).status_code == 404
    assert client.get("/version").status_code == 200
    assert [job["input"]["route"] for job in runpod.jobs] == ["/version"]


@pytest.fixture
def claude(proxy_url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=proxy_url, api_key=KEY, max_retries=0)


ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hi"}],
}


def test_anthropics_client_gets_anthropics_errors(
    claude: anthropic.Anthropic, runpod: ScriptedRunPod
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(**ASKED | {"model": "other"})
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert caught.value.type == "not_found_error"
    assert "'other' does not exist" in body["error"]["message"]
    with pytest.raises(anthropic.AuthenticationError) as refused:
        claude.with_options(api_key="wrong").messages.create(**ASKED)
    assert refused.value.type == "authentication_error"
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.create(**ASKED | {"messages": []})
    assert wrong.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.count_tokens(model="other", messages=ASKED["messages"])
    body = caught.value.body
    assert body["type"] == "error"
    assert runpod.jobs == []


def event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 0},
    },
)
HEAD = {"seq": 0, "status": 200, "content_type": "text/event-stream"}


@pytest.mark.usefixtures("believed_at_once")
def test_anthropics_client_raises_for_a_stream_that_breaks_off(
    claude: anthropic.Anthropic, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": START}]), Fault(404)]
    stream = claude.messages.create(**ASKED, stream=True)
    events = iter(stream)
    assert next(events).type == "message_start"
    with pytest.raises(anthropic.APIStatusError, match="RunPod") as broken:
        next(events)
    assert broken.value.type == "api_error"


def test_anthropics_client_is_told_that_no_worker_could_be_had(
    claude: anthropic.Anthropic, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    with pytest.raises(anthropic.InternalServerError) as caught:
        claude.messages.create(**ASKED, extra_headers={"x-cold-start-timeout": "0.1"})
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")


def test_what_nobody_caught_has_anthropics_form_on_its_routes(
    claude: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Sharing, "share", breaks)
    with pytest.raises(anthropic.InternalServerError) as caught:
        claude.messages.create(**ASKED)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert (caught.value.status_code, caught.value.type) == (500, "api_error")


@pytest.mark.parametrize("settings", [{"keep_alive_mode": "chunk"}], indirect=True)
def test_anthropics_streams_are_kept_alive_with_pings(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    with client.stream("POST", "/v1/messages", json=ASKED | {"stream": True}) as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b'event: ping\ndata: {"type": "ping"}\n\n'


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/messages", event("message_stop")),
        ("/v1/responses", event("response.completed", response={})),
    ],
)
def test_a_stream_without_numbers_or_done_ends_with_its_own_last_event(
    client: httpx.Client, runpod: ScriptedRunPod, path: str, last: str
) -> None:
    text = event("first") + event("second") + last
    pieces = [text[i : i + 9] for i in range(0, len(text), 9)]
    runpod.script = [Page("IN_PROGRESS", [piece]) for piece in pieces] + [Page("COMPLETED")]
    body = ASKED | {"stream": True, "input": "hi"}
    assert without_comments(client.post(path, json=body).text) == text


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_every_route_of_anthropics_api_has_its_form_of_errors(
    client: httpx.Client, path: str
) -> None:
    refused = client.post(path, json=ASKED | {"model": "other"})
    assert (refused.status_code, refused.json()["type"]) == (404, "error")


def test_no_path_can_write_a_line_of_its_own_into_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "proxy.access"):
        client.get("/v1/models/a%0A2026 INFO proxy.access: forged%1B[2J%E2%80%A8")
        wait_until(lambda: "/v1/models/a" in caplog.text)
    (said,) = [r.getMessage() for r in caplog.records if "/v1/models/a" in r.getMessage()]
    assert said.isprintable()


PUBLIC = {"/health", "/ready", "/openapi.json", "/", "/v1", "/page/x"}


def all_routes(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from all_routes(route.original_router.routes)  # type: ignore[attr-defined]


def test_every_route_but_the_public_ones_needs_a_key(
    scripted_runpod: tuple[ScriptedRunPod, str],
) -> None:
    app = create_app(settings_for(scripted_runpod[1]))
    asked, open_to_all = 0, set[str]()
    with serve(app) as url, httpx.Client(base_url=url) as stranger:
        for route in all_routes(app.routes):
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            for method in route.methods or ():
                asked += 1
                answer = stranger.request(method, path)
                if answer.status_code != 401:
                    open_to_all.add(path)
                elif method != "HEAD":
                    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert asked > len(ROUTES)
    assert open_to_all == PUBLIC
