"""The document tells every target, and what failed."""

import re

import pytest

from tests.bench.capacity import Capacity
from tests.bench.drawings import PREFIX, drawings
from tests.bench.leaving import Leaving
from tests.bench.load import Spread
from tests.bench.pick_up import PickUp
from tests.bench.profiles import Profile
from tests.bench.record import Record
from tests.bench.report import DOCUMENT, FIGURES, IMAGES, document
from tests.bench.rounds import Result
from tests.bench.test_figures import record, run

CALLS = {
    "stream": {"admitted": 40, "refused": 2},
    "job-stream": {"admitted": 10, "refused": 0},
}


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_every_target_has_its_row() -> None:
    text = document(
        record(
            run("direct", 0, 0.05, streams=1),
            run("queue", 0, 0.07, streams=1, calls=CALLS, tokens=20, lost=3, stalls=4),
        )
    )
    glance, row, calls = re.findall(r"^\| the queue \| (.*) \|$", text, re.MULTILINE)
    assert glance == "1 | 20 | 20 | - | - | -"
    assert row == "20.0 | 20.0 | 20.0 | 20.0 | 4 | 3, 0, 0"
    assert calls == "2,000 | 2 | 500"
    assert "| the direct |" not in text


def test_the_document_that_is_there_is_what_its_figures_and_the_words_make() -> None:
    plots = [path.name for path in IMAGES.glob(f"{PREFIX}*.svg")]
    assert DOCUMENT.read_text() == document(Record.load(FIGURES), plots)


def test_a_target_that_failed_is_told_in_its_place() -> None:
    error = "proxy ended with exit code 1\nno | such setting"
    text = document(record(run("direct", 0, 0.05), run("queue", 0, 0, seen=None, error=error)))
    assert "| the queue | failed: no / such setting |" in text


def test_a_section_without_figures_is_left_out() -> None:
    text = document(record(run("direct", 0, 0.05), run("relay", 0, 0.06)))
    assert headings(text) == ["At a glance", "Streams", "How it was measured"]
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
    assert "| the relay | CPU of a chunk, 10 streams | 400 us | 100 us | 0.25 |" in text


def test_plain_requests_have_their_cost_at_each_rate_and_their_times_at_the_lowest() -> None:
    def plain(target: str, rate: int, seconds: float) -> Result:
        spread = Spread(10, seconds, seconds, seconds, seconds, seconds)
        return run(target, 0, 0, kind="plain", streams=rate, plain=spread, cpu_seconds=rate / 1e4)

    text = document(
        record(
            *(plain("direct", rate, 0.05) for rate in (20, 100)),
            *(plain("queue", rate, 0.07) for rate in (20, 100)),
            plain("litellm", 20, 0.09),
        )
    )
    assert "| the queue | 20.0 | 20.0 | 200 | 1,000 |" in text
    assert "| the litellm | 40.0 | 40.0 | 200 | - |" in text


def test_what_is_measured_beside_the_rounds_has_its_tables() -> None:
    spread = Spread(9, 0.03, 0.029, 0.041, 0.05, 0.05)
    text = document(
        record(
            run("direct", 0, 0.05),
            run("relay", 0, 0.06),
            capacities=[Capacity(target="relay", streams=640, refuted=800, chunks_a_second=12800)],
            pick_ups=[
                PickUp(worker="ours", first_output=spread, posts_per_1000_tokens=1000),
                PickUp(worker="broken", error="it fell over"),
            ],
            leavings=[Leaving(target="relay", seconds=spread)],
            profiles=[
                Profile(target="relay", samples=9, functions=[("send (uvicorn.py)", 0.125)]),
                Profile(target="relay", kind="plain", error="no such process"),
            ],
        )
    )
    assert "| the relay | 640 | 800 | 12,800 |" in text
    assert "| ours | 29 | 41 | 1,000 |" in text
    assert "| broken | failed: it fell over |" in text
    assert "| the relay | 29 | 50 |" in text
    assert "| 12.5% | `send (uvicorn.py)` |" in text
    assert "**the relay, plain requests**\n\nfailed: no such process" in text


def test_plots_show_what_was_measured_and_are_shown_where_they_are_there() -> None:
    runs = [
        run(target, 0, seconds, streams=streams, cpu_seconds=0.1, chunks=100)
        for streams in (1, 10)
        for target, seconds in (("direct", 0.05), ("relay", 0.07))
    ]
    found = record(*runs)
    assert [one["name"] for one in drawings(found)] == ["gaps", "first-token", "cpu"]
    [line] = drawings(found)[0]["series"]
    assert (line["title"], line["x"]) == ("the relay", [1, 10])
    assert line["y"] == pytest.approx([20, 20])
    assert "](images/" not in document(found)
    assert "](images/performance-gaps.svg)" in document(found, ["performance-gaps.svg"])
