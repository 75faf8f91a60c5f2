"""A short soak, and what counts as a leak; `make soak` runs long ones."""

import random

import pytest

from tests.chaos.soak import MEMORY_NOISE_MIB, Report, Sample, soaked

MiB = 2**20


def report(
    *,
    bytes_a_second: float = 0,
    files_a_second: float = 0,
    calls_a_second: float = 0,
    warm_up: float = 0,
) -> Report:
    """A report of five minutes with some noise in it."""
    dice = random.Random(7)
    samples = [
        Sample(
            seconds=second,
            memory_bytes=round(
                70 * MiB
                + min(second, 60) * warm_up
                + second * bytes_a_second
                + dice.uniform(0, MEMORY_NOISE_MIB / 2) * MiB
            ),
            files=round(200 + second * files_a_second + dice.uniform(0, 40)),
            calls=round(150 + second * calls_a_second + dice.uniform(0, 100)),
            requests=20 * second,
        )
        for second in range(300)
    ]
    return Report(200, samples)


def test_what_grows_while_warming_up_is_no_leak() -> None:
    assert report(warm_up=MiB).leaks == []


def test_memory_that_keeps_growing_is_a_leak() -> None:
    # 2 kB a request, far less than one of them holds while it runs
    assert "memory grew" in "".join(report(bytes_a_second=40_000).leaks)


def test_files_that_keep_piling_up_are_a_leak() -> None:
    # one request in a hundred
    assert "open files grew" in "".join(report(files_a_second=0.2).leaks)


def test_calls_that_are_never_closed_are_a_leak() -> None:
    assert "connections to RunPod grew" in "".join(report(calls_a_second=1).leaks)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_streams_that_come_and_go_leave_nothing_behind() -> None:
    report = soaked(streams=60, seconds=35)
    print(report)
    assert report.wrong == []
    assert report.leaks == []
    assert report.ends["whole"] > 60
    assert report.ends["left"] > 5
