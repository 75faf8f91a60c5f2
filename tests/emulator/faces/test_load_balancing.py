"""A load-balancing endpoint over HTTP: real workers, reached through the emulator.

Most tests serve the worker themselves, next to the emulator; those about starting and stopping
have the emulator start it.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from emulator.work import balancer
from tests.emulator.handlers.web import application
from tests.emulator.running import API_KEY, WEB, Client, Json, eventually, one_endpoint
from tests.leaving import call_to_leave
from tests.servers import free_port, serve

BY_HAND = "by-hand"


def settings(**changes: Any) -> Json:
    """A load-balancing endpoint whose workers are looked at often; `balancing` may be changed."""
    balancing = {"ping_interval_seconds": 0.05, **changes.pop("balancing", {})}
    return {"kind": "load-balancing", "balancing": balancing, **changes}


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """A worker may be slow to tell how it is, without passing for ill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balancer, "PING_TIMEOUT_SECONDS", 60.0)
        yield


@contextmanager
def served(**balancing: Any) -> Iterator[Client]:
    """An endpoint with one worker that is up, served by the test."""
    port = free_port()
    with (
        serve(application(), port=port),
        one_endpoint(**settings(env={"PORT": str(port)}, balancing=balancing)) as client,
    ):
        eventually(lambda: client.workers("ready") == 1)
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with served() as client:
        yield client


@contextmanager
def whose_worker_is(app: ASGIApp) -> Iterator[Client]:
    """An endpoint whose only worker is this application, served by the test and healthy."""
    port = free_port()
    wanted = settings(env={"PORT": str(port)})
    with serve(app, port=port), one_endpoint(**wanted) as client:
        eventually(lambda: client.workers("ready") == 1)
        yield client


# What is relayed


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_method_reaches_the_worker(client: Client, method: str) -> None:
    assert client.relayed("/v1/x", method).json()["method"] == method


def test_a_head_has_no_body(client: Client) -> None:
    answer = client.relayed("/bytes?n=7", "HEAD")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "7", b"")


@pytest.mark.parametrize(
    "path", ["/", "/v1/chat/completions", "//v1/x", "/a%2Fb/%C3%A9", "/v2/ep/run"]
)
def test_the_path_arrives_as_it_was_written(client: Client, path: str) -> None:
    assert client.relayed(path).json()["path"] == path


def test_the_query_arrives_as_it_was_written(client: Client) -> None:
    assert client.relayed("/echo?a=1&b=%20&a=2").json()["query"] == "a=1&b=%20&a=2"


def test_the_body_arrives_with_its_headers(client: Client) -> None:
    headers = {"content-type": "text/plain", "x-mine": "1"}
    seen = client.relayed("/echo", "POST", content=b"\x00\xffdata", headers=headers).json()
    assert seen["body"] == "\x00\xffdata"
    found = {name: value for name, value in seen["headers"] if name in (*headers, "content-length")}
    assert found == {**headers, "content-length": "6"}
    assert "transfer-encoding" not in dict(seen["headers"])


def test_nothing_is_added_to_a_call_without_a_body(client: Client) -> None:
    names = {name for name, _ in client.relayed("/echo").json()["headers"]}
    assert names <= {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "user-agent",
        "authorization",
    }


def test_the_workers_answer_comes_back_with_its_status_and_headers(client: Client) -> None:
    answer = client.relayed("/echo?status=418")
    assert (answer.status_code, answer.headers["x-of-worker"]) == (418, "yes")
    assert len(answer.headers.get_list("date")) == len(answer.headers.get_list("server")) == 1


def test_an_answer_names_its_worker(client: Client) -> None:
    assert client.relayed("/echo").headers["x-runpod-worker-id"] == BY_HAND


