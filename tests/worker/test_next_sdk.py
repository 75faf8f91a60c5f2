"""The worker with RunPod's next SDK, beside the one that its image has.

That SDK has no clock of 0.1 s in its loop, runs its fitness checks when it is imported, and takes
jobs while a prestart hook runs; the worker registers none.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lock import NEXT_RUNPOD
from scripts.set_up import next_worker_environment, set_up_next_worker
from tests.emulator.running import Client, one_endpoint
from tests.waiting import wait_until
from tests.worker.test_start import TOO_LONG, dying
from tests.worker.worker_process import SECONDS, WorkerProcess, chat, events, start_worker

pytestmark = pytest.mark.slow

LONG = {"tokens": 100_000, "delay_seconds": 0.01}


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has the next SDK."""
    set_up_next_worker()
    return next_worker_environment().python


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with one_endpoint(take_hold_seconds=60, stop_hold_seconds=60) as client:
        yield client


@pytest.fixture(scope="module")
def worker(
    client: Client, python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A worker that all tests here share until the last one stops it."""
    directory = tmp_path_factory.mktemp("worker")
    with start_worker(client, directory, python=python) as worker:
        worker.wait_until_ready()
        yield worker


def test_a_streamed_job_comes_through(client: Client, worker: WorkerProcess) -> None:
    outputs = client.outputs(client.run(chat(stream=True, max_tokens=5)))
    assert events(outputs)[-1] == "[DONE]"
    assert outputs[0]["status"] == 200
    version = NEXT_RUNPOD.rpartition("==")[2]
    assert f"Version {version}" in worker.log.read_text()


def test_a_job_without_our_proxy_fails_with_vllms_error(
    client: Client, worker: WorkerProcess
) -> None:
    result = client.result(client.run({"openai_input": {"model": "other", "messages": []}}))
    assert result["status"] == "FAILED"
    assert '"code":404' in result["error"]


def test_a_cancelled_job_aborts_the_generation(client: Client, worker: WorkerProcess) -> None:
    job = client.run(chat(stream=True, script=LONG))

    def is_running() -> bool:
        requests = worker.engine("requests")["requests"]
        return any(one["state"] == "running" and one["tokens"] for one in requests)

    wait_until(is_running, seconds=SECONDS)
    client.post(f"/cancel/{job}")
    wait_until(lambda: worker.engine("requests")["requests"][-1]["state"] == "aborted")


def test_a_stop_lets_a_running_job_finish_and_takes_no_other(
    client: Client, worker: WorkerProcess
) -> None:
    job = client.run(chat(stream=True, script={"tokens": 100, "delay_seconds": 0.06}))
    wait_until(lambda: worker.engine("requests")["running"] == 1, seconds=SECONDS)
    worker.process.terminate()
    assert worker.exit_code() == 0
    assert events(client.outputs(job))[-1] == "[DONE]"
    left = client.run(chat(max_tokens=1))
    assert client.status(left)["status"] == "IN_QUEUE"
    client.post(f"/cancel/{left}")


def test_no_job_is_taken_while_vllm_starts(client: Client, python: Path, tmp_path: Path) -> None:
    """With a prestart hook it would be IN_PROGRESS for as long as the model loads."""
    flags = "--start-seconds 3600"
    with start_worker(client, tmp_path, python=python, engine_flags=flags) as worker:
        job = client.run(chat())
        wait_until(lambda: "starting vLLM" in worker.log.read_text(), seconds=SECONDS)
        wait_until(lambda: client.health()["jobs"]["inQueue"] == 1)
        worker.process.terminate()
        assert worker.exit_code() == 0
        client.post(f"/cancel/{job}")


def test_jobs_hear_why_the_model_does_not_start(
    client: Client, python: Path, tmp_path: Path
) -> None:
    flags = dying(tmp_path, TOO_LONG)
    with start_worker(client, tmp_path, python=python, engine_flags=flags) as worker:
        [frame] = client.outputs(client.run(chat(stream=True)))
        worker.process.terminate()
        assert worker.exit_code() == 1
        assert worker.last_line().startswith("ERROR worker: MAX_MODEL_LEN is 100000")
    assert frame["start_failed"] == "context_too_long"


def test_the_death_of_vllm_ends_the_worker_and_its_job(
    client: Client, python: Path, tmp_path: Path
) -> None:
    with start_worker(client, tmp_path, python=python) as worker:
        worker.wait_until_ready()
        job = client.run(chat(script={"hang": True}))
        wait_until(lambda: worker.engine("requests")["running"] == 1, seconds=SECONDS)
        worker.kill_engine()
        assert worker.exit_code() == 1
    [frame] = client.outputs(job)
    assert frame["status"] == 503
