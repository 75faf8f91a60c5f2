"""The document tells every target, and what failed."""

import re

from tests.bench.report import document
from tests.bench.test_figures import record, run

CALLS = {"stream": {"admitted": 40, "refused": 2}}


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_every_target_has_its_row() -> None:
    text = document(
        record(
            run("direct", 0, 0.05, streams=1),
            run("queue", 0, 0.07, streams=1, calls=CALLS, tokens=20, lost=3, stalls=4),
        )
    )
    [row] = re.findall(r"^\| the queue \| (20.0 .*) \|$", text, re.MULTILINE)
    assert row == "20.0 | 20.0 | 20.0 | 20.0 | 4 | 3, 0, 0"
    assert "| the queue | 2,000 | 2 |" in text
    assert "the direct" not in text


def test_a_target_that_failed_is_told_in_its_place() -> None:
    error = "proxy ended with exit code 1\nno | such setting"
    text = document(record(run("direct", 0, 0.05), run("queue", 0, 0, seen=None, error=error)))
    assert "| the queue | failed: no / such setting |" in text


def test_a_section_without_figures_is_left_out() -> None:
    text = document(record(run("direct", 0, 0.05), run("relay", 0, 0.06)))
    assert headings(text) == ["Streams", "How it was measured"]
    assert "$" not in text


def test_the_build_before_is_held_against_this_one() -> None:
    text = document(
        record(
            run("direct", 0, 0.05),
            run("relay", 0, 0.06, cpu_seconds=0.1, chunks=1000),
            run("before-relay", 0, 0.06, cpu_seconds=0.4, chunks=1000),
            baseline="def5678",
        )
    )
    assert "of what revision def5678 needs" in text
    assert "| the relay | CPU of a chunk, 10 streams | 400.0 us | 100.0 us | 0.25 |" in text
