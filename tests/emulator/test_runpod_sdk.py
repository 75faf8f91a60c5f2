"""RunPod's own code on both sides of the emulator, unmodified.

The worker is the SDK's production loop in a process that the emulator starts; the client is the
SDK's `runpod.Endpoint`. This is what makes the emulator a RunPod and not an opinion of one.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import runpod

from tests.emulator.running import (
    API_KEY,
    PLAIN,
    SCRIPTED,
    Client,
    emulator,
    eventually,
    one_endpoint,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warm() -> Iterator[Client]:
    """An endpoint with one scripted worker, warm; next to it the endpoint `plain`, cold."""
    streaming = {"worker": SCRIPTED, "min_workers": 1}
    with emulator(streaming=streaming, plain={"worker": PLAIN}) as clients:
        yield clients("streaming")


@pytest.fixture
def client(warm: Client) -> Client:
    """The scripted worker's endpoint, with the worker up and idle."""
    eventually(lambda: warm.workers("idle") == 1)
    return warm


@pytest.fixture
def endpoint(client: Client, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same endpoint through RunPod's own client."""
    monkeypatch.setattr(runpod, "endpoint_url_base", client.url.rpartition("/")[0])
    return runpod.Endpoint("streaming", api_key=API_KEY)


@pytest.fixture
def plain(endpoint: Any) -> Any:
    """The endpoint with a plain handler, through RunPod's own client."""
    return runpod.Endpoint("plain", api_key=API_KEY)


def steps(*steps: tuple[str, Any]) -> dict[str, Any]:
    """A job input for the scripted handler."""
    return {"steps": steps}


# The client's operations


def test_run_and_output(endpoint: Any) -> None:
    job = endpoint.run(steps(("yield", "a"), ("yield", {"b": [1, None]})))
    assert job.output(timeout=60) == ["a", {"b": [1, None]}]
    assert job.status() == "COMPLETED"


def test_run_sync(endpoint: Any) -> None:
    assert endpoint.run_sync(steps(("yield", "größe 🙂"))) == ["größe 🙂"]


def test_stream_yields_every_chunk_once_and_in_order(endpoint: Any) -> None:
    job = endpoint.run(steps(*[("yield", n) for n in range(50)]))
    assert list(job.stream()) == list(range(50))


def test_cancel_stops_the_handler(endpoint: Any, client: Client, tmp_path: Path) -> None:
    begun, freed = tmp_path / "begun", tmp_path / "freed"
    job = endpoint.run(steps(("touch", str(begun)), ("mark_cancel", str(freed))))
    eventually(begun.exists)
    assert job.cancel(timeout=60) == {"id": job.job_id, "status": "CANCELLED"}
    eventually(freed.exists)
    assert job.status() == "CANCELLED"
    eventually(lambda: client.workers("idle") == 1)


def test_health(endpoint: Any) -> None:
    health = endpoint.health(timeout=60)
    assert health["workers"] == {
        "idle": 1,
        "initializing": 0,
        "ready": 1,
        "running": 0,
        "throttled": 0,
        "unhealthy": 0,
    }
    assert set(health["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}


def test_purge_queue(endpoint: Any) -> None:
    assert endpoint.purge_queue(timeout=60) == {"removed": 0, "status": "completed"}


async def test_the_asynchronous_client(endpoint: Any) -> None:
    async with aiohttp.ClientSession() as session:
        other = runpod.AsyncioEndpoint("streaming", session, api_key=API_KEY)
        job = await other.run(steps(("yield", "a"), ("yield", "b")))
        assert [chunk async for chunk in job.stream()] == ["a", "b"]
        assert await job.output(timeout=60) == ["a", "b"]
        assert await job.status() == "COMPLETED"
        assert (await other.health())["workers"]["ready"] == 1


def test_a_wrong_key_is_told_as_such(endpoint: Any) -> None:
    stranger = runpod.Endpoint("streaming", api_key="wrong")
    with pytest.raises(RuntimeError, match="401 Unauthorized"):
        stranger.run(steps(("yield", 1)))


# What handlers do


def test_chunks_arrive_while_the_handler_still_runs(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job_id = client.run(steps(("yield", "first"), ("wait", str(gate)), ("yield", "last")))
    answer = client.news(job_id)
    assert answer == {"status": "IN_PROGRESS", "stream": [{"output": "first"}]}
    gate.touch()
    assert client.outputs(job_id) == ["last"]
    assert client.status(job_id)["output"] == ["first", "last"]


def test_a_handler_that_raises_fails_its_job(client: Client) -> None:
    job_id = client.run(steps(("yield", "partial"), ("raise", "boom")))
    assert client.outputs(job_id) == ["partial"]
    view = client.status(job_id)
    assert view["status"] == "FAILED"
    assert view["error"].startswith("handler: boom")
    assert "output" not in view, "the partial aggregate is lost, as on RunPod"


def test_a_yielded_error_fails_the_job_with_its_python_repr(client: Client) -> None:
    job_id = client.run(steps(("yield", {"error": {"message": "bad"}}), ("yield", "never")))
    assert client.outputs(job_id) == []
    assert client.status(job_id)["error"] == "{'message': 'bad'}"


def test_many_jobs_run_at_once_on_one_worker(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [client.run(steps(("wait", str(gate)), ("yield", n))) for n in range(8)]
    eventually(lambda: client.health()["jobs"]["inProgress"] == 8)
    gate.touch()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client.outputs, jobs)) == [[n] for n in range(8)]


def test_a_cancel_leaves_the_workers_other_jobs_alone(client: Client, tmp_path: Path) -> None:
    gate, freed = tmp_path / "gate", tmp_path / "freed"
    other = client.run(steps(("yield", "on"), ("wait", str(gate)), ("yield", "done")))
    job_id = client.run(steps(("yield", "on"), ("mark_cancel", str(freed))))
    for each in (other, job_id):
        assert client.news(each)["stream"] == [{"output": "on"}]
    client.post(f"/cancel/{job_id}")
    eventually(freed.exists)
    gate.touch()
    assert client.outputs(other) == ["done"]
    assert client.status(other)["status"] == "COMPLETED"


def test_a_cancel_right_after_the_take_still_stops_the_handler(
    client: Client, tmp_path: Path
) -> None:
    """The SDK drops a stop for a job it has not begun; it is sent again."""
    for n in range(2):
        freed = tmp_path / str(n)
        job_id = client.run(steps(("mark_cancel", str(freed))))
        eventually(lambda: client.workers("running") == 1)
        client.post(f"/cancel/{job_id}")
        eventually(lambda: client.workers("running") == 0)
        assert client.status(job_id)["status"] == "CANCELLED"


def test_a_result_in_spite_of_a_cancel_is_ignored(client: Client, tmp_path: Path) -> None:
    job_id = client.run(steps(("yield", "on"), ("swallow", str(tmp_path / "x")), ("yield", "more")))
    assert client.news(job_id)["stream"] == [{"output": "on"}]
    client.post(f"/cancel/{job_id}")
    eventually((tmp_path / "x").exists)
    eventually(lambda: client.workers("running") == 0)
    view = client.status(job_id)
    assert view["status"] == "CANCELLED"
    assert "output" not in view
    assert client.stream(job_id)["stream"] == []


def test_a_job_that_runs_too_long_is_stopped(client: Client, tmp_path: Path) -> None:
    begun, freed = tmp_path / "begun", tmp_path / "freed"
    job_id = client.run(
        steps(("touch", str(begun)), ("mark_cancel", str(freed))),
        policy={"executionTimeout": 2000},
    )
    assert client.result(job_id)["status"] == "TIMED_OUT"
    eventually(lambda: client.workers("running") == 0)
    # A worker that was slow to begin the job has nothing to stop.
    assert freed.exists() == begun.exists()


def test_a_plain_handlers_results(plain: Any) -> None:
    """One worker, cold; a serial SDK worker takes about one job per second."""
    assert plain.run_sync({"return": {"a": 1}}) == {"a": 1}
    failed = plain.run({"raise": "boom"})
    output = plain.run({"return": {"error": "no", "rest": 1}})
    empty = plain.run({"return": {}})
    assert empty.output(timeout=60) is None
    assert (failed.status(), output.status(), empty.status()) == ("FAILED", "FAILED", "COMPLETED")
    assert output.output() == {"rest": 1}
    error = json.loads(failed._fetch_job()["error"])
    assert error["error_message"] == "boom"


def test_two_endpoints_share_nothing(client: Client, plain: Any) -> None:
    job = plain.run({"return": "mine"})
    assert client.get(f"/status/{job.job_id}").status_code == 404
    assert job.output(timeout=60) == "mine"
    assert client.health()["workers"]["idle"] == 1


def test_an_empty_input_never_runs(client: Client, plain: Any) -> None:
    """RunPod drops it on the way: the SDK refuses the job and asks for the next at once."""
    empty = plain.run({})
    assert plain.run_sync({"return": "next"}) == "next"
    assert empty.status() == "IN_PROGRESS", "until its lease ends, twice"
    empty.cancel(timeout=60)


def test_a_worker_that_asks_to_be_replaced_is(plain: Any) -> None:
    first, second = [plain.run({"return": {"refresh_worker": True, "n": n}}) for n in (1, 2)]
    assert second.output(timeout=60) == {"n": 2}
    assert first._fetch_job()["workerId"] != second._fetch_job()["workerId"]
    assert "retries" not in second._fetch_job()


def test_a_job_taken_by_a_worker_that_stops_is_lost_when_that_is_wanted() -> None:
    """The SDK's run loop has ended, and its last poll has not."""
    wanted = {"worker": SCRIPTED, "idle_timeout_seconds": 0.3, "stopping_workers_get_jobs": True}

    def lost(pause_seconds: float) -> bool:
        with one_endpoint(**wanted) as client:
            first = client.result(client.run(steps(("yield", 1))))
            eventually(lambda: client.workers("idle") == 0)
            time.sleep(pause_seconds)
            job_id = client.run(steps(("yield", 2)))
            eventually(lambda: client.status(job_id).get("workerId") == first["workerId"])
            found = client.result(job_id)
        assert found["output"] == [2]
        return found.get("retries") == 1 and found["workerId"] != first["workerId"]

    # The SDK has to have noticed the signal, which shows nowhere.
    assert any(map(lost, (0.5, 2, 5)))


# What the SDK makes of faults


def test_a_chunk_refused_with_429_is_lost_but_in_the_aggregate(client: Client) -> None:
    client.inject(operation="job-stream", skip=1, status=429)
    job_id = client.run(steps(*[("yield", letter) for letter in "abc"]))
    assert client.outputs(job_id) == ["a", "c"]
    assert client.status(job_id)["output"] == ["a", "b", "c"]


def test_a_chunk_whose_connection_is_reset_is_lost_but_in_the_aggregate(client: Client) -> None:
    client.inject(operation="job-stream", skip=1, drop="call")
    job_id = client.run(steps(*[("yield", letter) for letter in "abc"]))
    assert client.outputs(job_id) == ["a", "c"]
    assert client.status(job_id)["output"] == ["a", "b", "c"]
