"""`make run ENGINE=scripted`: what people see who have no Linux, or no time."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from scripts.run import QUESTION
from tests.scripts.conftest import ROOT, Start
from tests.scripts.not_linux import make_python
from tests.servers import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

UNWANTED = ("NO_COLOR", "VERBOSE", "COLUMNS", "LINES")
"""Variables that change how things are drawn."""


def test_the_scripted_engine_needs_no_linux_and_is_labelled(start: Start, tmp_path: Path) -> None:
    run = start(python=make_python(tmp_path / "python"), ENGINE="scripted", MODEL="")
    run.wait_for("ENGINE=scripted: answers follow a script, no model makes them.")
    assert "This is the scripted engine 🎭, no model" in run.output
    assert f"You wrote: {QUESTION}" in run.output
    url = f"http://127.0.0.1:{run.ports['PROXY_PORT']}/v1/models"
    [model] = httpx.get(url, headers={"Authorization": "Bearer sk-local"}).json()["data"]
    assert (model["id"], model["owned_by"]) == ("scripted", "scripted-engine")
    run.interrupt()
    assert run.process.wait(100) == 0
    wait_until(lambda: not run.left())
    written = [run.output, *(log.read_text() for log in (tmp_path / "logs").glob("*.log"))]
    assert len(written) == 4
    assert not [text for text in written if "Traceback" in text]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"ENGINE": "llama", "MODEL": ""}, "ENGINE is llama: there is scripted"),
        ({"ENGINE": "scripted", "MODEL": "Qwen/Qwen3-8B"}, "ENGINE=scripted has no model"),
    ],
)
def test_an_engine_that_cannot_be_is_named(
    start: Start, wishes: dict[str, str], message: str
) -> None:
    run = start(**wishes)
    assert run.process.wait(100) == 1
    assert message in run.output
    assert "Starting" not in run.output


@pytest.mark.parametrize(
    "moment", ["Starting", "emulator: starting", "worker: starting", "You wrote"]
)
def test_ctrl_c_at_any_moment_leaves_nothing_and_no_traceback(start: Start, moment: str) -> None:
    run = start(ENGINE="scripted", MODEL="")
    run.wait_for(moment)
    run.interrupt()
    assert run.process.wait(100) == 0, run.output
    assert "Stopped." in run.output
    assert "Traceback" not in run.output
    wait_until(lambda: not run.left())


def read_to_the_end(terminal: int, process: subprocess.Popen[bytes]) -> str:
    """All that is drawn, with a Ctrl-C when everything is up."""
    shown, is_interrupted = b"", False
    with suppress(OSError):  # what a terminal answers when all have left it
        while piece := os.read(terminal, 65536):
            shown += piece
            if b"runsync" in shown and not is_interrupted:
                os.killpg(process.pid, signal.SIGINT)
                is_interrupted = True
    return shown.decode()


def test_on_a_terminal_it_draws_and_leaves_the_cursor_as_it_was(tmp_path: Path) -> None:
    terminal, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    ports = {name: str(free_port()) for name in ("PROXY_PORT", "EMULATOR_PORT")}
    own = {"ENGINE": "scripted", "MODEL": "", "TERM": "xterm", "RUN_LOGS": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.run"],
        cwd=ROOT,
        env={**kept, **ports, **own},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as process:
        os.close(its)
        text = read_to_the_end(terminal, process)
    os.close(terminal)
    assert process.returncode == 0
    assert "\x1b[?25l" in text, "the cursor was hidden while it was drawn"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "✓" in text
    assert "Stopped." in text
    assert "Traceback" not in text
