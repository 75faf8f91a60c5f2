"""Plain answers: errors in the envelope whatever the server says; large ones as they come."""

import threading
import tracemalloc
from typing import Any

import httpx
import openai
import pytest

from proxy.http.plain import MAX_WHOLE_BYTES
from tests.proxy.backends.test_relay import Start, server, server_at, start
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import CHAT, last_error
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import WORKER, Reply, ScriptedServer
from tests.waiting import wait_until

__all__ = ["server", "server_at", "start"]

NO_ERRORS = [
    (500, "text/plain", "Internal Server Error", "Internal Server Error"),
    (500, "text/plain", "", "The model's server answered HTTP 500 and no reason."),
    (502, "text/html", "<html>Bad gateway</html>", "The model's server answered HTTP 502"),
    (
        422,
        "application/json",
        '{"detail":[{"loc":["body"],"msg":"Field required"}]}',
        "Field requi",
    ),
    (400, "application/json", '{"detail":"no"}', "no"),
    (400, "application/json", '{"error":"bad input"}', "bad input"),
    (
        401,
        "application/json",
        '{"status":401,"title":"Unauthorized","detail":"no token"}',
        "no token",
    ),
    (400, "application/json", "[1]", "The model's server answered HTTP 400"),
    (400, "application/json", '"said"', "said"),
    (500, "application/json", '{"error": {"message": null}}', "The model's server answered"),
    (500, "application/json", '{"error": {"code": 5}}', "The model's server answered"),
    (405, "text/plain", "Method Not Allowed", "does not serve"),
    (404, "application/json", '{"detail":"Not Found"}', "does not serve"),
    (404, "text/plain", "404 page not found", "does not serve"),
]


def frame(status: int, content_type: str, text: str) -> dict[str, Any]:
    head = {"seq": 0, "status": status, "content_type": content_type}
    return head | {"text": text, "end": True}


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize(("status", "content_type", "text", "message"), NO_ERRORS)
def test_what_is_no_error_of_vllms_is_put_in_the_envelope(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    path: str,
    status: int,
    content_type: str,
    text: str,
    message: str,
) -> None:
    runpod.script = [Page("COMPLETED", [frame(status, content_type, text)])]
    response = client.post(path, json=chat(input="hi", max_tokens=5))
    error = response.json()["error"]
    assert message in error["message"]
    assert "<html>" not in response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-should-retry"] == "false"
    assert ("type" in response.json()) == (path == "/v1/messages")
    if message == "does not serve":
        assert (response.status_code, error["code"]) == (404, "route_not_served")
        assert f"The model 'm' does not serve POST {path}." == error["message"]
    else:
        assert response.status_code == status


@pytest.mark.parametrize(("status", "content_type", "text", "message"), NO_ERRORS)
def test_after_a_keep_alive_it_is_an_error_event(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    status: int,
    content_type: str,
    text: str,
    message: str,
) -> None:
    hold = threading.Event()
    runpod.script = [Page("COMPLETED", [frame(status, content_type, text)], hold=hold)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        hold.set()
        told = response.read().decode()
    assert message in last_error(told)["message"]


def test_a_route_that_a_load_balanced_worker_lacks_is_told_in_words(
    start: Start, server: ScriptedServer
) -> None:
    server.replies = [Reply(404, [b'{"detail":"Not Found"}'])]
    with start() as client:
        response = client.post("/v1/embeddings", json={"model": "m", "input": "hi"})
    assert (response.status_code, error_of(response)["code"]) == (404, "route_not_served")
    assert error_of(response)["message"] == "The model 'm' does not serve POST /v1/embeddings."


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "/tokenize",
        "/v1/embeddings",
        "/v1/score",
        "/pooling",
        "/rerank",
        "/v1/messages/count_tokens",
    ],
)
def test_stream_means_nothing_on_a_route_that_never_streams(
    client: httpx.Client, runpod: ScriptedRunPod, path: str, is_slow: bool
) -> None:
    hold = threading.Event()
    done = frame(200, "application/json", '{"x": 1}')
    runpod.script = [Page("COMPLETED", [done], hold=hold)]
    threading.Timer(0.8 if is_slow else 0, hold.set).start()
    response = client.post(path, json=chat(stream=True, input="hi", prompt="hi"))
    assert (response.json(), response.headers["content-type"]) == ({"x": 1}, "application/json")