def test_an_answer_comes_as_the_worker_makes_it(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        gate.touch()
        assert list(pieces) == [b"last"]


def test_a_body_reaches_the_worker_as_the_client_sends_it(client: Client, tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    def body() -> Iterator[bytes]:
        yield b"early"
        eventually(seen.exists)
        yield b"late"

    answer = client.relayed(f"/first-piece?seen={seen}", "POST", content=body())
    assert answer.json()["body"] == "late"


def test_endpoints_can_be_reached_by_host(client: Client) -> None:
    base = client.relay_url.partition("/lb/")[0]
    for host in ("ep.localhost:8400", "ep.api.runpod.ai"):
        answer = client.http.get(f"{base}/v2/any?x=1", headers={"host": host}).json()
        assert (answer["path"], answer["query"]) == ("/v2/any", "x=1")


def test_the_cookie_of_a_workers_answer_does_not_come_with_later_looks_at_its_health() -> None:
    looks: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        looks.append(dict(scope["headers"]).get(b"cookie"))
        await Response(headers={"set-cookie": "whose=mine"})(scope, receive, send)

    with whose_worker_is(app) as client:
        assert client.relayed("/").headers["set-cookie"] == "whose=mine"
        seen = len(looks)
        eventually(lambda: len(looks) > seen + 1)
    assert set(looks) == {None}


def test_a_look_at_the_health_does_not_wait_for_the_end_of_its_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def for_ever() -> AsyncIterator[bytes]:
            while True:
                yield b"well, "
                await asyncio.sleep(0.01)

        answer = StreamingResponse(for_ever()) if scope["path"] == "/ping" else Response()
        await answer(scope, receive, send)

    with whose_worker_is(app) as client:
        assert client.relayed("/").status_code == 200


# Who may call, and what


def test_a_call_without_a_key_never_reaches_the_worker(client: Client) -> None:
    answer = httpx.get(f"{client.relay_url}/echo", timeout=60)
    assert answer.status_code == 401
    expected = '{"status":401,"title":"Unauthorized","detail":"no token provided"}'
    assert answer.text == expected


def test_a_wrong_key_is_told_as_such(client: Client) -> None:
    headers = {"Authorization": "Bearer wrong"}
    answer = httpx.get(f"{client.relay_url}/echo", headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (401, "invalid api key")


def test_queue_operations_are_not_for_a_load_balancing_endpoint(client: Client) -> None:
    answer = client.post("/run", {"input": {"a": 1}})
    assert (answer.status_code, answer.json()) == (400, {"error": "not allowed for QB API"})


def test_a_queue_endpoint_relays_nothing(by_hand: Client) -> None:
    answer = by_hand.relayed("/v1/models")
    assert (answer.status_code, answer.json()) == (400, {"error": "not allowed for QB API"})


def test_an_unknown_endpoint_is_not_found(client: Client) -> None:
    assert client.http.get(client.relay_url.replace("/ep", "/unknown") + "/x").status_code == 404


def test_health_counts_a_load_balancing_endpoint_too(client: Client) -> None:
    counts = {"idle": 1, "initializing": 0, "ready": 1, "running": 0, "throttled": 0}
    eventually(lambda: client.health()["workers"] == {**counts, "unhealthy": 0})
    before = client.health()["jobs"]
    assert set(before) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    client.relayed("/echo")
    eventually(lambda: client.health()["jobs"]["completed"] == before["completed"] + 1)


def test_a_worker_with_a_request_is_running_and_ready(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
        health = client.health()
        assert (health["workers"]["running"], health["workers"]["ready"]) == (1, 1)
        assert (health["workers"]["idle"], health["jobs"]["inProgress"]) == (0, 1)
        gate.touch()
        answer.read()


# Calls that end early


def test_a_client_that_leaves_before_the_answer_ends_the_call(
    client: Client, tmp_path: Path
) -> None:
    seen, left = tmp_path / "seen", tmp_path / "left"
    url = f"{client.relay_url}/hang?seen={seen}&left={left}"
    with call_to_leave(url, key=API_KEY, body={}):
        eventually(seen.exists)
    eventually(left.exists)
    eventually(lambda: client.health()["jobs"]["inProgress"] == 0)


def test_a_client_that_leaves_amid_a_stream_ends_the_call(client: Client, tmp_path: Path) -> None:
    left = tmp_path / "left"
    url = f"{client.relay_url}/drip?gate={tmp_path / 'never'}&left={left}"
    with client.http.stream("GET", url) as answer:
        assert next(answer.iter_raw()) == b"first"
    eventually(left.exists)


def test_a_client_that_leaves_while_it_sends_ends_the_call(client: Client, tmp_path: Path) -> None:
    seen, left = tmp_path / "seen", tmp_path / "left"
    url = httpx.URL(f"{client.relay_url}/hang?seen={seen}&left={left}")
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        head = f"POST {url.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nAuthorization: {API_KEY}\r\n"
        connection.sendall(f"{head}Content-Length: 9\r\n\r\nhalf".encode())
        eventually(seen.exists)
    eventually(left.exists)


def test_a_call_that_takes_too_long_is_answered_524() -> None:
    with served(processing_seconds=0.2) as client:
        assert client.relayed("/hang", "POST", json={}).status_code == 524
        eventually(lambda: client.health()["jobs"]["failed"] == 1)


@pytest.mark.slow
def test_a_stream_that_takes_too_long_is_cut_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def is_cut_off(processing_seconds: float) -> bool:
        with served(processing_seconds=processing_seconds) as client:
            try:
                answer = client.relayed(f"/drip?gate={tmp_path / 'never'}")
            except httpx.RemoteProtocolError:
                return True
        assert answer.status_code == 524
        return False

    # It has to have begun by then.
    assert any(map(is_cut_off, (1, 4, 16)))
    assert "ASGI" not in capfd.readouterr().err, "the emulator's own server is not surprised"


def test_a_body_above_the_limit_is_refused() -> None:
    with served(max_bytes=1000) as client:
        assert client.relayed("/bytes?n=1", "POST", content=b"x" * 1000).status_code == 200
        # By a worker that reads it to the end; another might answer before it is too much.
        assert client.relayed("/echo", "POST", content=b"x" * 1001).status_code == 413
        pieces = iter([b"x" * 600, b"x" * 600])
        assert client.relayed("/echo", "POST", content=pieces).status_code == 413


def test_an_answer_above_the_limit_is_not_passed_on() -> None:
    with served(max_bytes=1000) as client:
        assert client.relayed("/bytes?n=1000").status_code == 200
        assert client.relayed("/bytes?n=1001").status_code == 502
        with pytest.raises(httpx.RemoteProtocolError):
            client.relayed("/bytes?n=1001&chunked=1")


def test_a_call_can_be_refused_or_lost_on_purpose(client: Client) -> None:
    client.inject(operation="relay", status=429, headers={"retry-after": "1"})
    assert client.relayed("/echo").headers["retry-after"] == "1"
    client.inject(operation="relay", drop="answer")
    eventually(lambda: client.workers("idle") == 1)
    done = client.health()["jobs"]["completed"]
    with pytest.raises(httpx.RemoteProtocolError):
        client.relayed("/echo")
    # The worker did the work.
    eventually(lambda: client.health()["jobs"]["completed"] == done + 1)
    assert client.relayed("/echo").status_code == 200


# Waiting for a worker


def test_without_any_worker_a_request_is_refused_after_a_while() -> None:
    with one_endpoint(**settings(balancing={"worker_wait_seconds": 0.2})) as client:
        answer = client.relayed("/echo")
        assert (answer.status_code, answer.json()) == (400, {"error": "no workers available"})


def test_a_worker_that_initializes_gets_no_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    monkeypatch.setenv("READY", str(ready))
    port = free_port()
    wanted = settings(env={"PORT": str(port)}, balancing={"worker_wait_seconds": 0.3})
    with serve(application(), port=port), one_endpoint(**wanted) as client:
        eventually(lambda: client.workers("initializing") == 1)
        answer = client.relayed("/echo")
        reason = {"error": "timed out waiting for worker"}
        assert (answer.status_code, answer.json()) == (400, reason)
        ready.touch()
        eventually(lambda: client.relayed("/echo").status_code == 200)


def test_a_worker_that_falls_ill_gets_no_requests_until_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = tmp_path / "sick"
    monkeypatch.setenv("SICK", str(sick))
    with served(worker_wait_seconds=0.3) as client:
        sick.touch()
        eventually(lambda: client.workers("unhealthy") == 1)
        assert client.workers("ready") == 0
        assert client.relayed("/echo").status_code == 400
        sick.unlink()
        eventually(lambda: client.relayed("/echo").status_code == 200)


@pytest.mark.slow
def test_a_full_worker_makes_requests_wait(tmp_path: Path) -> None:
    with served(worker_concurrency=1, worker_wait_seconds=1) as client:
        gate = tmp_path / "gate"
        with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
            assert client.relayed("/echo").status_code == 400
            gate.touch()
            answer.read()
        eventually(lambda: client.relayed("/echo").status_code == 200)


def test_a_client_that_leaves_while_it_waits_is_forgotten() -> None:
    with one_endpoint(**settings()) as client:
        with call_to_leave(f"{client.relay_url}/echo", key=API_KEY):
            eventually(lambda: client.health()["jobs"]["inQueue"] == 1)
        eventually(lambda: client.health()["jobs"]["inQueue"] == 0)


# Which worker


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Client, list[str]]]:
    """An endpoint with two workers, and their ids."""
    with one_endpoint(**settings(worker=WEB, min_workers=2, max_workers=2)) as client:
        eventually(lambda: client.workers("ready") == 2)
        yield client, [one["id"] for one in client.control("GET", "")["endpoints"]["ep"]["workers"]]


def worker_of(client: Client, affinity: str) -> str:
    """The worker that answers a request with this wish; it says so itself."""
    return str(client.relayed("/echo", headers={"x-runpod-worker-id": affinity}).json()["worker"])


@pytest.mark.slow
def test_a_request_goes_to_the_worker_with_the_least_to_do(
    pair: tuple[Client, list[str]], tmp_path: Path
) -> None:
    client, ids = pair
    url = f"{client.relay_url}/drip?gate={tmp_path / 'gate'}"
    with client.http.stream("GET", url) as first, client.http.stream("GET", url) as second:
        busy = [answer.headers["x-runpod-worker-id"] for answer in (first, second)]
        assert sorted(busy) == sorted(ids)
        (tmp_path / "gate").touch()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "strict ", "strict-resume "])
