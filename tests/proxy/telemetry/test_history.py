"""What the status page is told of the last two hours, and that it cannot grow."""

from typing import Any

import msgspec
import pytest

from proxy.api.answer import Course
from proxy.telemetry import history as bounds
from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.history import History

NOW: dict[str, Any] = {"requests": {"running": 1}}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


def ended(outcome: str = "completed", **facts: Any) -> EndedRequest:
    """A chat that has ended."""
    given: dict[str, Any] = {"route": "POST /v1/chat/completions", "key": "k", "model": "m"}
    return EndedRequest("id", "POST", "/", 200, outcome, 1.0, **given | facts)


def sample(history: History, clock: Clock) -> dict[str, Any]:
    """The sample that was being made."""
    clock.time += 10
    history.close_sample(lambda: NOW)
    return samples(history)[-1]


def samples(history: History, after: int = 0) -> list[dict[str, Any]]:
    """Those that there are."""
    return [msgspec.json.decode(made) for made in history.after(after)]


def test_requests_are_counted_by_how_they_ended_and_whose_they_were(
    history: History, clock: Clock
) -> None:
    history.note(ended(tokens=(3, 5)))
    history.note(ended("client_left", key="other"))
    history.note(ended("rate_limit_exceeded", model="n"))
    history.note(ended(route=""))  # one of our own, such as /health
    history.note_spent("k", "m", 2.0, 0.5)
    made = sample(history, clock)
    assert (made["completed"], made["left"], made["failed"]) == (1, 1, 1)
    assert {name: share["requests"] for name, share in made["keys"].items()} == {"k": 2, "other": 1}
    assert made["models"]["n"]["not_completed"] == 1
    assert made["models"]["m"] == {
        "requests": 2,
        "not_completed": 1,
        "tokens_in": 3,
        "tokens_out": 5,
        "seconds": 2.0,
        "dollars": 0.5,
    }
    assert made["now"] == NOW
    assert sample(history, clock)["keys"] == {}


def test_times_to_the_first_token_are_of_streams_and_cold_starts_stand_apart(
    history: History, clock: Clock
) -> None:
    for hundredths in range(1, 101):
        history.note(ended(first_token_seconds=hundredths / 100))
    history.note(ended(first_byte_seconds=900.0))  # of no stream
    for seconds in (40.0, 30.0):
        course = Course(was_cold=True)
        history.note(ended(first_token_seconds=seconds, course=course))
    made = sample(history, clock)
    assert made["first_token"] == [0.51, 0.96]
    assert (made["cold"], made["cold_seconds"]) == (2, 40.0)
    assert sample(history, clock)["first_token"] is None


def test_only_what_came_after_is_told(history: History, clock: Clock) -> None:
    first, second = sample(history, clock), sample(history, clock)
    assert [made["number"] for made in (first, second)] == [1, 2]
    assert second["time"] - first["time"] == 10
    assert first["time"] % 10 == 0
    assert samples(history, after=1) == [second]
    assert samples(history, after=2) == []


def test_a_sample_is_closed_once_however_often_its_end_is_seen(
    history: History, clock: Clock
) -> None:
    sample(history, clock)
    history.close_sample(lambda: NOW)
    assert len(samples(history)) == 1


def test_nothing_grows_without_bound(history: History, clock: Clock) -> None:
    for number in range(bounds.MAX_NAMES + 20):
        failed = ended("failed", key=f"k{number}", first_token_seconds=1.0)
        for _ in range(20):
            history.note(failed)
    made = sample(history, clock)
    assert len(made["keys"]) == bounds.MAX_NAMES + 1
    assert made["keys"][bounds.OTHERS]["requests"] == 400
    assert len(history.errors) == bounds.MAX_ERRORS
    for _ in range(bounds.MAX_SAMPLES + 5):
        last = sample(history, clock)
    assert len(samples(history)) == bounds.MAX_SAMPLES
    assert samples(history)[-1] == last


def test_the_newest_error_stands_first(history: History) -> None:
    history.note(ended("job_failed"))
    history.note(ended("model_start_failed"))
    assert [error["outcome"] for error in history.errors] == ["model_start_failed", "job_failed"]
