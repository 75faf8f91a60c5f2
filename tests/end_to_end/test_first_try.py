"""What anybody tries first: RunPod's curl example, as the emulator's README has it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.local_stack import LocalStack
from tests.emulator.running import API_KEY
from tests.end_to_end.conftest import Road

README = Path(__file__).parents[2] / "emulator" / "README.md"

pytestmark = pytest.mark.slow


def first_try(endpoint_url: str, api_key: str) -> Any:
    """The parsed answer to the README's example, run by a shell with another address and key.

    curl labels the body as a form, and the key is sent without `Bearer`.
    """
    [example] = re.findall(r"```sh\n(curl --request POST .*?)```", README.read_text(), re.DOTALL)
    command = example.replace("http://127.0.0.1:8400/v2/local", endpoint_url)
    command = command.replace("rpa_local", api_key)
    assert endpoint_url in command
    assert "content-type" not in command.lower()
    environment = {**os.environ, "NO_PROXY": "*"}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def text_of(job: Any) -> str:
    """The completion in a finished job of ours or of RunPod's image: a list of one answer."""
    assert job["status"] == "COMPLETED", job
    [output] = job["output"]
    return str(output["choices"][0]["text"])


def test_the_readmes_first_example_gives_a_completion(warm_road: Road) -> None:
    job = first_try(warm_road.runpod.url, API_KEY)
    asked = warm_road.engine()["requests"][-1]["body"]
    assert (asked["model"], asked["prompt"], asked["stream"]) == ("m", "Hello", False)
    assert text_of(job)
    assert job["id"].startswith("sync-")


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_it_works_on_the_stack_of_make_run_too(vllm_stack: LocalStack) -> None:
    url = f"{vllm_stack.runpod_url}/{vllm_stack.chat.id}"
    assert text_of(first_try(url, vllm_stack.runpod_api_key))