def test_a_request_can_ask_for_the_worker_of_an_earlier_one(
    pair: tuple[Client, list[str]], mode: str
) -> None:
    client, ids = pair
    for _ in range(2):
        assert [worker_of(client, mode + one) for one in ids] == ids


@pytest.mark.slow
def test_a_wish_for_a_worker_that_is_gone_falls_back_unless_it_is_strict(
    pair: tuple[Client, list[str]],
) -> None:
    client, ids = pair
    assert worker_of(client, "gone") in ids
    for mode in ("strict", "strict-resume"):
        answer = client.relayed("/echo", headers={"x-runpod-worker-id": f"{mode} gone"})
        assert (answer.status_code, answer.json()) == (404, {"error": "affinity_worker_gone"})


@pytest.mark.slow
def test_a_strict_wish_waits_for_its_worker_and_no_other(tmp_path: Path) -> None:
    with served(worker_concurrency=1, pinned_wait_seconds=1) as client:
        gate = tmp_path / "gate"
        pinned = {"x-runpod-worker-id": f"strict {BY_HAND}"}
        with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
            refused = client.relayed("/echo", headers=pinned)
            assert (refused.status_code, refused.json()) == (400, {"error": "worker_timeout"})
            gate.touch()
            answer.read()
        eventually(lambda: client.relayed("/echo", headers=pinned).status_code == 200)