REFUSED = '{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}'
ERRORS_OF_200 = [
    (REFUSED, 400, "too long"),
    (
        '{"object": "error", "message": "no such", "type": "NotFoundError", "code": 404}',
        404,
        "no s",
    ),
    ('{"type":"error","error":{"type":"overloaded_error","message":"busy"}}', 502, "busy"),
    ('{"error": {"message": "odd", "code": true}}', 502, "odd"),
    ('{"error": "failed"}', 502, "failed"),
]


@pytest.mark.parametrize(("body", "status", "message"), ERRORS_OF_200)
def test_an_error_with_a_good_status_is_an_error(
    start: Start, server: ScriptedServer, body: str, status: int, message: str
) -> None:
    server.replies = [Reply(200, [body.encode()])]
    with start(first_byte_hold_seconds=20) as client:
        for path in (CHAT, "/v1/responses", "/v1/messages", "/v1/embeddings"):
            for wants_stream in (False, True):
                sent = chat(stream=wants_stream, input="hi", max_tokens=5)
                answer = client.post(path, json=sent)
                assert (answer.status_code, answer.headers["x-should-retry"]) == (status, "false")
                assert message in answer.text
        counted = f'model="m",outcome="vllm_error",status="{status}"}} 8.0'
        assert counted in client.get("/metrics").text


def test_one_that_comes_after_a_keep_alive_is_an_error_event(
    start: Start, server: ScriptedServer
) -> None:
    hold = threading.Event()
    server.replies = [Reply(200, [REFUSED.encode()], head_hold=hold)]
    with (
        start() as client,
        client.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        hold.set()
        told = response.read().decode()
    assert last_error(told)["message"] == "too long"
    assert "[DONE]" not in told


@pytest.mark.parametrize(
    "body",
    [
        '{"object": "response", "status": "failed", "error": {"code": "server_error"}}',
        '{"object": "response", "error": null}',
        '{"choices": [{"message": {"content": "\\"error\\": {}"}}]}',
        '{"data": [{"error": {"code": 400}}]}',
        '[{"error": "x"}]',
        'no "error"',
    ],
)
def test_a_result_that_speaks_of_an_error_is_a_result(
    start: Start, server: ScriptedServer, body: str
) -> None:
    server.replies = [Reply(200, [body.encode()])]
    with start() as client:
        answer = client.post("/v1/responses", json={"model": "m", "input": "hi"})
    assert (answer.status_code, answer.text) == (200, body)


@pytest.mark.parametrize(("status", "told"), [(429, "false"), (500, "true")])
def test_what_a_server_says_of_a_repetition_is_handed_on(
    start: Start, server: ScriptedServer, status: int, told: str
) -> None:
    server.replies = [Reply(status, [b"{}"], headers=WORKER | {"x-should-retry": told})]
    with start() as client:
        assert client.post(CHAT, json=chat()).headers["x-should-retry"] == told


LIMITED = {
    "retry-after": "7",
    "retry-after-ms": "6500",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-tokens": "6m0s",
}


def test_a_server_that_limits_its_clients_may_be_asked_again(
    start: Start, server: ScriptedServer
) -> None:
    body = b'{"error": {"message": "slow down", "type": "requests", "code": "rate_limit"}}'
    server.replies = [Reply(429, [body], headers=WORKER | LIMITED | {"x-other": "1"})]
    with start() as client:
        response = client.post(CHAT, json=chat())
    assert (response.status_code, response.content) == (429, body)
    assert LIMITED.items() <= dict(response.headers).items()
    assert "x-should-retry" not in response.headers
    assert "x-other" not in response.headers


def test_the_sdk_repeats_what_such_a_server_refused(start: Start, server: ScriptedServer) -> None:
    done = Reply(200, [b'{"id": "1", "object": "chat.completion", "choices": []}'])
    server.replies = [Reply(429, [b"{}"], headers=WORKER | {"retry-after-ms": "1"}), done]
    with (
        start() as client,
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=1) as sdk,
    ):
        assert sdk.chat.completions.create(**chat()).id == "1"
    assert len(server.requests) == 2


METADATA = '{"data": [{"index": 0, "start": 0, "end": 16, "shape": [4]}]}'


