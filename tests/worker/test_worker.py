"""The whole worker: the real SDK's loop against the emulator, the scripted engine behind it."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.emulator.running import Client, one_endpoint
from tests.waiting import wait_until
from tests.worker.worker_process import SECONDS, WorkerProcess, chat, events, start_worker

pytestmark = pytest.mark.slow

LONG = {"tokens": 100_000, "delay_seconds": 0.01}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """An endpoint whose workers are started by the tests; polls are held for long."""
    with one_endpoint(take_hold_seconds=60, stop_hold_seconds=60) as client:
        yield client


@pytest.fixture(scope="module")
def worker(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """One worker for the tests that do it no harm."""
    directory = tmp_path_factory.mktemp("worker")
    with start_worker(client, directory, HF_TOKEN="hf_hidden") as worker:
        worker.wait_until_ready()
        yield worker


@pytest.fixture
def own_client() -> Iterator[Client]:
    """An endpoint of its own, for tests whose worker does not survive."""
    with one_endpoint(take_hold_seconds=60, stop_hold_seconds=60) as client:
        yield client


def wait_for_tokens(worker: WorkerProcess) -> None:
    """Return when a request that is running has made a token."""

    def made() -> bool:
        requests = worker.engine("requests")["requests"]
        return any(one["state"] == "running" and one["tokens"] for one in requests)

    worker.wait_until_ready()
    wait_until(made, seconds=SECONDS)


# A job's way


def test_a_streamed_chat_comes_through_in_frames(client: Client, worker: WorkerProcess) -> None:
    outputs = client.outputs(client.run(chat(stream=True, max_tokens=5)))
    chunks = events(outputs)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1]] == [
        *(",", " 你好", " 🙂", " naïve", " café")
    ]
    assert chunks[-1] == "[DONE]"
    assert outputs[0]["status"] == 200


def test_the_aggregate_is_the_same_as_the_stream(client: Client, worker: WorkerProcess) -> None:
    # Events that are too large for two of them to share an output.
    job = client.run(chat(stream=True, script={"tokens": 6, "event_bytes": 200_000}))
    outputs = client.outputs(job)
    assert client.status(job)["output"] == outputs
    assert len(outputs) > 3


def test_vllms_error_is_a_completed_job(client: Client, worker: WorkerProcess) -> None:
    job = client.run(chat(model="other"))
    [frame] = client.outputs(job)
    assert frame["status"] == 404
    assert client.status(job)["status"] == "COMPLETED"


def test_without_our_proxy_an_error_fails_the_job_with_json(
    client: Client, worker: WorkerProcess
) -> None:
    result = client.result(client.run({"openai_input": {"model": "other", "messages": []}}))
    assert result["status"] == "FAILED"
    assert json.loads(result["error"])["error"]["code"] == 404


def test_runpods_shorthand_works(client: Client, worker: WorkerProcess) -> None:
    job = client.run({"prompt": "hello", "sampling_params": {"max_tokens": 2}})
    [answer] = client.result(job)["output"]
    assert answer["model"] == "tiny-chat"
    assert answer["usage"]["completion_tokens"] == 2


def test_the_models_can_be_asked_for(client: Client, worker: WorkerProcess) -> None:
    [answer] = client.result(client.run({"openai_route": "/v1/models"}))["output"]
    assert answer["data"][0]["id"] == "tiny-chat"


def test_jobs_run_side_by_side(client: Client, worker: WorkerProcess) -> None:
    slow = client.run(chat(stream=True, script={"hang_after": 1}))
    quick = client.run(chat(max_tokens=1))
    assert client.result(quick)["status"] == "COMPLETED"
    client.post(f"/cancel/{slow}")
    wait_until(lambda: worker.engine("requests")["running"] == 0)


def test_a_cancelled_job_aborts_the_generation(client: Client, worker: WorkerProcess) -> None:
    job = client.run(chat(stream=True, script=LONG))
    wait_for_tokens(worker)
    client.post(f"/cancel/{job}")
    wait_until(lambda: worker.engine("requests")["requests"][-1]["state"] == "aborted")


def test_a_job_cancelled_during_a_post_aborts_the_generation_at_once(
    client: Client, worker: WorkerProcess
) -> None:
    client.inject(operation="job-stream", skip=1, delay_seconds=15)
    job = client.run(chat(stream=True, script=LONG))
    wait_until(lambda: client.control("GET", "")["faults"][0]["hits"] == 1, seconds=SECONDS)
    client.post(f"/cancel/{job}")
    wait_until(lambda: worker.engine("requests")["requests"][-1]["state"] == "aborted", seconds=10)
    client.control("DELETE", "/faults")


def test_a_slow_network_makes_each_output_carry_more(client: Client, worker: WorkerProcess) -> None:
    client.inject(operation="job-stream", times=0, delay_seconds=0.5)
    script = {"tokens": 200, "delay_seconds": 0.005}
    outputs = client.outputs(client.run(chat(stream=True, script=script)))
    client.control("DELETE", "/faults")
    assert len(events(outputs)) == 202
    assert len(outputs) < 50


def test_vllm_gets_no_secret_of_runpods_and_keeps_its_own(worker: WorkerProcess) -> None:
    facts = worker.engine("argv")
    assert not [name for name in facts["environment"] if name.startswith("RUNPOD_")]
    assert facts["environment"]["HF_TOKEN"] == "hf_hidden"
    assert "hf_hidden" not in json.dumps(facts["argv"])
    assert "hf_hidden" not in worker.log.read_text()


# How it ends


def test_the_death_of_vllm_ends_the_worker_and_its_jobs_with_the_reason(
    own_client: Client, tmp_path: Path
) -> None:
    with start_worker(own_client, tmp_path) as worker:
        job = own_client.run(chat(stream=True, script=LONG))
        waiting = own_client.run(chat(script={"hang": True}))
        wait_for_tokens(worker)
        wait_until(lambda: worker.engine("requests")["running"] == 2)
        own_client.inject(operation="job-done", times=0, delay_seconds=0.5)
        worker.kill_engine()
        assert worker.exit_code() == 1
        assert worker.last_line().startswith("ERROR worker: vLLM was killed by SIGKILL")
    assert events(own_client.outputs(job))[-1]["error"]["code"] == "engine_failed"
    [frame] = own_client.outputs(waiting)
    assert frame["status"] == 503


def test_an_idle_worker_ends_with_vllm(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path) as worker:
        worker.wait_until_ready()
        worker.kill_engine()
        assert worker.exit_code() == 1


def test_sigterm_lets_running_jobs_finish(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path, engine_flags="--spawn-child") as worker:
        job = own_client.run(chat(stream=True, script={"tokens": 100, "delay_seconds": 0.06}))
        wait_for_tokens(worker)
        processes = worker.tree()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert events(own_client.outputs(job))[-1] == "[DONE]"
    wait_until(lambda: not any(map(psutil.Process.is_running, processes)))


def test_sigterm_ends_an_idle_worker_although_polls_are_held(
    own_client: Client, tmp_path: Path
) -> None:
    with start_worker(own_client, tmp_path) as worker:
        worker.wait_until_ready()
        own_client.result(own_client.run(chat(max_tokens=1)))
        began = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code() == 0
        assert time.monotonic() - began < 30, "the polls are held for 60 seconds"


def test_a_stopping_worker_answers_the_last_poll_and_polls_no_more(
    own_client: Client, tmp_path: Path
) -> None:
    with start_worker(own_client, tmp_path) as worker:
        # It is to last until the other one has been taken, even if the machine stalls.
        long = own_client.run(chat(stream=True, script={"tokens": 150, "delay_seconds": 0.06}))
        wait_for_tokens(worker)
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping:" in worker.log.read_text())
        taken = own_client.run(chat(max_tokens=1))
        assert own_client.result(taken)["status"] == "COMPLETED"
        left = own_client.run(chat(max_tokens=1))
        assert worker.exit_code() == 0
    assert events(own_client.outputs(long))[-1] == "[DONE]"
    assert own_client.status(left)["status"] == "IN_QUEUE"


def test_jobs_beyond_the_grace_time_end_with_an_error(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path, WORKER_GRACE_SECONDS="0.2") as worker:
        job = own_client.run(chat(stream=True, script=LONG))
        wait_for_tokens(worker)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    assert events(own_client.outputs(job))[-1]["error"]["code"] == "worker_stopping"


def test_a_second_signal_ends_the_grace_time(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path, WORKER_GRACE_SECONDS="3600") as worker:
        own_client.run(chat(stream=True, script=LONG))
        wait_for_tokens(worker)
        worker.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping:" in worker.log.read_text())
        worker.process.send_signal(signal.SIGINT)
        assert worker.exit_code() == 0


def test_a_worker_that_is_killed_leaves_no_vllm_behind(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path, engine_flags="--spawn-child") as worker:
        worker.wait_until_ready()
        facts = worker.engine("argv")
        engine = [psutil.Process(facts["pid"]), psutil.Process(facts["child_pid"])]
        worker.process.kill()
        wait_until(lambda: not any(process.is_running() for process in engine))


# How it does not start


def failed_start(client: Client, directory: Path, **settings: Any) -> tuple[int, str]:
    """The exit code and the last line of a worker that cannot start, and answers no jobs."""
    settings = {"WORKER_START_FAILURE_SECONDS": "0"} | settings
    with start_worker(client, directory, **settings) as worker:
        return worker.exit_code(), worker.last_line()


def test_a_vllm_that_dies_at_the_start_is_told_at_once(own_client: Client, tmp_path: Path) -> None:
    assert failed_start(own_client, tmp_path, engine_flags="--die-at-start") == (
        1,
        "ERROR worker: vLLM exited with code 1. It said: RuntimeError: scripted death at start",
    )


def test_a_vllm_that_starts_too_slowly_is_told(own_client: Client, tmp_path: Path) -> None:
    settings = {"engine_flags": "--start-seconds 3600", "VLLM_STARTUP_TIMEOUT": "0.5"}
    code, line = failed_start(own_client, tmp_path, **settings)
    assert (code, line) == (
        1,
        "ERROR worker: vLLM was not healthy within 0.5 seconds (VLLM_STARTUP_TIMEOUT).",
    )


def test_wrong_settings_are_told(own_client: Client, tmp_path: Path) -> None:
    code, line = failed_start(own_client, tmp_path, MAX_CONCURRENCY="many")
    assert code == 2
    assert "MAX_CONCURRENCY" in line


def test_sigterm_during_the_start_ends_it(own_client: Client, tmp_path: Path) -> None:
    with start_worker(own_client, tmp_path, engine_flags="--start-seconds 3600") as worker:
        wait_until(lambda: "starting vLLM" in worker.log.read_text())
        processes = worker.tree()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    wait_until(lambda: not any(map(psutil.Process.is_running, processes)))


def test_a_misspelt_setting_is_named_in_the_log(own_client: Client, tmp_path: Path) -> None:
    failed_start(own_client, tmp_path, engine_flags="--die-at-start", MAX_NUM_SEQ="4")
    assert "MAX_NUM_SEQ has no effect: did you mean MAX_NUM_SEQS?" in (
        (tmp_path / "worker.log").read_text()
    )
