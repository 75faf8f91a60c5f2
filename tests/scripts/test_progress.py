"""How the set-up tells of what it does."""

import re
import threading

import pytest

from scripts import progress
from scripts.progress import SetUpError, phase
from tests.waiting import wait_until


def test_without_a_terminal_a_phase_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("packages"):
        pass
    with pytest.raises(SetUpError), phase("more of them"):
        raise SetUpError("no network")
    shown = capsys.readouterr().out
    assert re.fullmatch(r"  packages \.\.\. \d+\.\d s\n  more of them \.\.\. failed\n", shown)


def test_on_a_terminal_its_clock_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    shown = ""

    def ticked() -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return shown.count("\r") > 1

    with phase("packages"):
        wait_until(ticked)
    assert progress.CLOCK not in [thread.name for thread in threading.enumerate()]
    shown += capsys.readouterr().out
    assert re.fullmatch(
        r"  packages \.\.\.(\r  packages \.\.\. \d+ s)+\r  packages \.\.\. \d+\.\d s\n", shown
    )