# Workers that the emulator starts


@pytest.mark.slow
def test_a_request_wakes_a_worker_and_idleness_ends_it() -> None:
    with one_endpoint(**settings(worker=WEB, idle_timeout_seconds=0.3)) as client:
        assert client.workers("ready") == 0
        assert client.relayed("/echo").status_code == 200
        eventually(lambda: client.control("GET", "")["endpoints"]["ep"]["ports"] == {})
        assert client.relayed("/echo").status_code == 200


@pytest.mark.slow
def test_a_worker_that_serves_is_not_stopped(tmp_path: Path) -> None:
    with one_endpoint(**settings(worker=WEB, idle_timeout_seconds=0.1)) as client:
        gate = tmp_path / "gate"
        with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
            assert client.workers("running") == 1
            threading.Event().wait(0.4)
            gate.touch()
            assert answer.read() == b"firstlast"


@pytest.mark.slow
def test_many_requests_start_many_workers(tmp_path: Path) -> None:
    wanted = settings(worker=WEB, max_workers=2, scaler_value=1, idle_timeout_seconds=60)
    with one_endpoint(**wanted) as client:
        url = f"{client.relay_url}/drip?gate={tmp_path / 'gate'}"
        with client.http.stream("GET", url) as first:
            eventually(lambda: client.workers("ready") == 1)
            with client.http.stream("GET", url) as second:
                eventually(lambda: client.workers("ready") == 2)
                (tmp_path / "gate").touch()
                assert first.read() == second.read() == b"firstlast"


@pytest.mark.slow
def test_a_stopped_worker_is_resumed_for_a_request_that_insists_on_it() -> None:
    with one_endpoint(**settings(worker=WEB, idle_timeout_seconds=0.2)) as client:
        worker_id = client.relayed("/echo").headers["x-runpod-worker-id"]
        eventually(lambda: client.control("GET", "")["endpoints"]["ep"]["ports"] == {})
        strict = client.relayed("/echo", headers={"x-runpod-worker-id": f"strict {worker_id}"})
        assert strict.status_code == 404
        assert worker_of(client, f"strict-resume {worker_id}") == worker_id


