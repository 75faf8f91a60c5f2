"""vLLM itself, started in a way in which it cannot start."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.set_up import TINY_CHAT, VLLM_FLAGS, vllm_command
from tests.emulator.running import Client, one_endpoint
from tests.worker.worker_process import chat, start_worker
from worker.flags import ask

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def client() -> Iterator[Client]:
    with one_endpoint() as client:
        yield client


@pytest.mark.parametrize(
    ("settings", "cause", "words"),
    [
        ({"MAX_MODEL_LEN": "100000"}, "context_too_long", "takes 2048 tokens"),
        ({"VLLM_EXTRA_ARGS": "--foo-bar 3"}, "bad_flag", "unrecognized arguments: --foo-bar"),
    ],
)
def test_what_vllm_says_of_a_start_that_failed_is_told(
    client: Client, tmp_path: Path, settings: dict[str, str], cause: str, words: str
) -> None:
    real = {
        "MODEL_NAME": str(TINY_CHAT.folder),
        "WORKER_VLLM_COMMAND": vllm_command(),
        "WORKER_VLLM_FLAGS": str(VLLM_FLAGS),
        "WORKER_START_FAILURE_SECONDS": "600",
    }
    with start_worker(client, tmp_path, **real, **settings) as worker:
        [frame] = client.outputs(client.run(chat(stream=True)))
        worker.process.terminate()
        assert worker.process.wait(60) == 1
    assert frame["start_failed"] == cause
    assert words in frame["text"]


def test_vllm_has_the_flags_of_the_list_that_is_kept() -> None:
    asked = ask(shlex.split(vllm_command()))
    assert json.loads(asked) == json.loads(VLLM_FLAGS.read_text())
