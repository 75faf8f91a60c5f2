"""What a start is doing, from RunPod's REST API as the emulator serves it."""

import re
from pathlib import Path
from typing import Any

import pytest

from proxy.backends.start_progress import phase_of
from tests.emulator.running import API_KEY
from tests.end_to_end.test_failed_starts import stack
from tests.proxy.conftest import chat

SAYS = """INFO 11-28 10:00:00 [x.py:1] a secret prompt in /secret/path
Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:01<00:03,  1.01s/it]
INFO 11-28 10:00:02 [x.py:1] another secret
"""


def settings_of(runpod_key: str, state_dir: Path) -> dict[str, Any]:
    """Of a proxy that may ask for logs with this key, as far as the emulator agrees."""
    return {
        "rest_api_key": runpod_key,
        "state_dir": state_dir,
        "first_byte_hold_seconds": 0,
    }


@pytest.mark.slow
def test_a_comment_tells_what_the_worker_that_starts_is_doing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = {"START_SECONDS": "6", "SAYS": SAYS}
    with stack("hook", settings_of(API_KEY, tmp_path), env=env) as (client, _):
        text = client.post("/v1/chat/completions", json=chat(stream=True)).text
    assert re.search(r"^: queued \d+ s, loading weights$", text, re.MULTILINE)
    assert text.endswith("data: [DONE]\n\n")
    assert "secret" not in text + caplog.text


@pytest.mark.slow
def test_a_key_without_the_right_costs_the_phase_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = {"START_SECONDS": "2", "SAYS": SAYS}
    with stack("hook", settings_of("rpa_another", tmp_path), env=env) as (client, _):
        text = client.post("/v1/chat/completions", json=chat(stream=True)).text
    assert "loading" not in text
    assert text.endswith("data: [DONE]\n\n")
    assert caplog.text.count("needs the right to read the endpoint") == 1


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("INFO [gpu_model_runner.py:1] Starting to load model m...", "loading weights"),
        (
            "[vllm.py:1] Enforce eager set, disabling torch.compile, CUDAGraphs",
            "starting the engine",
        ),
        ("INFO Initializing a V1 LLM engine (v0.32.0): num_of_warmups=0", "starting the engine"),
        ("Loading safetensors checkpoint shards: 100% Completed | 4/4", "loading weights"),
        ("Capturing CUDA graphs (mixed prefill-decode): 10%|", "capturing CUDA graphs"),
        ("INFO [backends.py:1] Dynamo bytecode transform time: 5.1 s", "compiling"),
        ("INFO [backends.py:1] Compiling a graph for compile range", "compiling"),
        ("INFO [kv_cache_utils.py:1] GPU KV cache size: 1,000 tokens", "warming up"),
        ("Fetching 8 files:  12%|", "downloading"),
        ("INFO worker: starting vLLM: python3 -m vllm", "starting vLLM"),
        ("INFO: Application startup complete.", "starting the server"),
        ("a prompt that says nothing", None),
    ],
)
def test_known_lines_are_told_as_phases_and_others_as_nothing(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase
