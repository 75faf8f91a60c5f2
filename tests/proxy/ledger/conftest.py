"""A proxy that keeps a ledger, and what is in it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from proxy.app import create_app
from proxy.ledger import job_times, ledger
from proxy.ledger.rows import Row, write
from proxy.storage.database import Database
from proxy.storage.schema import LEDGER
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

PRICE = 0.5
CONFIG = f"""
[endpoints.ep]
price_per_second = {PRICE}
[models.m]
endpoint = "ep"
"""
USAGE = '"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}'
ANSWER = f'{{"choices": [{{"index": 0, "message": {{"content": "a secret"}}}}], {USAGE}}}'
PLAIN = {"seq": 0, "status": 200, "content_type": "application/json", "text": ANSWER, "end": True}
ENDED = {"status": "COMPLETED", "delayTime": 1500, "executionTime": 4000}

Start = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written, and jobs asked for, at once."""
    monkeypatch.setattr(ledger, "GATHER_SECONDS", 0.01)
    monkeypatch.setattr(ledger, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(job_times, "PAUSES", (0.01,) * 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state folder of its own."""
    return tmp_path / "state"


@pytest.fixture
def url(folder: Path) -> str:
    """The database that a ledger is kept in where none is named."""
    return f"sqlite:///{folder}/proxy.sqlite3"


@pytest.fixture
def start(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, folder: Path
) -> Start:
    """A client of a proxy that keeps a ledger in that folder."""

    @contextmanager
    def running(config: str = CONFIG, **changes: Any) -> Iterator[httpx.Client]:
        folder.mkdir(exist_ok=True)
        file = folder / "proxy.toml"
        file.write_text(config)
        values = {"config": file, "state_dir": folder, "ledger": True, "allow_anonymous": False}
        settings = settings_for(scripted_runpod[1], **(values | changes))
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            serve(create_app(settings)) as base,
            httpx.Client(base_url=base, headers=headers, timeout=60) as client,
        ):
            yield client

    return running


def rows(url: str) -> list[dict[str, Any]]:
    """All that is in the ledger, oldest first."""
    database = Database(url)
    try:
        chosen = select(LEDGER).order_by("ended", "endpoint", "job_id")
        return database.read_here(lambda one: [dict(row) for row in one.execute(chosen).mappings()])
    finally:
        database.close_here()


def the_row(url: str, **facts: Any) -> dict[str, Any]:
    """The only row, once it says this."""
    wait_until(lambda: [facts.items() <= row.items() for row in rows(url)] == [True])
    return rows(url)[0]


def keep(url: str, *some: Row) -> None:
    """Put rows into a ledger."""
    database = Database(url)
    try:
        database.run_here(lambda one: write(one, some))
    finally:
        database.close_here()
