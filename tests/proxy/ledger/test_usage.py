"""What keys have used: each sees its own, an admin that of all, and the sums are right."""

import csv
import io
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.ledger.rows import GIVEN_UP, Row, expire
from proxy.ledger.sums import DAY_SECONDS, date_of, today
from proxy.storage.database import Database
from proxy.storage.schema import LEDGER
from tests.postgres import PostgreSQL, postgresql
from tests.proxy.http.test_requests import error_of
from tests.proxy.ledger.conftest import CONFIG, Start, keep, rows
from tests.waiting import wait_until

USAGE = "/v1/usage"
ADMIN = "sk-of-an-admin-of-this-proxy"
FORMULA = "=HYPERLINK(1)"
MODELS = f"{CONFIG}[keys.bob]\nenv = 'BOB_KEY'\n"


def test_rows_have_their_values_in_the_order_of_the_columns() -> None:
    assert list(Row.__struct_fields__) == LEDGER.columns.keys()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ledger_url(request: pytest.FixtureRequest, url: str) -> str:
    """A ledger's database."""
    if request.param == "sqlite":
        return url
    server: PostgreSQL = request.getfixturevalue("server")
    return server.new_database()


def row(number: int, *, days_ago: int = 0, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "id": f"ep/{number}",
        "ended": int(time.time()) - days_ago * DAY_SECONDS,
        "request_id": f"req_{number}",
        "job_id": str(number),
        "key": "key-1",
        "model": "m",
        "endpoint": "ep",
        "route": "POST /v1/chat/completions",
        "status": 200,
        "outcome": "completed",
        "seconds": 2.0,
    }
    return Row(**(values | changes))


KEPT = (
    row(1, tokens_in=7, tokens_out=5, execution_seconds=4.0, is_execution_told=True, dollars=2.0),
    row(2, tokens_in=1, tokens_out=2, execution_seconds=1.0, is_execution_told=False, dollars=0.5),
    row(3, outcome="client_left", execution_seconds=1.0, was_cold=True, queue_seconds=30.0),
    row(4, outcome=GIVEN_UP, execution_seconds=0.5, dollars=0.25),
    row(5, days_ago=3, model="n", tokens_out=2**33),
    row(6, days_ago=50, tokens_out=1),
    row(7, key=FORMULA, tokens_out=3, dollars=1.0),
)


