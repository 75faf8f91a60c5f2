"""What the guides show for Node.js works as it is written, and LibreChat takes its settings."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.local_stack import LocalStack
from scripts.ui_tools import node_packages
from tests.guides import GUIDES, ROOT, Block, blocks
from tests.jobs import Jobs
from tests.long_models import TOKENS
from tests.waiting import wait_until

pytestmark = [
    *(pytest.mark.ui, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)),
    pytest.mark.usefixtures("packages"),
]

NODE = blocks("js", *GUIDES)
LIBRECHAT = ROOT / "docs" / "guides" / "librechat.md"
CONFIG_CHECK = ROOT / "tests" / "ui" / "librechat_config.mjs"


def run_node(folder: Path, program: str, text: str = "") -> str:
    """What a program prints, run where it finds the packages; fails if it fails or complains."""
    (folder / "node_modules").symlink_to(node_packages())
    main = folder / "main.mjs"
    main.write_text(program)
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        ["node", main], input=text, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("block", NODE, ids=str)
def test_node_prints_an_answer(stack: LocalStack, block: Block, tmp_path: Path) -> None:
    assert len(run_node(tmp_path, block.for_proxy_at(stack.base_url)).split()) > 3


def test_a_program_that_leaves_its_loop_stops_its_job(
    stack: LocalStack, jobs: Jobs, tmp_path: Path
) -> None:
    (block,) = [block for block in NODE if "break;" in block.text]
    program = block.for_proxy_at(stack.base_url)
    long = f"stream: true, max_tokens: {TOKENS}, ignore_eos: true,"
    endless = program.replace("stream: true,", long)
    assert endless != program
    jobs.forget()
    run_node(tmp_path, endless)
    wait_until(lambda: [job["status"] for job in jobs.all()] == ["CANCELLED"])


def what_librechat_says(text: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_node(folder, CONFIG_CHECK.read_text(), text))
    return found


def test_librechat_takes_the_settings_of_its_guide(tmp_path: Path) -> None:
    (block,) = blocks("yaml", LIBRECHAT)
    says = what_librechat_says(block.text, tmp_path)
    assert says["problems"] == []
    assert says["unknown"] == []
    assert f"version: {says['version']}\n" in block.text


@pytest.mark.parametrize(
    ("right", "wrong", "kind", "complaint"),
    [
        ("titleConvo:", "titelConvo:", "unknown", "endpoints.custom.0.titelConvo"),
        ("default: [tiny-chat]", "default: 1", "problems", "endpoints.custom.0.models.default"),
    ],
)
def test_a_wrong_setting_of_librechat_would_be_seen(
    tmp_path: Path, right: str, wrong: str, kind: str, complaint: str
) -> None:
    (block,) = blocks("yaml", LIBRECHAT)
    says = what_librechat_says(block.text.replace(right, wrong), tmp_path)
    assert [text for text in says[kind] if text.startswith(complaint)]
