"""Keys made, changed and revoked by an admin's requests, and by nobody else's."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete

from proxy.access.keys import StoredKey
from proxy.http.administration import COOKIE
from proxy.storage.database import Database
from proxy.storage.schema import KEYS as KEYS_TABLE
from tests.proxy.access.test_keys import ADMIN_KEY
from tests.proxy.access.test_stored_keys import make, url_in
from tests.proxy.conftest import KEY
from tests.proxy.http.test_admin_session import OWN, SESSION, running
from tests.proxy.http.test_requests import error_of
from tests.waiting import wait_until

KEYS = "/admin/keys"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The proxy's state folder."""
    return tmp_path / "state"


@pytest.fixture(scope="module")
def proxy(
    scripted_runpod: tuple[Any, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.URL, Database]]:
    """A proxy with an admin's key in its environment, and its database."""
    folder = tmp_path_factory.mktemp("state")
    with running(scripted_runpod[1], folder, admin_keys=ADMIN_KEY) as client:
        database = Database(url_in(folder))
        yield client.base_url, database
        database.close_here()


@pytest.fixture
def admin(proxy: tuple[httpx.URL, Database]) -> Iterator[httpx.Client]:
    """A client that has the admin's key, while no others are kept."""
    url, database = proxy
    database.run_here(lambda connection: connection.execute(delete(KEYS_TABLE)))
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        yield client


def made(admin: httpx.Client, name: str = "alice", **terms: Any) -> dict[str, Any]:
    answer = admin.post(KEYS, json={"name": name, **terms})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    return told


def status_with(admin: httpx.Client, key: str) -> int:
    return admin.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


TERMS: dict[str, Any] = {
    "models": ["m"],
    "may_warm": True,
    "may_name_tenants": True,
    "may_administer": False,
    "requests_per_minute": 60,
    "tokens_per_minute": None,
    "max_requests": 2,
    "daily_budget": 1.5,
    "monthly_budget": None,
    "daily_gpu_seconds": None,
    "monthly_gpu_seconds": 100,
    "priority": 3,
}


def test_a_key_is_made_with_its_terms_and_its_secret_is_told_once(admin: httpx.Client) -> None:
    expires = int(time.time()) + 1000
    told = made(admin, **TERMS, expires=expires)
    secret = told.pop("key")
    assert secret.startswith("sk-")
    assert told.items() >= {"name": "alice", "state": "active", "source": "database"}.items()
    assert told.items() >= (TERMS | {"expires": expires, "revoked": None}).items()
    assert admin.get(f"{KEYS}/alice").json() == told
    listed = admin.get(KEYS)
    assert told in listed.json()["data"]
    assert secret not in listed.text
    assert status_with(admin, secret) == 200


def test_a_key_of_which_nothing_is_said_may_use_all_models_and_nothing_else(
    admin: httpx.Client,
) -> None:
    told = made(admin)
    rights = [told[name] for name in ("may_warm", "may_name_tenants", "may_administer")]
    assert rights == [False] * 3
    assert (told["models"], told["expires"], told["priority"]) == (None, None, 1)


@pytest.mark.parametrize(("text", "days"), [("90d", 90), ("2100-01-31", None)])
def test_an_expiry_may_be_a_date_or_a_number_of_days(
    admin: httpx.Client, text: str, days: int | None
) -> None:
    expires = made(admin, expires=text)["expires"]
    if days is None:
        assert expires == 4_105_036_800
    else:
        assert 0 <= expires - (time.time() - 600) - days * 86_400 <= 1200


def test_a_change_leaves_what_it_does_not_name_and_null_takes_a_bound_away(
    admin: httpx.Client,
) -> None:
    told = made(admin, **TERMS)
    del told["key"]
    changes = {"requests_per_minute": None, "priority": None, "models": None, "may_warm": False}
    changed = admin.patch(f"{KEYS}/alice", json=changes).json()
    assert changed == told | changes | {"priority": 1}
    assert admin.get(f"{KEYS}/alice").json() == changed
    assert admin.patch(f"{KEYS}/alice", json={}).json() == changed


