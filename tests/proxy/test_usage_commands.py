"""`python -m proxy usage`: sums in the terminal, and RunPod's bill beside the estimate."""

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.backends.runpod.billing import BillUnavailable, bill
from proxy.backends.runpod.endpoint import create_client
from proxy.ledger.sums import date_of, today
from tests.proxy.ledger.conftest import keep
from tests.proxy.ledger.test_usage import FORMULA, KEPT, row
from tests.servers import serve

CONFIG = """
[endpoints.ep]
id = "abc123"
price_per_second = 0.5
[endpoints.other]
rest_api_key_env = "OTHER_REST_KEY"
[models.m]
endpoint = "ep"
"""
TODAY = date_of(today())
Command = Callable[..., subprocess.CompletedProcess[str]]


class Billing:
    """RunPod's REST API, as far as it bills."""

    def __init__(self) -> None:
        self.answers: dict[str, Response] = {}
        """By the key that asks."""
        self.asked: list[dict[str, str]] = []
        self.app = Starlette(routes=[Route("/v2/billing/serverless", self._tell)])

    async def _tell(self, request: Request) -> Response:
        self.asked.append(dict(request.query_params))
        key = request.headers["authorization"].removeprefix("Bearer ")
        return self.answers.get(key, Response(status_code=401))


def billed(endpoint: str, dollars: Any, day: str = TODAY) -> dict[str, Any]:
    amounts = {"totalAmount": dollars, "gpuAmount": 1, "cpuAmount": 0, "diskAmount": 0}
    return {"startTime": f"{day}T00:00:00Z", "serverlessId": endpoint, **amounts}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Billing, str]]:
    billing = Billing()
    with serve(billing.app) as url:
        yield billing, url


@pytest.fixture
def billing(server: tuple[Billing, str]) -> Billing:
    """What RunPod bills in this test."""
    server[0].answers.clear()
    server[0].asked.clear()
    return server[0]


