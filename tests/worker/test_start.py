"""A worker that cannot start: who is told, for how long, and how it ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.running import Client, one_endpoint
from tests.waiting import wait_until
from tests.worker.worker_process import WorkerProcess, chat, start_worker

pytestmark = pytest.mark.slow

TOO_LONG = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len \
(max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow [...]"""
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 108.00 MiB."
DISK_FULL = "OSError: [Errno 28] No space left on device"


@pytest.fixture
def client() -> Iterator[Client]:
    with one_endpoint(take_hold_seconds=60, stop_hold_seconds=60) as client:
        yield client


def dying(directory: Path, words: str, until: str = "") -> str:
    """The engine's flags with which it says these words and ends, until it has that flag."""
    path = directory / "last_words"
    path.write_text(words)
    return f"--die-saying {path}" + (f" --until={until}" if until else "")


def starts(worker: WorkerProcess) -> int:
    """How often vLLM has been started."""
    return worker.log.read_text().count("starting vLLM:")


def test_jobs_hear_why_the_model_does_not_start(client: Client, tmp_path: Path) -> None:
    flags = dying(tmp_path, TOO_LONG)
    with start_worker(client, tmp_path, engine_flags=flags) as worker:
        ours = client.outputs(client.run(chat(stream=True)))
        other = client.result(client.run({"prompt": "hi"}))
        assert worker.process.poll() is None
        assert starts(worker) == 1
    [frame] = ours
    assert (frame["status"], frame["start_failed"]) == (503, "context_too_long")
    error = json.loads(frame["text"])["error"]
    assert error == {
        "message": "MAX_MODEL_LEN is 100000, and the model tiny-chat takes 2048 tokens. Set "
        "MAX_MODEL_LEN to 2048 or less, or leave it unset.",
        "type": "server_error",
        "param": None,
        "code": "model_start_failed",
    }
    assert other["status"] == "FAILED"
    assert json.loads(other["error"])["error"] == error | {"type": "startup_error"}


def test_after_a_while_the_worker_ends_with_the_cause(client: Client, tmp_path: Path) -> None:
    flags = dying(tmp_path, TOO_LONG)
    settings = {"WORKER_START_FAILURE_SECONDS": "0.5"}
    with start_worker(client, tmp_path, engine_flags=flags, **settings) as worker:
        assert worker.exit_code() == 1
        assert "Jobs are answered with this for 0.5 seconds" in worker.log.read_text()
        assert worker.last_line().startswith("ERROR worker: MAX_MODEL_LEN is 100000")
    left = client.run(chat())
    assert client.status(left)["status"] == "IN_QUEUE"


def test_a_stop_ends_the_refusals(client: Client, tmp_path: Path) -> None:
    flags = dying(tmp_path, TOO_LONG)
    with start_worker(client, tmp_path, engine_flags=flags) as worker:
        client.outputs(client.run(chat()))
        worker.process.terminate()
        assert worker.exit_code() == 1
        assert worker.last_line().startswith("ERROR worker: MAX_MODEL_LEN is 100000")


def failed_start(client: Client, directory: Path, **settings: Any) -> tuple[int, WorkerProcess]:
    """The exit code of a worker that cannot start, and what is left of it."""
    with start_worker(client, directory, **settings) as worker:
        return worker.exit_code(), worker


def test_a_worker_told_to_answer_for_no_time_ends_at_once(client: Client, tmp_path: Path) -> None:
    flags = dying(tmp_path, TOO_LONG)
    settings = {"engine_flags": flags, "WORKER_START_FAILURE_SECONDS": "0"}
    code, worker = failed_start(client, tmp_path, **settings)
    assert (code, worker.log.read_text().count("MAX_MODEL_LEN is 100000")) == (1, 1)


@pytest.mark.parametrize("words", [DISK_FULL, "RuntimeError: not seen before"])
def test_a_host_at_fault_and_an_unknown_cause_take_no_jobs(
    client: Client, tmp_path: Path, words: str
) -> None:
    job = client.run(chat())
    code, worker = failed_start(client, tmp_path, engine_flags=dying(tmp_path, words))
    assert (code, starts(worker)) == (1, 1)
    assert client.status(job)["status"] == "IN_QUEUE"


def test_a_vllm_that_lacks_memory_is_started_once_more_with_less(
    client: Client, tmp_path: Path
) -> None:
    flags = dying(tmp_path, OUT_OF_MEMORY, until="--enforce-eager")
    with start_worker(client, tmp_path, engine_flags=flags) as worker:
        worker.wait_until_ready()
        assert client.result(client.run(chat(max_tokens=1)))["status"] == "COMPLETED"
        assert worker.engine("argv")["argv"][-3:] == [
            *("--enforce-eager", "--max-num-batched-tokens", "2048")
        ]
        assert starts(worker) == 2


def test_a_vllm_that_lacks_memory_again_is_given_up(client: Client, tmp_path: Path) -> None:
    flags = dying(tmp_path, OUT_OF_MEMORY)
    with start_worker(client, tmp_path, engine_flags=flags) as worker:
        [frame] = client.outputs(client.run(chat()))
        assert starts(worker) == 2
    assert frame["start_failed"] == "out_of_memory"


def test_a_vllm_that_has_little_already_is_not_started_again(
    client: Client, tmp_path: Path
) -> None:
    small = {"ENFORCE_EAGER": "true", "MAX_NUM_BATCHED_TOKENS": "512"}
    flags = dying(tmp_path, OUT_OF_MEMORY)
    with start_worker(client, tmp_path, engine_flags=flags, **small) as worker:
        client.outputs(client.run(chat()))
        assert starts(worker) == 1


def test_wrong_settings_are_told_to_jobs_as_well(client: Client, tmp_path: Path) -> None:
    settings = {"MAX_CONCURRENCY": "many", "WORKER_START_FAILURE_SECONDS": "600"}
    with start_worker(client, tmp_path, **settings) as worker:
        [frame] = client.outputs(client.run(chat()))
        worker.process.terminate()
        assert worker.exit_code() == 2
    assert frame["start_failed"] == "bad_flag"
    assert "MAX_CONCURRENCY" in frame["text"]


def test_many_jobs_are_answered_at_once(client: Client, tmp_path: Path) -> None:
    jobs = [client.run(chat()) for _ in range(20)]
    with start_worker(client, tmp_path, engine_flags=dying(tmp_path, TOO_LONG)) as worker:
        wait_until(lambda: client.health()["jobs"]["completed"] == 20, seconds=60)
        assert starts(worker) == 1
    assert {client.outputs(job)[0]["start_failed"] for job in jobs} == {"context_too_long"}
