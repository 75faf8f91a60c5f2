"""A stored response exists for the key that made it, and is never looked for on a cold endpoint."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve

RESPONSES = "/v1/responses"
OTHER = {"authorization": "Bearer sk-other"}
HEAD = {"seq": 0, "status": 200, "end": True}
PLAIN = HEAD | {"content_type": "application/json"}
TWO_KEYS = pytest.mark.parametrize("settings", [{"api_keys": f"{KEY},sk-other"}], indirect=True)
CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/responses/resp_1", None),
    ("GET", "/v1/responses/resp_1?stream=true", None),
    ("POST", "/v1/responses/resp_1/cancel", None),
    ("POST", "/v1/responses/resp_1/cancel", {"model": "m"}),
    ("POST", RESPONSES, {"model": "m", "input": "on", "previous_response_id": "resp_1"}),
    ("POST", RESPONSES, {"input": "on", "previous_response_id": "resp_1", "stream": True}),
]
EVERY_CALL = pytest.mark.parametrize(("method", "path", "body"), CALLS)


@pytest.fixture
def awake(runpod: ScriptedRunPod) -> ScriptedRunPod:
    """An endpoint that has a worker up, from before the proxy looks at it first."""
    runpod.workers = {"ready": 1}
    return runpod


def make(client: httpx.Client, runpod: ScriptedRunPod, name: str = "resp_1", **fields: Any) -> None:
    """Make a response of this id, whose job is forgotten again."""
    response: dict[str, Any] = {"id": name, "object": "response"}
    frame = PLAIN | {"text": json.dumps(response)}
    if fields.get("stream"):
        event = {"response": response, "sequence_number": 0, "type": "response.created"}
        text = f"event: response.created\ndata: {json.dumps(event)}\n\nevent: response.completed\n"
        frame = HEAD | {"content_type": "text/event-stream", "text": text + "data: {}\n\n"}
    runpod.script = [Page("COMPLETED", [frame])]
    made = client.post(RESPONSES, json={"model": "m", "input": "hi"} | fields)
    assert name in made.text
    runpod.stream_calls = 0
    runpod.jobs.clear()


def is_not_found(answer: httpx.Response) -> bool:
    return answer.status_code == 404 and error_of(answer) == {
        "message": "Response with id 'resp_1' not found.",
        "type": "invalid_request_error",
        "param": "response_id",
        "code": "response_not_found",
    }


@TWO_KEYS
@pytest.mark.parametrize("stream", [False, True])
@EVERY_CALL
def test_another_keys_response_does_not_exist(
    awake: ScriptedRunPod,
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    method: str,
    path: str,
    body: Any,
    stream: bool,
) -> None:
    make(fresh_client, runpod, stream=stream)
    assert is_not_found(fresh_client.request(method, path, json=body, headers=OTHER))
    assert runpod.jobs == []
    assert fresh_client.request(method, path, json=body).status_code == 200
    assert len(runpod.jobs) == 1


@EVERY_CALL
def test_an_unknown_response_is_not_looked_for_on_a_cold_endpoint(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, method: str, path: str, body: Any
) -> None:
    runpod.workers = {"ready": 0, "initializing": 1}
    assert is_not_found(fresh_client.request(method, path, json=body))
    assert runpod.jobs == []


@EVERY_CALL
def test_an_unknown_response_is_asked_for_where_a_worker_is_up_and_one_key_is_all_there_is(
    awake: ScriptedRunPod,
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    method: str,
    path: str,
    body: Any,
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | {"text": "{}"}])]
    assert fresh_client.request(method, path, json=body).status_code == 200
    assert len(runpod.jobs) == 1


@TWO_KEYS
@EVERY_CALL
def test_an_unknown_response_may_be_another_keys(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, method: str, path: str, body: Any
) -> None:
    runpod.workers = {"ready": 1}
    assert is_not_found(fresh_client.request(method, path, json=body))
    assert runpod.jobs == []


@TWO_KEYS
def test_a_response_cannot_take_the_place_of_another_keys(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    make(fresh_client, runpod, "mine", request_id="mine")
    asked = {"model": "m", "input": "hi", "request_id": "mine"}
    refused = fresh_client.post(RESPONSES, json=asked, headers=OTHER)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "request_id")
    assert fresh_client.get("/v1/responses/mine", headers=OTHER).status_code == 404
    assert runpod.jobs == []
    assert fresh_client.get("/v1/responses/mine").status_code == 200
    runpod.stream_calls = 0
    assert fresh_client.post(RESPONSES, json=asked).status_code == 200


@pytest.mark.parametrize("value", [3, None, [], {}])
def test_what_is_no_id_is_left_to_vllm(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, value: Any
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | {"status": 400, "text": "{}"}])]
    body = {"model": "m", "input": "hi", "previous_response_id": value, "request_id": value}
    assert fresh_client.post(RESPONSES, json=body).status_code == 400
    assert len(runpod.jobs) == 1


def test_whose_a_response_is_is_not_forgotten_when_the_file_is_read_again(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text('[endpoints.one]\nid = "ep"\n[models.m]\nendpoint = "one"\n')
    changes = {"config": path, "runpod_endpoint_id": None, "models": ""}
    app = create_app(settings_for(scripted_runpod[1], **changes, api_keys=f"{KEY},sk-other"))
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        make(client, runpod)
        app.state.services.reload()
        assert client.get("/v1/responses/resp_1").status_code == 200
        assert client.get("/v1/responses/resp_1", headers=OTHER).status_code == 404
