"""How long past starts took: kept in a file that may be anything."""

from pathlib import Path

import pytest

from proxy.backends.start_clock import MAX_ENDPOINTS, MAX_STARTS, StartClock, StartTimes


def test_the_median_of_the_last_starts_is_what_is_usual_and_outlives_the_proxy(
    tmp_path: Path,
) -> None:
    times = StartTimes(tmp_path)
    for seconds in (1000, 90, 95, 100):
        times.add("url", seconds)
    assert StartClock("ep", "url", StartTimes(tmp_path)).waited(40.2) == " 40 s, usually 98 s"
    assert StartClock("ep", "other", StartTimes(tmp_path)).waited(40.2) == ""
    for _ in range(MAX_STARTS):
        times.add("url", 7)
    assert StartClock("ep", "url", times).usually == ", usually 7 s"


def test_two_proxies_may_share_the_folder(tmp_path: Path) -> None:
    one, other = StartTimes(tmp_path), StartTimes(tmp_path)
    one.add("a", 1)
    other.add("b", 2)
    assert StartTimes(tmp_path).of("a") == [1]
    assert StartTimes(tmp_path).of("b") == [2]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"url": 7}', '{"url": [null, "x", -1, 1e99, true]}', "[" * 100_000, "\0"],
)
def test_a_file_that_makes_no_sense_is_no_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "start_times.json").write_text(text)
    times = StartTimes(tmp_path)
    times.add("url", 7)
    assert StartTimes(tmp_path).of("url")[-1] == 7


def test_a_folder_that_cannot_be_used_costs_the_memory_alone(tmp_path: Path) -> None:
    times = StartTimes(tmp_path / "missing")
    times.add("url", 7)
    assert times.of("url") == [7]


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    times = StartTimes(None)
    for number in range(MAX_ENDPOINTS + 5):
        times.add(str(number), 1)
    assert times.of("0") == []
    assert times.of(str(MAX_ENDPOINTS + 4)) == [1]


def test_a_wait_for_a_worker_that_is_up_is_no_start() -> None:
    clock = StartClock("ep", "url", StartTimes(None))
    clock.begin()
    clock.end()
    assert clock.usual_seconds is None
    clock.begin()
    clock.confirm()
    clock.give_up()
    clock.end()
    assert clock.usual_seconds is None
    clock.begin()
    clock.confirm()
    clock.end()
    assert clock.usual_seconds is not None