@pytest.fixture
def asked(start: Start, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of a proxy with that ledger."""
    monkeypatch.setenv("BOB_KEY", "sk-bob")
    keep(ledger_url, *KEPT)
    with start(MODELS, database_url=ledger_url, admin_keys=ADMIN) as client:
        yield client


def by(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_sees_its_own_usage_by_day_and_model(asked: httpx.Client) -> None:
    answer = asked.get(USAGE).json()
    assert answer["key"] == "key-1"
    assert answer["since"] == date_of(today() - 29)
    older, newer = answer["data"]
    assert (older["day"], older["model"]) == (date_of(today() - 3), "n")
    assert older["tokens_out"] == 2**33
    assert newer == {
        "day": date_of(today()),
        "model": "m",
        "requests": 3,
        "completed": 2,
        "cold_starts": 1,
        "tokens_in": 8,
        "tokens_out": 7,
        "queue_seconds": 30.0,
        "execution_seconds": 6.5,
        "told_seconds": 4.0,
        "dollars": 2.75,
    }
    assert answer["today"] == {n: v for n, v in newer.items() if n not in ("day", "model")}
    assert answer["total"]["tokens_out"] == 2**33 + 7
    assert answer["total"]["requests"] == 4
    assert "Cold starts" in answer["estimate"]


def test_what_lies_further_back_is_counted_if_it_is_asked_for(asked: httpx.Client) -> None:
    assert asked.get(USAGE, params={"days": 90}).json()["total"]["requests"] == 5
    assert asked.get(USAGE, params={"days": 3}).json()["total"]["requests"] == 3


@pytest.mark.parametrize("days", ["0", "91", "-1", "x", "٣", "1" * 5000])
def test_other_days_are_refused(start: Start, days: str) -> None:
    with start() as client:
        refused = client.get(USAGE, params={"days": days})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "days")


def test_a_key_sees_no_other_keys_usage(asked: httpx.Client) -> None:
    assert asked.get(USAGE, headers=by("sk-bob")).json()["data"] == []
    for parameters in ({"keys": "all"}, {"key": FORMULA}, {"keys": "all", "key": "key-1"}):
        refused = asked.get(USAGE, params=parameters)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "permission_denied")
        assert FORMULA not in refused.text
    assert asked.get(USAGE, params={"key": "key-1"}).json() == asked.get(USAGE).json()
    assert asked.get(USAGE, headers=by("sk-none")).status_code == 401
    assert asked.get(USAGE, params={"keys": "some"}).status_code == 400


def test_an_admin_sees_that_of_all_keys(asked: httpx.Client) -> None:
    answer = asked.get(USAGE, params={"keys": "all"}, headers=by(ADMIN)).json()
    places = [(one["day"], one["key"], one["model"]) for one in answer["data"]]
    assert places == [
        (date_of(today() - 3), "key-1", "n"),
        (date_of(today()), FORMULA, "m"),
        (date_of(today()), "key-1", "m"),
    ]
    assert answer["key"] is None
    assert answer["total"]["dollars"] == 3.75
    one = asked.get(USAGE, params={"key": "key-1"}, headers=by(ADMIN)).json()
    assert one == asked.get(USAGE).json()


def test_a_table_holds_no_formula(asked: httpx.Client) -> None:
    answer = asked.get(USAGE, params={"keys": "all", "format": "csv"}, headers=by(ADMIN))
    assert answer.headers["content-type"].startswith("text/csv")
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert {one["key"] for one in found} == {"key-1", f"'{FORMULA}"}
    assert sum(float(one["dollars"]) for one in found) == 3.75


def test_rows_are_written_once_and_learn_what_is_known_later(ledger_url: str) -> None:
    keep(ledger_url, row(1, outcome="client_left", execution_seconds=9.0, is_execution_told=False))
    keep(ledger_url, row(1, tokens_out=5, request_id="second"), row(1, outcome="client_left"))
    keep(ledger_url, row(1, execution_seconds=4.0, is_execution_told=True, dollars=2.0))
    (found,) = rows(ledger_url)
    assert (found["outcome"], found["request_id"]) == ("completed", "second")
    assert (found["tokens_out"], found["execution_seconds"], found["dollars"]) == (5, 4.0, 2.0)


def test_rows_expire(ledger_url: str) -> None:
    keep(ledger_url, *KEPT)
    database = Database(ledger_url)
    assert database.run_here(lambda one: expire(one, 30)) == 1
    assert database.run_here(lambda one: expire(one, 30)) == 0
    assert sorted(found["job_id"] for found in rows(ledger_url)) == ["1", "2", "3", "4", "5", "7"]
    database.close_here()


def test_a_proxy_lets_rows_expire_by_itself(start: Start, url: str) -> None:
    keep(url, row(1), row(2, days_ago=40))
    with start(ledger_days=30):
        wait_until(lambda: [found["job_id"] for found in rows(url)] == ["1"])


def test_without_a_ledger_there_is_no_usage(start: Start) -> None:
    with start(ledger=None) as client:
        refused = client.get(USAGE)
    assert (refused.status_code, error_of(refused)["code"]) == (404, "unknown_url")
    assert "PROXY_LEDGER" in error_of(refused)["message"]


@pytest.mark.slow
def test_with_the_database_away_the_ledger_is_unavailable(start: Start, server: PostgreSQL) -> None:
    url = server.new_database()
    with start(database_url=url) as client:
        assert client.get(USAGE).status_code == 200
        server.stop(signal.SIGKILL)
        try:
            refused = client.get(USAGE)
        finally:
            server.start()
        assert (refused.status_code, error_of(refused)["code"]) == (503, "ledger_unavailable")
        assert "retry-after" in refused.headers
        assert "x-should-retry" not in refused.headers