@pytest.fixture
def command(tmp_path: Path, server: tuple[Billing, str]) -> Command:
    """`python -m proxy usage`, with a state folder and a configuration of its own."""
    file = tmp_path / "proxy.toml"
    file.write_text(CONFIG)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        ours = {
            "PROXY_STATE_DIR": str(tmp_path),
            "PROXY_CONFIG": str(file),
            "PROXY_ALLOW_ANONYMOUS": "true",
            "RUNPOD_API_KEY": "rp-key",
            "RUNPOD_REST_API_KEY": "rest-key",
            "OTHER_REST_KEY": "other-key",
            "RUNPOD_REST_BASE_URL": server[1],
        }
        return subprocess.run(
            [sys.executable, "-m", "proxy", "--env-file", os.devnull, "usage", *arguments],
            env=os.environ | ours | variables,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


@pytest.fixture
def kept(tmp_path: Path) -> None:
    """A ledger in that folder."""
    keep(f"sqlite:///{tmp_path}/proxy.sqlite3", *KEPT)


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.partition("\n\n")[0].splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_sums_are_told_for_what_is_asked_and_with_how_they_are_made(command: Command) -> None:
    told = command().stdout
    names, *lines, whole = cells(told)
    assert names[:4] == ["key", "model", "requests", "completed"]
    assert [line[:3] for line in lines] == [
        [FORMULA, "m", "1"],
        ["key-1", "m", "3"],
        ["key-1", "n", "1"],
    ]
    assert (whole[0], whole[-1]) == ("5", "3.7500")
    assert "Dollars are an estimate" in told
    names, *lines, whole = cells(command("--by", "day", "--key", "key-1", "--days", "2").stdout)
    assert [line[:2] for line in lines] == [[TODAY, "3"]]
    assert whole[0] == "3"


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_a_table_for_a_spreadsheet_holds_no_formula(command: Command) -> None:
    lines = list(csv.DictReader(io.StringIO(command("--csv", "--by", "key").stdout)))
    assert [line["key"] for line in lines] == [f"'{FORMULA}", "key-1"]
    assert sum(int(line["requests"]) for line in lines) == 5


@pytest.mark.slow
def test_a_table_of_bills_holds_no_formula(
    command: Command, billing: Billing, tmp_path: Path
) -> None:
    keep(f"sqlite:///{tmp_path}/proxy.sqlite3")
    file = tmp_path / "proxy.toml"
    file.write_text(CONFIG.replace("endpoints.ep", 'endpoints."=1+1"').replace('"ep"', '"=1+1"'))
    billing.answers = {
        "rest-key": JSONResponse({"records": [billed("abc123", -1.5)]}),
        "other-key": JSONResponse({"records": []}),
    }
    line, _ = csv.DictReader(io.StringIO(command("--reconcile", "--csv").stdout))
    assert (line["endpoint"], line["billed"]) == ("'=1+1", "-1.5")


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_runpods_bill_stands_beside_the_estimate(
    command: Command, billing: Billing, tmp_path: Path
) -> None:
    keep(f"sqlite:///{tmp_path}/proxy.sqlite3", row(8, endpoint="other", id="other/8"))
    day = date_of(today() - 1)
    records = [billed("abc123", 5), billed("abc123", 1.5), billed("abc123", 2, day)]
    billing.answers = {
        "rest-key": JSONResponse({"records": [*records, billed("strange", 99)]}),
        "other-key": JSONResponse({"records": [billed("other", 0.25)]}),
    }
    told = command("--reconcile", "--days", "2").stdout
    assert cells(told)[1:] == [
        ["ep", day, "0", "0.0000", "2.0000"],
        ["ep", TODAY, "4", "3.7500", "6.5000", "1.7300"],
        ["other", TODAY, "1", "0.0000", "0.2500"],
        ["5", "3.7500", "8.7500", "2.3300"],
    ]
    assert "Billed is all that RunPod charges" in told
    asked = {"startTime": f"{day}T00:00:00Z", "bucketSize": "day"}
    assert billing.asked == [asked, asked]
    lines = list(csv.DictReader(io.StringIO(command("--reconcile", "--csv").stdout)))
    assert [line["billed"] for line in lines if line["endpoint"] == "other"] == ["0.25"]


@pytest.mark.slow
def test_without_a_key_for_bills_each_account_is_asked_by_its_own(
    command: Command, billing: Billing, tmp_path: Path
) -> None:
    keep(f"sqlite:///{tmp_path}/proxy.sqlite3", row(8, endpoint="other", id="other/8"))
    file = tmp_path / "proxy.toml"
    file.write_text(CONFIG.replace("rest_api_key_env", "api_key_env"))
    billing.answers = {
        "rp-key": JSONResponse({"records": [billed("abc123", 5)]}),
        "other-key": JSONResponse({"records": [billed("other", 0.25)]}),
    }
    told = command("--reconcile", "--csv", RUNPOD_REST_API_KEY="").stdout
    lines = list(csv.DictReader(io.StringIO(told)))
    found = {line["endpoint"]: line["billed"] for line in lines}
    assert (found["ep"], found["other"]) == ("5.0", "0.25")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Response(status_code=403), "RUNPOD_REST_API_KEY"),
        (Response(status_code=500), "HTTP 500"),
        (Response(b"{}"), "no bill"),
        (Response(b"[" * 99_999), "no bill"),
        (JSONResponse({"records": [billed("abc123", "1")]}), "no bill"),
        (JSONResponse({"records": [billed("abc123", 1, "x")]}), "no bill"),
    ],
)
async def test_a_bill_that_cannot_be_had_is_told(
    billing: Billing, server: tuple[Billing, str], answer: Response, says: str
) -> None:
    billing.answers = {"rest-key": answer}
    async with create_client(connect_timeout_seconds=10) as client:
        with pytest.raises(BillUnavailable, match=says) as caught:
            await bill(client, server[1], "rest-key", TODAY, ["abc123"])
    assert "rest-key" not in str(caught.value)


async def test_a_rest_api_out_of_reach_is_told() -> None:
    async with create_client(connect_timeout_seconds=10) as client:
        with pytest.raises(BillUnavailable, match="could not be reached"):
            await bill(client, "http://127.0.0.1:1", "rest-key", TODAY, ["abc123"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--reconcile",), "there is no database"),
        (("--by", "colour"), "day, key, model, endpoint"),
        (("--days", "0"), "a number from 1"),
    ],
)
def test_what_cannot_be_told_is_said(
    command: Command, arguments: tuple[str, ...], says: str
) -> None:
    refused = command(*arguments)
    assert refused.returncode != 0
    assert says in refused.stderr


@pytest.mark.slow
def test_an_empty_ledger_says_so(command: Command, tmp_path: Path) -> None:
    keep(f"sqlite:///{tmp_path}/proxy.sqlite3")
    assert "nothing has been used" in command().stdout