@pytest.mark.slow
def test_a_worker_is_resumed_next_to_another_that_would_do(tmp_path: Path) -> None:
    with one_endpoint(**settings(worker=WEB, max_workers=2, idle_timeout_seconds=0.2)) as client:
        worker_id = client.relayed("/echo").headers["x-runpod-worker-id"]
        eventually(lambda: client.control("GET", "")["endpoints"]["ep"]["ports"] == {})
        gate = tmp_path / "gate"
        with client.http.stream("GET", f"{client.relay_url}/drip?gate={gate}") as answer:
            assert answer.headers["x-runpod-worker-id"] != worker_id
            assert worker_of(client, f"strict-resume {worker_id}") == worker_id
            gate.touch()


@pytest.mark.slow
def test_a_worker_finds_its_ports_and_its_names_and_no_queue() -> None:
    with one_endpoint(**settings(worker=WEB, idle_timeout_seconds=600)) as client:
        found = client.relayed("/echo").json()["environment"]
        [(worker_id, port)] = client.control("GET", "")["endpoints"]["ep"]["ports"].items()
    assert found["PORT"] == found["PORT_HEALTH"] == str(port)
    assert (found["RUNPOD_POD_ID"], found["RUNPOD_ENDPOINT_ID"]) == (worker_id, "ep")
    assert not [name for name in found if name.startswith("RUNPOD_WEBHOOK")]


@pytest.mark.slow
def test_a_worker_may_have_a_health_port_of_its_own() -> None:
    wanted = settings(worker=WEB, balancing={"separate_health_port": True})
    with one_endpoint(**wanted) as client:
        assert client.relayed("/echo").status_code == 200


@pytest.mark.slow
def test_a_healthy_worker_that_listens_elsewhere_is_a_bad_gateway() -> None:
    wanted = settings(worker=WEB, env={"NOWHERE": "1"}, balancing={"separate_health_port": True})
    with one_endpoint(**wanted) as client:
        assert client.relayed("/echo").status_code == 502


@pytest.mark.slow
def test_a_worker_that_never_answers_is_running_but_not_ready_and_then_replaced() -> None:
    wanted = settings(worker="sleep 99", min_workers=1, balancing={"unhealthy_seconds": 0.5})
    with one_endpoint(**wanted) as client:

        def is_there() -> bool:
            counts = client.health()["workers"]
            return (counts["running"], counts["ready"], counts["initializing"]) == (1, 0, 0)

        def is_replaced() -> bool:
            seen.update(client.control("GET", "")["endpoints"]["ep"]["ports"])
            return len(seen) > 1

        seen: set[str] = set()
        eventually(is_there)
        eventually(is_replaced)
        eventually(is_there)


@pytest.mark.slow
def test_a_worker_that_dies_is_not_asked_twice() -> None:
    with one_endpoint(**settings(worker=WEB)) as client:
        assert client.relayed("/die").status_code == 502
        eventually(lambda: client.relayed("/echo").status_code == 200)
        with pytest.raises(httpx.RemoteProtocolError):
            client.relayed("/die?late=1")


@pytest.mark.slow
def test_a_stream_ends_well_when_the_emulator_stops(tmp_path: Path) -> None:
    """The worker is asked to stop and finishes its requests first, within its grace time."""
    gate = tmp_path / "gate"
    with httpx.Client(headers={"Authorization": API_KEY}, timeout=60) as http, ExitStack() as held:
        with one_endpoint(**settings(worker=WEB)) as client:
            url = f"{client.relay_url}/drip?gate={gate}"
            pieces = held.enter_context(http.stream("GET", url)).iter_raw()
            assert next(pieces) == b"first"
            threading.Timer(0.5, gate.touch).start()
        assert list(pieces) == [b"last"]


@pytest.mark.slow
def test_a_stream_from_a_worker_of_ones_own_is_cut_when_the_emulator_stops(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with httpx.Client(headers={"Authorization": API_KEY}, timeout=60) as http, ExitStack() as held:
        with served() as client:
            url = f"{client.relay_url}/drip?gate={tmp_path / 'never'}"
            pieces = held.enter_context(http.stream("GET", url)).iter_raw()
            assert next(pieces) == b"first"
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)
    assert "Traceback" not in capfd.readouterr().err
