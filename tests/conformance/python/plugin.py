"""Tells the outcome of every check as a line of JSON, for `tests/conformance/run.py`."""

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.conformance.python.target import Target, target_of_this_run


def pytest_configure(config: pytest.Config) -> None:
    """Name the one marker."""
    config.addinivalue_line("markers", "feature(name): the feature that is checked")


@pytest.fixture(scope="session")
def target() -> Target:
    """What is checked."""
    return target_of_this_run()


@pytest.fixture
def keyed(target: Target) -> Target:
    """A target that asks for keys."""
    if not target.asks_for_keys:
        pytest.skip("this vLLM asks for no key")
    return target


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write down what became of a check: of its call, or of what went wrong before and after."""
    report = yield
    if report.when == "call" or report.outcome != "passed":
        feature = item.get_closest_marker("feature")
        told = {
            "feature": feature.args[0] if feature else "",
            "check": item.name,
            "outcome": report.outcome,
            "message": _message(report),
        }
        _tell(told)
    return report


def pytest_sessionfinish() -> None:
    """Tell that no check is missing for a process that ended before its time."""
    _tell("end")


def _tell(told: object) -> None:
    with Path(os.environ["CONFORMANCE_RESULTS"]).open("a") as results:
        results.write(json.dumps(told) + "\n")


def _message(report: pytest.TestReport) -> str:
    """The first line of what went wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message).strip().partition("\n")[0]
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(getattr(report, "wasxfail", ""))
