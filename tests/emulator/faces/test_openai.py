"""The routes below /openai; the test plays the worker, call by call."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.emulator.running import API_KEY, Client, Json, eventually, one_endpoint
from tests.leaving import call_to_leave

CHAT = "/openai/v1/chat/completions"
PLAIN = {"model": "m", "messages": []}
STREAMED = {**PLAIN, "stream": True}

Call = Callable[..., "Future[httpx.Response]"]


@pytest.fixture
def call(by_hand: Client) -> Iterator[Call]:
    """Makes a POST below /openai that goes on while the test plays the worker."""
    with ThreadPoolExecutor() as pool:
        yield lambda body, path=CHAT: pool.submit(by_hand.post, path, body)


def take(client: Client) -> tuple[str, str, Json]:
    """The worker that took the job, the job's id, and its input."""
    job = client.get("/job-take/w1", gpu="x").raise_for_status().json()
    return "w1", str(job["id"]), dict(job["input"])


def test_a_call_becomes_a_job_with_its_route_and_body(by_hand: Client, call: Call) -> None:
    answer = call(PLAIN, "/openai/v1/any/route")
    worker_id, job_id, job_input = take(by_hand)
    assert job_input == {"openai_route": "/v1/any/route", "openai_input": PLAIN}
    by_hand.done(worker_id, job_id, {"output": [{"a": 1}]})
    assert answer.result().json() == {"a": 1}
    assert job_id not in str(answer.result().headers), "no job id is told"


def test_the_models_are_asked_for_with_a_get(by_hand: Client) -> None:
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(by_hand.get, "/openai/v1/models")
        worker_id, job_id, job_input = take(by_hand)
        by_hand.done(worker_id, job_id, {"output": [{"object": "list"}]})
    assert job_input == {"openai_route": "/v1/models", "openai_input": {}}
    assert answer.result().json() == {"object": "list"}


@pytest.mark.parametrize("output", [{"a": 1}, [{"a": 1}], '{"a":1}', ['{"a"', ":1}"]])
def test_whatever_form_the_output_has_the_answer_is_the_body(
    by_hand: Client, call: Call, output: object
) -> None:
    answer = call(PLAIN)
    worker_id, job_id, _ = take(by_hand)
    by_hand.done(worker_id, job_id, {"output": output})
    assert answer.result().text == '{"a":1}'
    assert answer.result().headers["content-type"] == "application/json"


def test_without_an_aggregate_the_answer_is_what_was_yielded(by_hand: Client, call: Call) -> None:
    answer = call(PLAIN)
    worker_id, job_id, _ = take(by_hand)
    by_hand.chunk(worker_id, job_id, {"a": 1})
    by_hand.done(worker_id, job_id, {"output": []})
    assert answer.result().json() == {"a": 1}


def test_a_stream_comes_as_server_sent_events_as_they_are_made(by_hand: Client) -> None:
    def begin() -> tuple[str, str]:
        worker_id, job_id, _ = take(by_hand)
        by_hand.chunk(worker_id, job_id, "data: one\n\nda")
        return worker_id, job_id

    with ThreadPoolExecutor() as pool:
        begun = pool.submit(begin)
        with by_hand.http.stream("POST", by_hand.url + CHAT, json=STREAMED) as answer:
            pieces = answer.iter_text()
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(pieces) == "data: one\n\nda"
            worker_id, job_id = begun.result()
            by_hand.chunk(worker_id, job_id, "ta: two\n\n")
            assert next(pieces) == "ta: two\n\n"
            by_hand.chunk(worker_id, job_id, {"three": 3})
            assert next(pieces) == 'data: {"three":3}\n\n'
            by_hand.done(worker_id, job_id, {"output": []})
            assert list(pieces) == []


@pytest.mark.parametrize("body", [PLAIN, STREAMED])
@pytest.mark.parametrize(
    ("error", "answered"),
    [
        ('{"error":{"message":"bad"}}', {"error": {"message": "bad"}}),
        ("{'message': 'bad'}", {"error": "{'message': 'bad'}"}),
    ],
)
def test_an_error_is_answered_with_200(
    by_hand: Client, call: Call, body: Json, error: str, answered: Json
) -> None:
    answer = call(body)
    worker_id, job_id, _ = take(by_hand)
    by_hand.done(worker_id, job_id, {"error": error})
    assert (answer.result().status_code, answer.result().json()) == (200, answered)


def test_an_error_amid_a_stream_is_an_event(by_hand: Client, call: Call) -> None:
    answer = call(STREAMED)
    worker_id, job_id, _ = take(by_hand)
    by_hand.chunk(worker_id, job_id, "data: one\n\n")
    by_hand.done(worker_id, job_id, {"error": "boom"})
    assert answer.result().text == 'data: one\n\ndata: {"error":"boom"}\n\n'


@pytest.mark.slow
def test_a_stream_that_takes_too_long_just_ends() -> None:
    def streamed(cut_seconds: float) -> str:
        with one_endpoint(openai_cut_seconds=cut_seconds) as client, ThreadPoolExecutor() as pool:
            answer = pool.submit(client.post, CHAT, STREAMED)
            worker_id, job_id, _ = take(client)
            client.chunk(worker_id, job_id, "data: one\n\n")
            text = answer.result().text
            assert client.status(job_id)["status"] == "IN_PROGRESS"
            return text

    # The chunk has to be there before the cut.
    assert "data: one\n\n" in map(streamed, (1, 4, 16))


def test_a_plain_call_that_takes_too_long_is_cut_off() -> None:
    with (
        one_endpoint(openai_cut_seconds=0.2) as client,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        client.post(CHAT, PLAIN)


def test_a_cold_start_meets_the_edge() -> None:
    with one_endpoint(edge_timeout_seconds=0.2) as client:
        assert client.post(CHAT, STREAMED).status_code == 524


def test_a_client_that_leaves_does_not_stop_its_job(by_hand: Client) -> None:
    with call_to_leave(by_hand.url + CHAT, key=API_KEY, body=PLAIN):
        eventually(lambda: by_hand.health()["jobs"]["inQueue"] == 1)
    worker_id, job_id, _ = take(by_hand)
    by_hand.done(worker_id, job_id, {"output": [1]})
    assert by_hand.status(job_id)["output"] == [1]


def test_a_call_can_be_refused_on_purpose(by_hand: Client) -> None:
    by_hand.inject(operation="openai", status=500)
    assert by_hand.post(CHAT, PLAIN).status_code == 500
    assert by_hand.health()["jobs"]["inQueue"] == 0
