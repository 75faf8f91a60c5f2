"""Fair turns as clients meet them: between tenants, before workers without a queue, and blindly."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import Response

from proxy.app import create_app
from proxy.backends import health_monitor
from proxy.backends.backend import InFlight
from tests.leaving import call_to_leave
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.servers import serve
from tests.waiting import wait_until

TRUSTED, OTHER = "sk-gateway", "sk-other"
KEYS = """
[keys.gateway]
env = "GATEWAY_KEY"
may_name_tenants = true
[keys.other]
env = "OTHER_KEY"
"""
WINDOW = 2
"""What one worker runs at once, and one more."""


class Crowd:
    """Clients that ask one after the other, and leave when a test says so."""

    def __init__(self, url: str, app: FastAPI, sent_on: Callable[[], list[str]]) -> None:
        self.sent_on = sent_on
        """The ids of the requests that have been sent on, in their order."""
        self._url = url + CHAT
        self._app = app
        self._here: dict[str, ExitStack] = {}

    @property
    def in_flight(self) -> InFlight:
        """What the endpoint has."""
        (model,) = list(self._app.state.services.models)
        found: InFlight = model.backend.in_flight()
        return found

    @property
    def knows_workers(self) -> bool:
        """Whether RunPod has told this very proxy of its workers when it looked the last time."""
        (model,) = list(self._app.state.services.models)
        return model.backend.monitor.workers is not None

    def ask(self, name: str, *, key: str, tenant: str = "") -> None:
        """A request of this name is there, and has been sent on or waits for its turn."""
        before = self.in_flight
        headers = {"x-request-id": name}
        if tenant:
            headers["x-gateway-inference-fairness-id"] = tenant
        client = self._here[name] = ExitStack()
        client.enter_context(call_to_leave(self._url, key=key, body=chat(), headers=headers))
        wait_until(
            lambda: name in self.sent_on() or self.in_flight.in_line == before.in_line + 1,
        )

    def leave(self, name: str) -> None:
        """The client of this request goes, and another's turn comes."""
        self._here.pop(name).close()

    def close(self) -> None:
        """All go."""
        while self._here:
            self._here.popitem()[1].close()


@pytest.fixture
def crowd(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Crowd]:
    """Clients of a proxy that lets two requests through to a queue, or to a balanced worker."""
    monkeypatch.setenv("GATEWAY_KEY", TRUSTED)
    monkeypatch.setenv("OTHER_KEY", OTHER)
    kind = getattr(request, "param", "queue")
    runpod.script = [Page("IN_QUEUE")]
    server, is_over = ScriptedServer(), threading.Event()
    server.replies = [Reply(head_hold=is_over)]
    file = tmp_path / "proxy.toml"

    def jobs() -> list[str]:
        return [job["input"]["proxy"]["request_id"] for job in runpod.jobs]

    def requests() -> list[str]:
        return [one["headers"]["x-request-id"] for one in server.requests]

    with ExitStack() as stack:
        table = "[endpoints.ep]\nworker_concurrency = 1\n"
        if kind == "load-balancing":
            url = stack.enter_context(serve(server.app))
            stack.callback(is_over.set)
            table += f'kind = "load-balancing"\nurl = "{url}"\n'
        file.write_text(table + '[models.m]\nendpoint = "ep"\n' + KEYS)
        app = create_app(settings_for(scripted_runpod[1], config=file, api_keys=KEY))
        url = stack.enter_context(serve(app))
        assert httpx.get(f"{url}/ready", timeout=30).is_success
        crowd = Crowd(url, app, requests if kind == "load-balancing" else jobs)
        stack.callback(crowd.close)
        yield crowd


def order_of(crowd: Crowd, *names: str) -> list[str]:
    """Which requests are sent on as these, which have been, leave one by one."""
    before = len(crowd.sent_on())
    for number, name in enumerate(names, start=1):
        crowd.leave(name)
        wait_until(lambda number=number: len(crowd.sent_on()) == before + number)  # type: ignore[misc]
    return crowd.sent_on()[before:]


BOTH = pytest.mark.parametrize("crowd", ["queue", "load-balancing"], indirect=True)


@BOTH
def test_a_tenants_flood_does_not_stand_before_another_tenants_request(crowd: Crowd) -> None:
    for name in ("a1", "a2", "a3", "a4", "a5"):
        crowd.ask(name, key=TRUSTED, tenant="a")
    crowd.ask("b1", key=TRUSTED, tenant="b")
    assert (crowd.sent_on(), crowd.in_flight.in_line) == (["a1", "a2"], 4)
    assert order_of(crowd, "a1", "a2", "a3") == ["a3", "b1", "a4"]


@BOTH
def test_who_may_not_name_tenants_gains_no_turns_by_it(crowd: Crowd) -> None:
    for name in ("a1", "a2", "a3", "a4"):
        crowd.ask(name, key=OTHER, tenant="a")
    crowd.ask("b1", key=OTHER, tenant="b")
    assert order_of(crowd, "a1", "a2", "a3") == ["a3", "a4", "b1"]


@BOTH
def test_another_keys_request_has_its_turn_beside_a_flood_of_tenants(crowd: Crowd) -> None:
    for name in ("a1", "a2", "a3", "a4"):
        crowd.ask(name, key=TRUSTED, tenant="a")
    crowd.ask("k1", key=KEY)
    crowd.ask("o1", key=OTHER)
    assert order_of(crowd, "a1", "a2", "a3") == ["a3", "k1", "o1"]


@BOTH
def test_who_leaves_the_line_is_never_sent_on(crowd: Crowd) -> None:
    for name in ("a1", "a2", "a3", "a4"):
        crowd.ask(name, key=OTHER)
    crowd.leave("a3")
    wait_until(lambda: crowd.in_flight.in_line == 1)
    assert order_of(crowd, "a1") == ["a4"]


@BOTH
def test_workers_that_come_up_let_as_many_through_as_they_run(
    crowd: Crowd, runpod: ScriptedRunPod
) -> None:
    for number in range(6):
        crowd.ask(f"a{number}", key=OTHER)
    assert len(crowd.sent_on()) == WINDOW
    runpod.workers = {"running": 2, "initializing": 1}
    wait_until(lambda: len(crowd.sent_on()) == WINDOW + 2)
    assert crowd.in_flight.in_line == 2


@BOTH
@pytest.mark.slow
def test_when_runpod_has_not_told_of_its_workers_for_long_nobody_waits(
    crowd: Crowd, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        crowd.ask(f"a{number}", key=OTHER)
    looks = runpod.health_calls
    runpod.health_refusal = Response(status_code=500)
    wait_until(lambda: not crowd.knows_workers and runpod.health_calls >= looks + 3)
    assert len(crowd.sent_on()) == WINDOW
    monkeypatch.setattr(health_monitor, "UNSEEN_SECONDS", 0.1)
    wait_until(lambda: len(crowd.sent_on()) == 5)
    crowd.ask("b1", key=KEY)
    runpod.health_refusal = None
    wait_until(lambda: crowd.knows_workers)
    crowd.ask("b2", key=KEY)
    assert (crowd.in_flight.in_line, "b2" in crowd.sent_on()) == (1, False)