def test_what_bytes_mean_is_told_in_vllms_header(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    head = {"seq": 0, "status": 200, "content_type": "application/octet-stream"}
    headers = {"Metadata": METADATA, "Location": "/x", "Set-Cookie": "a=b"}
    runpod.script = [
        Page("COMPLETED", [head | {"headers": headers, "base64": "AA==", "end": True}])
    ]
    response = client.post("/v1/embeddings", json=chat(input="hi", encoding_format="bytes"))
    assert (response.content, response.headers["metadata"]) == (b"\0", METADATA)
    assert not {"location", "set-cookie"} & set(response.headers)


def test_it_is_told_by_a_load_balanced_worker_too(start: Start, server: ScriptedServer) -> None:
    server.replies = [
        Reply(200, [b"\0"], WORKER | {"metadata": METADATA}, "application/octet-stream")
    ]
    with start() as client:
        response = client.post("/pooling", json={"model": "m", "input": "hi"})
    assert (response.content, response.headers["metadata"]) == (b"\0", METADATA)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("https://other.test/v1/chat/completions", "https://other.test/v1/chat/completions"),
        ("/v1/chat/completions/", "{url}/v1/chat/completions/"),
    ],
)
def test_a_redirect_is_handed_on_and_never_followed_with_the_key(
    start: Start, server_at: tuple[ScriptedServer, str], status: int, location: str, wanted: str
) -> None:
    server, url = server_at
    server.replies = [Reply(status, [b"moved"], headers=WORKER | {"location": location})]
    with start() as client:
        response = client.post(CHAT, json=chat())
        counted = f'model="m",outcome="failed",status="{status}"}} 1.0'
        wait_until(lambda: counted in client.get("/metrics").text)
    assert (response.status_code, response.headers["location"]) == (status, wanted.format(url=url))
    assert len(server.requests) == 1


def test_a_large_answer_of_a_queue_goes_out_as_it_comes(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    part = "x" * 300_000
    frames = [frame(200, "application/json", part) | {"seq": n, "end": n == 7} for n in range(8)]
    runpod.script = [
        Page("IN_PROGRESS", frames[:6]),
        Page("COMPLETED", frames[6:], hold=hold),
    ]
    with client.stream("POST", CHAT, json=chat()) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
        assert response.headers["x-runpod-job-id"] == runpod.job_id
        pieces = response.iter_bytes()
        got = 0
        while got < 5 * len(part):
            got += len(next(pieces))
        hold.set()
        assert got + sum(map(len, pieces)) == 8 * len(part)


@pytest.mark.parametrize("size", [10, MAX_WHOLE_BYTES + 1])
def test_an_answer_that_breaks_is_an_error_while_it_is_small_and_never_a_whole_one(
    client: httpx.Client, runpod: ScriptedRunPod, size: int
) -> None:
    begun = frame(200, "application/json", "x" * size) | {"end": False}
    runpod.script = [Page("IN_PROGRESS", [begun]), Page("FAILED")]
    if size < MAX_WHOLE_BYTES:
        assert error_of(client.post(CHAT, json=chat()))["code"] == "worker_failed"
    else:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            client.post(CHAT, json=chat())


def test_a_client_that_leaves_a_large_answer_cancels_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    begun = frame(200, "application/json", "x" * (MAX_WHOLE_BYTES + 1)) | {"end": False}
    runpod.script = [Page("IN_PROGRESS", [begun]), Page("IN_PROGRESS", hold=threading.Event())]
    with client.stream("POST", CHAT, json=chat()) as response:
        pieces = response.iter_bytes()  # httpx closes the connection with this iterator
        next(pieces)
        assert runpod.cancelled == []
    wait_until(lambda: runpod.cancelled == [runpod.job_id])


@pytest.mark.slow
def test_a_large_answer_is_not_held_in_memory(start: Start, server: ScriptedServer) -> None:
    sent = threading.Event()
    sent.set()
    server.replies = [Reply(200, [b"x" * 2**20] * 100, hold=sent)]
    with start() as client:
        tracemalloc.start()
        try:
            with client.stream("POST", CHAT, json=chat()) as response:
                size = sum(map(len, response.iter_bytes()))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert size == 100 * 2**20
    assert peak < 50 * 2**20
