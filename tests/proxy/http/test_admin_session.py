"""An admin's session in a browser: begun with a key, ended with it, and attacked."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.access import stored_keys
from proxy.access.keys import StoredKey
from proxy.access.sessions import MAX_FAILURES
from proxy.app import create_app
from proxy.http.administration import COOKIE
from tests.postgres import postgresql
from tests.proxy.access.test_keys import ADMIN_KEY
from tests.proxy.access.test_stored_keys import done, make, url_in
from tests.proxy.conftest import KEY, settings_for
from tests.proxy.http.test_requests import error_of
from tests.servers import serve
from tests.waiting import wait_until

SESSION = "/admin/session"
OWN = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The proxy's state folder."""
    return tmp_path / "state"


@pytest.fixture
def browser(scripted_runpod: tuple[Any, str], folder: Path) -> Iterator[httpx.Client]:
    """A client that keeps cookies and has no key, of a proxy that has an admin's."""
    with running(scripted_runpod[1], folder, admin_keys=ADMIN_KEY) as client:
        yield client


def log_in(client: httpx.Client, key: str, **headers: str) -> httpx.Response:
    return client.post(SESSION, headers={"authorization": f"Bearer {key}"} | headers)


def cookie_of(answer: httpx.Response) -> Morsel[str]:
    return SimpleCookie(answer.headers["set-cookie"])[COOKIE]


def test_a_login_gives_a_cookie_that_no_script_reads_and_no_other_path_gets(
    browser: httpx.Client,
) -> None:
    answer = log_in(browser, ADMIN_KEY)
    cookie = cookie_of(answer)
    assert answer.status_code == 201
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/admin")
    assert not cookie["secure"]
    assert not cookie["domain"]
    assert answer.headers["cache-control"] == "no-store"
    assert ADMIN_KEY not in answer.text + answer.headers["set-cookie"]
    assert browser.get(SESSION).json() == {"object": "admin.session", "key": "admin-1"}


def test_under_https_the_cookie_is_for_https_alone(browser: httpx.Client) -> None:
    assert cookie_of(log_in(browser, ADMIN_KEY, **{"x-forwarded-proto": "https"}))["secure"]


def test_a_key_in_a_header_administers_without_a_session(browser: httpx.Client) -> None:
    for headers in ({"authorization": f"Bearer {ADMIN_KEY}"}, {"x-api-key": ADMIN_KEY}):
        assert browser.get(SESSION, headers=headers).json()["key"] == "admin-1"
    assert browser.get(SESSION).status_code == 401


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        ("", 401, "invalid_api_key"),
        ("sk-wrong", 401, "invalid_api_key"),
        (f"{ADMIN_KEY}x", 401, "invalid_api_key"),
        (ADMIN_KEY[:-1], 401, "invalid_api_key"),
        (ADMIN_KEY.upper(), 401, "invalid_api_key"),
        (KEY, 403, "permission_denied"),
    ],
)
def test_only_a_key_that_may_administer_logs_in_or_administers(
    browser: httpx.Client, key: str, status: int, code: str
) -> None:
    headers = {"authorization": f"Bearer {key}".strip()}
    for answer in (browser.post(SESSION, headers=headers), browser.get(SESSION, headers=headers)):
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
        assert "set-cookie" not in answer.headers


def test_a_key_in_the_url_or_in_a_form_is_no_key(browser: httpx.Client) -> None:
    given = {"key": ADMIN_KEY, "api_key": ADMIN_KEY}
    assert browser.post(SESSION, params=given).status_code == 401
    assert browser.post(SESSION, data=given).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m/warm", "/tokenize", "/metrics"])
def test_a_session_means_nothing_elsewhere(browser: httpx.Client, path: str) -> None:
    token = cookie_of(log_in(browser, ADMIN_KEY)).value
    method = "GET" if path in ("/v1/models", "/metrics") else "POST"
    for headers in ({"cookie": f"{COOKIE}={token}"}, {"authorization": f"Bearer {token}"}):
        assert browser.request(method, path, headers=headers | OWN).status_code == 401


def test_a_session_that_was_logged_out_is_over(browser: httpx.Client) -> None:
    token = cookie_of(log_in(browser, ADMIN_KEY)).value
    answer = browser.delete(SESSION, headers=OWN)
    assert answer.status_code == 204
    assert cookie_of(answer).value == ""
    again = browser.get(SESSION, headers={"cookie": f"{COOKIE}={token}"})
    assert "has ended" in error_of(again)["message"]


FOREIGN = [
    {},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "OWN"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_origin_does_nothing_with_a_session(
    browser: httpx.Client, headers: dict[str, str]
) -> None:
    own = str(browser.base_url).rstrip("/")
    headers = {name: value.replace("OWN", own) for name, value in headers.items()}
    log_in(browser, ADMIN_KEY)
    refused = browser.delete(SESSION, headers=headers)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "permission_denied")
    if headers:
        assert browser.get(SESSION, headers=headers).status_code == 403
    assert browser.get(SESSION).status_code == 200


