"""A stored response exists for the key that made it, at whichever copy of the proxy it asks."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.serving.test_stored_responses import EVERY_CALL, OTHER, RESPONSES, make
from tests.redis_server import RedisServer, redis_server
from tests.servers import serve

BUILDS_ON = {"model": "m", "input": "on", "previous_response_id": "resp_1"}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def copies(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    redis: RedisServer,
    tmp_path: Path,
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two copies, which have two keys."""
    headers = {"authorization": f"Bearer {KEY}"}
    changes = {"redis_url": redis.url, "copies": 2, "api_keys": f"{KEY},sk-other"}
    runpod.workers = {"ready": 1}
    with ExitStack() as stack:
        clients = []
        for name in ("a", "b"):
            settings = settings_for(scripted_runpod[1], **changes, state_dir=tmp_path / name)
            url = stack.enter_context(serve(create_app(settings)))
            client = httpx.Client(base_url=url, headers=headers, timeout=60)
            clients.append(stack.enter_context(client))
        yield clients[0], clients[1]


@EVERY_CALL
def test_the_other_copy_knows_whose_a_response_is(
    copies: tuple[httpx.Client, httpx.Client],
    runpod: ScriptedRunPod,
    method: str,
    path: str,
    body: Any,
) -> None:
    one, other = copies
    make(one, runpod)
    refused = other.request(method, path, json=body, headers=OTHER)
    assert (refused.status_code, error_of(refused)["code"]) == (404, "response_not_found")
    assert runpod.jobs == []
    assert other.request(method, path, json=body).status_code == 200
    assert len(runpod.jobs) == 1


def test_a_response_cannot_take_the_place_of_one_that_another_copy_has_seen(
    copies: tuple[httpx.Client, httpx.Client], runpod: ScriptedRunPod
) -> None:
    one, other = copies
    make(one, runpod, "mine", request_id="mine")
    asked = {"model": "m", "input": "hi", "request_id": "mine"}
    refused = other.post(RESPONSES, json=asked, headers=OTHER)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "request_id")
    assert other.post(RESPONSES, json=asked).status_code == 200


def test_while_redis_is_away_a_copy_knows_its_own_and_says_so_of_others(
    copies: tuple[httpx.Client, httpx.Client], runpod: ScriptedRunPod, redis: RedisServer
) -> None:
    one, other = copies
    make(one, runpod)
    redis.stop()
    refused = other.get("/v1/responses/resp_1")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "shared_state_away")
    assert refused.headers["retry-after"] == "1"
    assert "x-should-retry" not in refused.headers
    assert other.post(RESPONSES, json=BUILDS_ON).status_code == 503
    assert runpod.jobs == []
    assert one.get("/v1/responses/resp_1").status_code == 200
    make(one, runpod, "resp_2")
    assert one.get("/v1/responses/resp_2").status_code == 200
    redis.start()