def test_a_change_holds_for_the_next_request_of_this_copy(admin: httpx.Client) -> None:
    secret = made(admin)["key"]
    headers = {"authorization": f"Bearer {secret}"}
    assert [one["id"] for one in admin.get("/v1/models", headers=headers).json()["data"]] == ["m"]
    admin.patch(f"{KEYS}/alice", json={"models": ["other"]})
    assert admin.get("/v1/models", headers=headers).json()["data"] == []
    rotated = admin.post(f"{KEYS}/alice/rotate").json()["key"]
    assert [status_with(admin, key) for key in (secret, rotated)] == [401, 200]
    revoked = admin.delete(f"{KEYS}/alice")
    assert revoked.json()["state"] == "revoked"
    assert status_with(admin, rotated) == 401
    assert admin.delete(f"{KEYS}/alice").json() == revoked.json()


CALLS = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("GET", f"{KEYS}/alice"),
    ("PATCH", f"{KEYS}/alice"),
    ("DELETE", f"{KEYS}/alice"),
    ("POST", f"{KEYS}/alice/rotate"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer sk-wrong"}, 401),
        ({"authorization": f"Bearer {KEY}"}, 403),
        ({"authorization": "Basic b3BzOnNlY3JldA=="}, 401),
        ({"authorization": "", **OWN, "cookie": f"{COOKIE}={'a' * 43}"}, 401),
        ({"authorization": "", **OWN, "cookie": f"{COOKIE}={ADMIN_KEY}"}, 401),
    ],
)
def test_nobody_else_reads_or_changes_a_key(
    admin: httpx.Client, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    secret = made(admin)["key"]
    body = {"name": "mine", "may_administer": True}
    refused = admin.request(method, path, json=body, headers=headers)
    assert refused.status_code == status
    assert "alice" not in refused.text
    assert {one["name"] for one in admin.get(KEYS).json()["data"]} == {"key-1", "admin-1", "alice"}
    assert status_with(admin, secret) == 200


@pytest.mark.parametrize(("method", "path"), [call for call in CALLS if call[0] != "GET"])
def test_a_page_of_another_origin_changes_nothing_with_a_session(
    admin: httpx.Client, method: str, path: str
) -> None:
    made(admin)
    admin.post(SESSION)
    before = admin.get(KEYS).json()
    del admin.headers["authorization"]
    body = {"name": "mine", "may_administer": True}
    for headers in ({}, {"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}):
        assert admin.request(method, path, json=body, headers=headers).status_code == 403
        form = admin.request(method, path, data={"name": "mine"}, headers=headers)
        assert form.status_code == 403
    assert admin.get(KEYS).json() == before


def test_with_a_session_our_own_page_makes_keys(admin: httpx.Client) -> None:
    admin.post(SESSION)
    del admin.headers["authorization"]
    admin.headers.update(OWN)
    assert made(admin)["name"] == "alice"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (b"", None, "JSON object"),
        (b"[]", None, "JSON object"),
        (b"\xff", None, "JSON object"),
        (b"{}", "name", "required"),
        (b'{"name": 3}', "name", "a text"),
        (b'{"name": "x", "budget": 3}', "budget", "no such field"),
        (b'{"name": "x", "revoked": null}', "revoked", "no such field"),
        (b'{"name": "x", "max_requests": 0}', "max_requests", "above 0"),
        (b'{"name": "x", "daily_budget": 1e999}', "daily_budget", "number"),
        (b'{"name": "x", "may_administer": null}', "may_administer", "true or false"),
        (b'{"name": "x", "models": "m"}', "models", "a list"),
        (b'{"name": "x", "models": ["\\u0000"]}', "models", "name holds"),
        (b'{"name": "x", "expires": 1}', "expires", "still to come"),
        (b'{"name": "x", "expires": "soon"}', "expires", "a date is needed"),
        (b'{"name": "x", "expires": "9999-12-31"}', "expires", "still to come"),
        (b'{"name": "x", "expires": 99999999999999999999}', "expires", ""),
        (b'{"name": "<img src=x onerror=alert(1)>"}', "name", "letters, digits"),
        (b'{"name": "a\\r\\nset-cookie: x=y"}', "name", "letters, digits"),
        (b'{"name": ".."}', "name", "letters, digits"),
        (b'{"name": ""}', "name", "letters, digits"),
        (b'{"name": "alice"}', "name", "already"),
        (b'{"name": "admin-1"}', "name", "configured key"),
        (b'{"name": "key-1"}', "name", "configured key"),
    ],
)
def test_what_no_key_can_be_is_told_and_nothing_is_made(
    admin: httpx.Client, body: bytes, param: str | None, says: str
) -> None:
    made(admin)
    refused = admin.post(KEYS, content=body)
    error = error_of(refused)
    assert (refused.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == param
    assert says in error["message"]
    assert "pydantic" not in refused.text
    assert len(admin.get(KEYS).json()["data"]) == 3


@pytest.mark.parametrize(
    ("method", "path"), [(method, path.replace("alice", "bob")) for method, path in CALLS[2:]]
)
def test_a_key_that_there_is_not_is_not_found(admin: httpx.Client, method: str, path: str) -> None:
    for name in ("bob", "%3Cscript%3E", "a%0d%0ab", "a%00b", "%ff", "%2e%2e", "b%27ob"):
        answer = admin.request(method, path.replace("bob", name), json={})
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "key_not_found"
        assert "script" not in answer.text


@pytest.mark.parametrize(("method", "path"), CALLS[3:])
def test_a_configured_key_is_shown_and_changed_elsewhere(
    admin: httpx.Client, method: str, path: str
) -> None:
    shown = admin.get(f"{KEYS}/admin-1").json()
    assert (shown["source"], shown["may_administer"]) == ("configuration", True)
    refused = admin.request(method, path.replace("alice", "admin-1"), json={})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "name")


def test_a_revoked_key_is_neither_changed_nor_rotated(admin: httpx.Client) -> None:
    made(admin)
    admin.delete(f"{KEYS}/alice")
    for answer in (
        admin.patch(f"{KEYS}/alice", json={"may_administer": True}),
        admin.post(f"{KEYS}/alice/rotate"),
    ):
        assert "has been revoked" in error_of(answer)["message"]


def test_the_last_key_that_may_administer_cannot_be_taken_away(
    scripted_runpod: tuple[Any, str], folder: Path
) -> None:
    key = make(folder, StoredKey("ops", 0, may_administer=True))
    make(folder, StoredKey("over", 0, may_administer=True, expires=1))
    with running(scripted_runpod[1], folder) as client:
        client.headers["authorization"] = f"Bearer {key}"
        for refused in (
            client.delete(f"{KEYS}/ops"),
            client.patch(f"{KEYS}/ops", json={"may_administer": False, "may_warm": True}),
        ):
            assert refused.status_code == 400
            assert "no key could administer" in error_of(refused)["message"]
        assert not client.get(f"{KEYS}/ops").json()["may_warm"]
        other = made(client, "other", may_administer=True)["key"]
        assert client.delete(f"{KEYS}/ops").status_code == 200
        assert client.get(KEYS).status_code == 401
        client.headers["authorization"] = f"Bearer {other}"
        assert client.delete(f"{KEYS}/other").status_code == 400


def test_what_was_done_is_told_in_the_log_by_names_alone(
    admin: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = made(admin)["key"]
    rotated = admin.post(f"{KEYS}/alice/rotate").json()["key"]
    token = admin.post(SESSION).cookies[COOKIE]
    admin.patch(f"{KEYS}/alice", json={"may_warm": True})
    admin.delete(f"{KEYS}/alice")
    for did in ("made", "rotated", "changed", "revoked"):
        wait_until(lambda did=did: f"admin-1 has {did} the key alice" in caplog.text)  # type: ignore[misc]
    ours = [one.getMessage() for one in caplog.records if one.name.startswith(("proxy", "uvicorn"))]
    for hidden in (secret, rotated, token, ADMIN_KEY):
        assert hidden not in "\n".join(ours)


def test_where_everybody_may_call_no_keys_are_made(
    scripted_runpod: tuple[Any, str], folder: Path
) -> None:
    opened = {"api_keys": "", "allow_anonymous": True, "admin_keys": ADMIN_KEY}
    with running(scripted_runpod[1], folder, **opened) as client:
        client.headers["authorization"] = f"Bearer {ADMIN_KEY}"
        assert [one["name"] for one in client.get(KEYS).json()["data"]] == ["admin-1"]
        refused = client.post(KEYS, json={"name": "alice"})
        assert "PROXY_ALLOW_ANONYMOUS" in error_of(refused)["message"]
