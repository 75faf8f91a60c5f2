"""What the README and the guides show in Python and in a shell works as it is written."""

import os
import re
import subprocess
import sys

import pytest

from scripts.local_stack import LocalStack
from tests.guides import GUIDES, ROOT, Block, blocks
from tests.jobs import Jobs, body_of
from tests.long_models import TOKENS
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

DOCUMENTS = [ROOT / "README.md", *GUIDES]
PYTHON = blocks("python", *DOCUMENTS)
CURL = [block for block in blocks("console", *DOCUMENTS) if block.text.startswith("$ curl")]

PRINTED = {
    "include_usage": r"\n\d+ tokens\n$",
    "no-such-model": r"^NotFoundError 404 model_not_found req_\w+\n$",
    "structured_outputs": r"^(red|green|blue)\n$",
    "usage_metadata": r"'output_tokens': \d+",
    "with_structured_output": r"^Animal name=.* legs=-?\d+\n$",
    "tiny-embed": r"^\[\[-?\d",
    "tiny-chat": r"\w",
}
"""Words of blocks, and what they print; the first that fits counts."""

CURL_PRINTED = {
    "curl -N": r"\ndata: \[DONE\]\n\n$",
    "/v1/models": r'"id":"tiny-chat"',
    "/v1/embeddings": r'"embedding":\[-?\d',
    "What is RunPod?": r"^\w",
}


def run(*command: str) -> str:
    """What a command prints; fails if it fails or complains."""
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_prints_what_it_should(vllm_stack: LocalStack, block: Block) -> None:
    printed = run(sys.executable, "-c", block.for_proxy_at(vllm_stack.base_url))
    expected = next(pattern for word, pattern in PRINTED.items() if word in block.text)
    assert re.search(expected, printed)


def test_a_program_that_leaves_its_with_stops_its_job(vllm_stack: LocalStack) -> None:
    (block,) = [block for block in PYTHON if "break" in block.text]
    program = block.for_proxy_at(vllm_stack.base_url)
    extra = 'extra_body={"ignore_eos": True}'
    long = f"stream=True, n=4, temperature=1, max_tokens={TOKENS}, {extra}"
    run(sys.executable, "-c", program.replace("stream=True", long))
    jobs = Jobs(vllm_stack)
    (job,) = [job for job in jobs.all() if body_of(job).get("max_tokens") == TOKENS][-1:]
    wait_until(lambda: jobs.status(job["id"]) == "CANCELLED", seconds=60)


@pytest.mark.parametrize("block", CURL, ids=str)
def test_curl_gets_an_answer(vllm_stack: LocalStack, block: Block) -> None:
    (command,) = block.commands()
    assert command.startswith("curl ")
    text = block.for_proxy_at(vllm_stack.base_url).removeprefix("$ ")
    printed = run("sh", "-c", text.replace("curl ", "curl -sS ", 1))
    expected = next(pattern for word, pattern in CURL_PRINTED.items() if word in command)
    assert re.search(expected, printed)


def test_there_is_something_to_try_in_each_document() -> None:
    tried = {block.document.name for block in PYTHON + CURL}
    assert {"README.md", "curl.md", "openai-sdks.md", "langchain.md"} <= tried
