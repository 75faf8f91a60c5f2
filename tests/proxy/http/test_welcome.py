"""What a person sees who opens the proxy's address in a browser."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

import httpx
import pytest

from proxy.http.routes.welcome import PAGES
from tests.proxy.scripted_runpod import ScriptedRunPod

ADMIN_KEY = "sk-admin-of-the-tests-0123456789"
AS_BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(path.name for path in (PAGES / "files").iterdir())


@pytest.fixture
def with_admins(proxies: Callable[..., str]) -> str:
    return proxies(admin_keys=ADMIN_KEY)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_a_browser_is_shown_a_page_that_names_the_base_url(proxy_url: str, path: str) -> None:
    answer = httpx.get(proxy_url + path, headers=AS_BROWSER)
    assert (answer.status_code, answer.headers["content-type"][:9]) == (200, "text/html")
    assert f"<code>{proxy_url}/v1</code>" in answer.text
    assert "http" not in answer.text.replace(proxy_url, "")  # nothing from elsewhere


def test_a_program_is_told_the_same_as_json(proxy_url: str, runpod: ScriptedRunPod) -> None:
    answer = httpx.get(proxy_url)
    assert answer.json()["base_url"] == f"{proxy_url}/v1"
    assert httpx.get(answer.json()["routes"]).status_code == 200
    assert httpx.head(proxy_url).status_code == 200
    assert runpod.jobs == []


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html", "text/html"),
        ("application/json, text/html;q=0.9", "application/json"),
        ("application/json;q=0.5, text/html; q=0.8", "text/html"),
        ("text/html;q=0, */*", "application/json"),
        ("*/*", "application/json"),
        ("text/html;q=much", "text/html"),
    ],
)
def test_whoever_prefers_json_gets_json(proxy_url: str, accept: str, kind: str) -> None:
    answer = httpx.get(proxy_url, headers={"accept": accept})
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["vary"] == "accept"


def test_the_page_shows_nothing_private_and_no_markup_of_a_clients_making(proxy_url: str) -> None:
    headers = {"accept": "text/html", "host": "x<script>"}
    text = httpx.get(proxy_url, headers=headers).text
    assert "<script" not in text
    assert "sk-test" not in text
    assert "<code>m</code>" not in text


def test_an_unknown_url_is_told_the_base_url(client: httpx.Client, proxy_url: str) -> None:
    message = client.get("/no/such").json()["error"]["message"]
    assert f"The base URL is {proxy_url}/v1;" in message


def test_a_login_is_shown_only_where_a_key_may_administer(proxy_url: str, with_admins: str) -> None:
    assert "<form" not in httpx.get(proxy_url, headers=AS_BROWSER).text
    assert "<form" not in httpx.get(f"{with_admins}/v1", headers=AS_BROWSER).text
    assert '<form id="login"' in httpx.get(with_admins, headers=AS_BROWSER).text


class Scripts(HTMLParser):
    """Finds what a strict policy forbids: scripts, styles and handlers in the page itself."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.in_page: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what it links, and what is in it."""
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        self.in_page += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.in_page.append(tag)


def test_the_page_runs_nothing_but_its_own_files(with_admins: str) -> None:
    answer = httpx.get(with_admins, headers=AS_BROWSER)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    found = Scripts()
    found.feed(answer.text)
    assert found.in_page == []
    linked = [link for link in found.links if not link.startswith("#")]
    assert {httpx.get(with_admins + link).status_code for link in linked} == {200}
    assert linked != []


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_page_is_served_and_kept_as_long_as_it_stays_the_same(
    with_admins: str, name: str
) -> None:
    answer = httpx.get(f"{with_admins}/page/{name}")
    assert answer.content == (PAGES / "files" / name).read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    again = httpx.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    imported = re.findall(r'(?:from |import\()"\./([\w.]+)"', answer.text)
    assert set(imported) <= set(FILES)


@pytest.mark.parametrize("name", ["x", "admins.html", "..%2fadmins.html", "%2e%2e/admins.html", ""])
def test_no_other_file_is_served(with_admins: str, name: str) -> None:
    assert httpx.get(f"{with_admins}/page/{name}").status_code == 404
