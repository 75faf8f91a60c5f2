"""What is shown while the stack starts: drawn on a terminal, lines of plain text elsewhere."""

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from scripts.happenings import what_happens
from scripts.screen import LiveScreen, Paint, Part, Screen, Step, is_terminal

EMULATOR, PROXY = Path("emulator.log"), Path("proxy.log")
PLAIN = Paint(live=False)


def steps_and_parts() -> tuple[list[Step], list[Part]]:
    steps = [Step("vLLM for the CPU", "1 GB"), Step("cold start: a worker starts, vLLM loads m")]
    parts = [
        Part("emulator", "http://127.0.0.1:8400"),
        Part("worker", "log .cache/run/local-*.log"),
    ]
    return steps, parts


def run_through(screen: Screen) -> None:
    """A start whose second step fails."""
    first, second = screen.steps
    with screen:
        screen.state("emulator", "up")
        with screen.doing(first):
            screen.note(first, "torch for the CPU")
            screen.note(first, "torch for the CPU")
        screen.state("worker", "starting: loading weights")
        with pytest.raises(KeyboardInterrupt), screen.doing(second):
            raise KeyboardInterrupt


def test_without_a_terminal_each_change_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    run_through(Screen(*steps_and_parts()))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert re.sub(r"\d+\.\d s", "N s", shown).splitlines() == [
        "      emulator: up",
        "[1/2] vLLM for the CPU (1 GB) ...",
        "[1/2] vLLM for the CPU: torch for the CPU",
        "[1/2] vLLM for the CPU: N s",
        "      worker: starting: loading weights",
        "[2/2] cold start: a worker starts, vLLM loads m ...",
        "[2/2] cold start: a worker starts, vLLM loads m: not done",
    ]


def drawn(screen: LiveScreen, width: int) -> list[str]:
    """What it shows now, on a terminal of that width."""
    paper = Console(file=io.StringIO(), width=width, force_terminal=False)
    with paper.capture() as captured:
        paper.print(screen.drawn())
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [60, 100])
def test_on_a_terminal_steps_have_numbers_sizes_and_clocks(width: int) -> None:
    paper = Console(file=io.StringIO(), width=width, force_terminal=True)
    screen = LiveScreen(*steps_and_parts(), paper)
    waiting = "\n".join(drawn(screen, width))
    assert re.search(r"· 1 vLLM for the CPU +1 GB *$", waiting, re.MULTILINE)
    run_through(screen)
    lines = drawn(screen, width)
    shown = "\n".join(lines)
    assert all(cell_len(line) <= width for line in lines)
    assert re.search(r"✓ 1 vLLM for the CPU +1 GB +\d+\.\d s$", shown, re.MULTILINE)
    assert re.search(r"^✗ 2 cold start: ", shown, re.MULTILINE)
    assert re.search(r"^● emulator up +http://127.0.0.1:8400", shown, re.MULTILINE)
    assert re.search(r"^● worker +starting: loading weights log \.cache", shown, re.MULTILINE)


def test_a_step_under_way_shows_what_is_done_and_a_clock() -> None:
    screen = LiveScreen(*steps_and_parts(), Console(file=io.StringIO()))
    step = screen.steps[0]
    with screen.doing(step):
        screen.note(step, "torch for the CPU")
        lines = drawn(screen, 60)
    assert re.search(r"1 vLLM for the CPU +1 GB +\d+ s$", lines[0])
    assert lines[1].strip() == "torch for the CPU"


@pytest.mark.parametrize(
    ("term", "is_tty", "expected"),
    [("xterm", True, True), ("dumb", True, False), ("xterm", False, False), ("", True, False)],
)
def test_only_what_can_be_drawn_on_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, is_tty: bool, expected: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_tty)
    assert is_terminal({"TERM": term}) is expected


def test_lines_are_painted_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.screen.console", lambda: Console(force_terminal=True))
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert PLAIN("200", "green") == "200"
    assert re.fullmatch(r"\x1b\[32m200\x1b\[0m", Paint(live=True)("200", "green"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint(live=True)("200", "green") == "200"


ACCESS = "2026-11-29 12:00:01,002 INFO proxy.access: req_1 {} job=- key=key-1"


@pytest.mark.parametrize(
    ("log", "line", "shown"),
    [
        (
            PROXY,
            ACCESS.format("POST /v1/chat/completions 200 completed 1.249s") + " model=m start=cold",
            "12:00:01  200  POST /v1/chat/completions  1.2 s, m, cold start",
        ),
        (
            PROXY,
            ACCESS.format("GET /v1/models 401 failed 0.002s"),
            "12:00:01  401  GET /v1/models  2 ms, failed",
        ),
        (PROXY, ACCESS.format("GET /admin/status 200 completed 0.002s"), None),
        (
            PROXY,
            "2026-11-29 12:00:02,002 INFO proxy.backends.health: endpoint local is cold: no",
            "12:00:02  endpoint local is cold: no",
        ),
        (PROXY, "INFO:     Application startup complete.", None),
        (
            EMULATOR,
            "12:00:03 emulator: endpoint local: worker 32ba started (pid 1, log /x.log)",
            "12:00:03  worker of local  started",
        ),
        (
            EMULATOR,
            "12:00:04 emulator: endpoint local: worker 32ba stopping: idle for 600 s",
            "12:00:04  worker of local  stopping: idle for 600 s",
        ),
        (
            EMULATOR,
            "12:00:05 emulator: endpoint local: worker 32ba died (exit code 1), last lines:",
            "12:00:05  worker of local  died (exit code 1), last lines",
        ),
        (Path("local-1.log"), ACCESS.format("GET / 200 completed 1.0s"), None),
    ],
)
def test_requests_and_workers_are_a_line_each(log: Path, line: str, shown: str | None) -> None:
    assert what_happens(log, line, PLAIN) == shown