def test_a_page_that_may_call_with_a_key_may_not_use_a_session(
    scripted_runpod: tuple[Any, str], folder: Path
) -> None:
    opened = {"cors_origins": "*", "admin_keys": ADMIN_KEY}
    page = {"origin": "https://chat.example", "sec-fetch-site": "cross-site"}
    with running(scripted_runpod[1], folder, **opened) as client:
        log_in(client, ADMIN_KEY)
        refused = client.get(SESSION, headers=page)
        assert refused.status_code == 403
        assert "access-control-allow-credentials" not in refused.headers
        headers = page | {"authorization": f"Bearer {ADMIN_KEY}"}
        assert client.get(SESSION, headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_page_of_another_origin_logs_nobody_in(browser: httpx.Client, origin: str) -> None:
    answer = log_in(browser, ADMIN_KEY, origin=origin)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_our_own_page_is_known_by_its_origin_where_a_browser_tells_no_more(
    browser: httpx.Client,
) -> None:
    own = {"origin": str(browser.base_url).rstrip("/")}
    assert log_in(browser, ADMIN_KEY, **own).status_code == 201
    assert browser.delete(SESSION, headers=own).status_code == 204


@pytest.mark.slow
@pytest.mark.parametrize("change", ["revoke", "rotate"])
def test_a_session_ends_when_its_key_is_revoked_or_rotated(
    browser: httpx.Client, folder: Path, change: str
) -> None:
    key = make(folder, StoredKey("ops", 0, may_administer=True))
    by_key = {"authorization": f"Bearer {key}"}
    wait_until(lambda: browser.get(SESSION, headers=by_key).status_code == 200)
    assert log_in(browser, key).status_code == 201  # logins that fail are counted
    assert browser.get(SESSION).json()["key"] == "ops"
    changed: Callable[..., Any] = getattr(stored_keys, change)
    done(url_in(folder), lambda one: changed(one, "ops"))
    wait_until(lambda: browser.get(SESSION).status_code == 401)


def test_logins_that_fail_too_often_are_refused_and_sessions_go_on(browser: httpx.Client) -> None:
    assert log_in(browser, ADMIN_KEY).status_code == 201
    failed = [log_in(browser, f"sk-{number}").status_code for number in range(MAX_FAILURES)]
    assert failed == [401] * MAX_FAILURES
    refused = log_in(browser, ADMIN_KEY)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) <= 60
    assert browser.get(SESSION).status_code == 200


@pytest.mark.parametrize(
    "cookie",
    [COOKIE, f"{COOKIE}=", f"{COOKIE}={'a' * 43}", f'{COOKIE}="; x', f"{COOKIE}={'x' * 9000}"],
)
def test_a_made_up_cookie_is_no_session(browser: httpx.Client, cookie: str) -> None:
    answer = browser.get(SESSION, headers={"cookie": cookie})
    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")


def test_where_everybody_may_call_an_admin_still_needs_a_key(
    scripted_runpod: tuple[Any, str], folder: Path
) -> None:
    opened = {"api_keys": "", "allow_anonymous": True, "admin_keys": ADMIN_KEY}
    with running(scripted_runpod[1], folder, **opened) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get(SESSION).status_code == 401
        assert log_in(client, ADMIN_KEY).status_code == 201
        assert client.get(SESSION).status_code == 200
    assert list(folder.glob("*.sqlite3")) == []


@pytest.mark.slow
def test_with_the_database_away_an_admin_logs_in_at_one_copy_and_changes_nothing(
    scripted_runpod: tuple[Any, str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(postgresql())
        shared = {"database_url": server.new_database(), "admin_keys": ADMIN_KEY}
        one, other = (
            stack.enter_context(running(scripted_runpod[1], tmp_path / name, **shared))
            for name in ("one", "other")
        )
        other.cookies = httpx.Cookies({COOKIE: cookie_of(log_in(one, ADMIN_KEY)).value})
        assert other.get(SESSION).status_code == 200
        server.stop(signal.SIGKILL)
        try:
            away = other.get(SESSION)
            assert (away.status_code, error_of(away)["code"]) == (503, "keys_unavailable")
            assert log_in(one, ADMIN_KEY).status_code == 201
            assert one.get(SESSION).status_code == 200
            made = one.post("/admin/keys", json={"name": "alice"}, headers=OWN)
            assert (made.status_code, error_of(made)["code"]) == (503, "keys_unavailable")
        finally:
            server.start()
        wait_until(lambda: other.get(SESSION).status_code == 200)
        assert one.post("/admin/keys", json={"name": "alice"}, headers=OWN).status_code == 201


@contextmanager
def running(runpod_url: str, folder: Path, **changes: Any) -> Iterator[httpx.Client]:
    """A client without a key of a proxy with this state folder."""
    settings = settings_for(runpod_url, state_dir=folder, **changes)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
