"""Budgets: what is spent is counted to the day and the month, and kept over a restart."""

import logging
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy.access import spending as spending_module
from proxy.access.keys import KeyLimits
from proxy.access.limits import check_budget
from proxy.access.spending import FILE, Spending, Spent
from proxy.errors import InsufficientQuota
from tests.proxy.access.conftest import BEGINNING, FRAME, Limited
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
EVENING = datetime(2026, 12, 31, 23, 0, tzinfo=UTC)


class Clock:
    """A moment that a test sets."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def test_a_day_and_a_month_begin_with_nothing_spent(tmp_path: Path) -> None:
    clock = Clock(datetime(2026, 12, 30, 12, tzinfo=UTC))
    spending = Spending(tmp_path, clock)
    spending.note("a", Spent(1.0, 10.0))
    clock.now = EVENING
    spending.note("a", Spent(0.5, 5.0))
    assert spending.of("a") == (Spent(0.5, 5.0), Spent(1.5, 15.0))
    assert spending.of("b") == (Spent(), Spent())
    clock.now = datetime(2027, 1, 1, tzinfo=UTC)
    assert spending.of("a") == (Spent(), Spent())
    spending.close()
    Spending(tmp_path, clock).of("a")
    with sqlite3.connect(tmp_path / FILE) as file:  # the old months' rows are gone
        assert file.execute("SELECT count(*) FROM spending").fetchone() == (0,)
    file.close()


def test_what_was_spent_is_kept_over_a_restart_and_shared_by_those_that_share_the_folder(
    tmp_path: Path,
) -> None:
    first, second = Spending(tmp_path), Spending(tmp_path)
    for spending in (first, second, first):
        spending.note("a", Spent(1.0, 2.0))
    assert second.of("a")[0] == Spent(3.0, 6.0)
    first.close()
    second.close()
    third = Spending(tmp_path)
    assert third.of("a")[1] == Spent(3.0, 6.0)
    third.close()


def test_what_cannot_be_written_is_kept_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spending = Spending(tmp_path)
    spending.note("a", Spent(1.0, 1.0))
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    spending.note("a", Spent(1.0, 1.0))
    assert spending.of("a")[0] == Spent(2.0, 2.0)
    assert "cannot be written now" in caplog.text
    other.execute("ROLLBACK")
    other.close()
    spending.note("a", Spent(1.0, 1.0))
    spending.close()
    again = Spending(tmp_path)
    assert again.of("a")[0] == Spent(3.0, 3.0)
    again.close()


def test_what_many_keys_have_left_to_write_is_written_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spending_module, "MAX_TOGETHER", 3)
    spending, names = Spending(tmp_path), ["a", "b", "c"]
    spending.note("a", Spent(1.0, 1.0))
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for name in names:
        spending.note(name, Spent(1.0, 2.0))
    other.execute("ROLLBACK")
    other.close()
    spending.note("a", Spent(1.0, 1.0))
    spending.close()
    again = Spending(tmp_path)
    assert [again.of(name)[1] for name in names] == [Spent(3, 4), Spent(1, 2), Spent(1, 2)]
    again.close()


def test_without_a_folder_that_can_be_written_it_is_counted_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    spending = Spending(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        spending.note("a", Spent(1.0, 1.0))
    assert "will be forgotten when the proxy stops" in caplog.text
    assert spending.of("a")[0] == Spent(1.0, 1.0)
    spending.close()


@pytest.mark.parametrize(
    ("limits", "today", "month", "said"),
    [
        ({"daily_budget": 5}, Spent(4.99), Spent(90), ""),
        ({"daily_budget": 5}, Spent(5.004), Spent(90), r"daily budget of \$5 \(spent: \$5.004\)"),
        ({"monthly_budget": 90}, Spent(), Spent(90), r"monthly budget of \$90 .*2027-01-01 00:00"),
        ({"daily_gpu_seconds": 60}, Spent(9, 60), Spent(), "daily budget of 60 GPU-seconds"),
        ({"monthly_gpu_seconds": 60}, Spent(9, 60), Spent(9, 61.5), "60 GPU-seconds .spent: 61.5"),
    ],
)
def test_a_budget_is_spent_when_all_of_it_is(
    limits: dict[str, Any], today: Spent, month: Spent, said: str
) -> None:
    if not said:
        check_budget(KeyLimits(**limits), today, month, EVENING)
        return
    with pytest.raises(InsufficientQuota, match=said) as refused:
        check_budget(KeyLimits(**limits), today, month, EVENING)
    assert refused.value.retry_after_seconds == 3600


def test_a_budget_that_runs_out_stops_the_next_request_and_not_the_running_one(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    release = threading.Event()
    with limited(daily_gpu_seconds=0.05) as client, ThreadPoolExecutor() as pool:
        last = FRAME | {"seq": 1, "text": "data: [DONE]\n\n"}
        runpod.script = [
            Page("IN_PROGRESS", [BEGINNING]),
            Page("COMPLETED", [last], hold=release),
        ]
        running = pool.submit(client.post, CHAT, json=chat(stream=True))
        wait_until(lambda: runpod.stream_calls == 2)  # the first one's outputs have come
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.1)  # the time is what is spent
        release.set()
        answer = running.result()
        assert (answer.status_code, answer.text) == (200, ": hi\n\ndata: [DONE]\n\n")
        wait_until(lambda: client.post(CHAT, json=chat()).status_code == 429)
        jobs = len(runpod.jobs)
        refused = client.post(CHAT, json=chat())
        assert client.get("/v1/models").status_code == 200
    error = error_of(refused)
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert 1 <= int(refused.headers["retry-after"]) <= 24 * 3600
    assert len(runpod.jobs) == jobs


@pytest.mark.parametrize("told", [{"seconds": 60}, {}])
@pytest.mark.usefixtures("awake")
def test_the_time_of_an_answer_that_comes_all_at_once_is_spent(
    limited: Limited, runpod: ScriptedRunPod, told: dict[str, int]
) -> None:
    release = threading.Event()
    with limited(daily_gpu_seconds=0.1) as client, ThreadPoolExecutor() as pool:
        runpod.script = [Page("COMPLETED", [FRAME | told], hold=release)]
        running = pool.submit(client.post, CHAT, json=chat())
        wait_until(lambda: runpod.stream_calls == 1)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.2)  # RunPod says nothing meanwhile
        release.set()
        assert running.result().status_code == 200
        wait_until(lambda: client.post(CHAT, json=chat()).status_code == 429)


def test_dollars_are_seconds_at_the_endpoints_price(
    limited: Limited, runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    with limited(daily_budget=1000) as client:
        for _ in range(2):
            assert client.post(CHAT, json=chat()).status_code == 200
        wait_until((tmp_path / "state" / FILE).exists)
        spending = Spending(tmp_path / "state")
        wait_until(lambda: spending.of("limited")[0].seconds > 0)
        today, month = spending.of("limited")
        spending.close()
    assert today == month
    assert today.dollars == pytest.approx(0.5 * today.seconds)


def test_a_key_without_a_budget_makes_no_file(limited: Limited, tmp_path: Path) -> None:
    with limited(requests_per_minute=10) as client:
        assert client.post(CHAT, json=chat()).status_code == 200
    assert not (tmp_path / "state" / FILE).exists()


def test_waking_a_worker_is_counted_to_who_asked_for_it(
    limited: Limited, runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    with limited(monthly_budget=1000) as client:
        assert client.post("/v1/models/m/warm").status_code == 202
        wait_until((tmp_path / "state" / FILE).exists)
        spending = Spending(tmp_path / "state")
        wait_until(lambda: spending.of("limited")[1].dollars > 0)
        spending.close()


def test_a_spent_budget_stops_no_other_key(limited: Limited, tmp_path: Path) -> None:
    spending = Spending(tmp_path / "state")
    spending.note("limited", Spent(0, 100))
    spending.close()
    with limited(daily_gpu_seconds=99) as client:
        assert client.post(CHAT, json=chat()).status_code == 429
        client.headers["authorization"] = f"Bearer {KEY}"
        assert client.post(CHAT, json=chat()).status_code == 200
