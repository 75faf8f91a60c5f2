"""What goes wrong on purpose goes wrong exactly as it was ordered."""

import time
from collections.abc import Iterator

import httpx
import pytest

from emulator.gateway.faults import Faults
from emulator.settings import Fault
from tests.emulator.running import Client, eventually, one_endpoint


@pytest.fixture
def client(by_hand: Client) -> Iterator[Client]:
    """An endpoint that starts without faults and without jobs."""
    by_hand.control("POST", "/reset")
    yield by_hand
    by_hand.control("DELETE", "/faults")


def hits(rule: Fault, calls: int) -> list[bool]:
    """Which of so many calls the rule hits."""
    faults = Faults((rule,))
    return [bool(faults.meet("stream", "ep")) for _ in range(calls)]


def test_a_rule_hits_once_unless_told_otherwise() -> None:
    assert hits(Fault(operation="stream"), 3) == [True, False, False]


def test_a_rule_may_skip_calls_and_hit_several() -> None:
    assert hits(Fault(operation="stream", skip=1, times=2), 4) == [False, True, True, False]


def test_a_rule_may_hit_for_ever() -> None:
    assert hits(Fault(operation="stream", times=0), 50) == [True] * 50


def test_a_rule_of_chance_hits_some_and_repeatably() -> None:
    rule = Fault(operation="stream", times=0, chance=0.5)
    assert 5 < sum(hits(rule, 50)) < 45
    assert hits(rule, 50) == hits(rule, 50)


def test_a_rule_is_about_one_operation_and_maybe_one_endpoint() -> None:
    faults = Faults((Fault(operation="stream", endpoint="ep", times=0),))
    assert not faults.meet("status", "ep")
    assert not faults.meet("stream", "other")
    assert faults.meet("stream", "ep")


def test_a_reset_brings_the_rules_of_the_settings_back() -> None:
    rule = Fault(operation="stream")
    faults = Faults((rule,))
    faults.meet("stream", "ep")
    faults.add(Fault(operation="run"))
    faults.reset()
    assert [view["operation"] for view in faults.view()] == ["stream"]
    assert faults.meet("stream", "ep") == [rule]


def test_a_call_can_be_refused_without_effect(client: Client) -> None:
    client.inject(operation="run", status=500, body="oops", headers={"x-a": "b"})
    answer = client.post("/run", {"input": {"a": 1}})
    assert (answer.status_code, answer.text, answer.headers["x-a"]) == (500, "oops", "b")
    assert client.health()["jobs"]["inQueue"] == 0


@pytest.mark.parametrize("status", [204, 304])
def test_a_call_can_be_refused_without_a_body(client: Client, status: int) -> None:
    client.inject(operation="job-take", status=status)
    client.run({"a": 1})
    assert client.get("/job-take/w1").status_code == status
    assert client.take("w1")


def test_a_chunk_can_be_lost_although_it_was_accepted(client: Client) -> None:
    client.inject(operation="job-stream", skip=1, status=200)
    client.run({"a": 1})
    worker_id, job_id = client.take()
    for output in "abc":
        client.chunk(worker_id, job_id, output)
    assert client.stream(job_id)["stream"] == [{"output": "a"}, {"output": "c"}]


def test_a_stream_answer_can_be_lost_with_its_chunks(client: Client) -> None:
    client.inject(operation="stream", drop="answer")
    client.run({"a": 1})
    worker_id, job_id = client.take()
    client.chunk(worker_id, job_id, "lost")
    with pytest.raises(httpx.RemoteProtocolError):
        client.stream(job_id)
    client.chunk(worker_id, job_id, "next")
    assert client.stream(job_id)["stream"] == [{"output": "next"}]


def test_a_call_can_be_dropped_before_it_has_an_effect(client: Client) -> None:
    client.inject(operation="stream", drop="call")
    client.run({"a": 1})
    worker_id, job_id = client.take()
    client.chunk(worker_id, job_id, "kept")
    with pytest.raises(httpx.RemoteProtocolError):
        client.stream(job_id)
    assert client.stream(job_id)["stream"] == [{"output": "kept"}]


def test_a_post_can_be_dropped_too(client: Client) -> None:
    client.inject(operation="run", drop="answer")
    with pytest.raises(httpx.RemoteProtocolError):
        client.run({"a": 1})
    assert client.health()["jobs"]["inQueue"] == 1


def test_a_call_can_be_slowed_down(client: Client) -> None:
    client.inject(operation="health", delay_seconds=0.5)
    begun = time.monotonic()
    assert client.get("/health").status_code == 200
    assert time.monotonic() - begun > 0.4


def test_a_standing_delay_does_not_hide_another_fault(client: Client) -> None:
    client.inject(operation="health", delay_seconds=0.01, times=0)
    client.inject(operation="health", status=503)
    assert [client.get("/health").status_code for _ in range(2)] == [503, 200]


def test_faults_of_the_worker_routes_reach_batches_too(client: Client) -> None:
    client.inject(operation="job-take", status=400)
    client.run({"a": 1})
    assert client.get("/job-take-batch/w1", batch_size=2).status_code == 400
    assert client.get("/job-take-batch/w1", batch_size=2).status_code == 200


def test_the_edge_gives_up_on_a_call_that_takes_too_long() -> None:
    with one_endpoint(edge_timeout_seconds=0.2) as client:
        # Also on one whose body is late.
        eventually(lambda: client.post("/run", {"input": {"a": 1}}).status_code == 200)
        worker_id, job_id = client.take()
        assert client.get(f"/stream/{job_id}", wait=5000).status_code == 524
        client.chunk(worker_id, job_id, "kept")
        assert client.stream(job_id)["stream"] == [{"output": "kept"}]
