"""OpenAI's SDK in a page, streaming from a proxy of another origin, in a real browser.

The page loads the package from npm as it is, and calls the proxy by itself. Behind the proxy stand
the emulator, the worker and the scripted engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.end_to_end.conftest import Road, endpoint_settings, road
from tests.guides import GUIDES, blocks
from tests.servers import free_port, serve
from tests.waiting import wait_until

pytestmark = [pytest.mark.ui, pytest.mark.slow]

PAGE = Path(__file__).with_name("sdk_page.html").read_text()
(GUIDE,) = blocks("html", *GUIDES)
TEXT = "Grüße, 你好 und 🙂🌍 — naïve\u2028café, 👩‍👩‍👧 end.\n"
ANSWER = " so on.Hello wörld, 你好 🙂 naïve café and so"
"""The engine's to the question of the guide."""
MODEL, KEY = "tiny-chat", "sk-local"
"""Those of the guides."""


@dataclass
class Site:
    """A road, and two servers of the same pages: one's origin is allowed, the other's is not."""

    road: Road
    allowed: str
    other: str

    @property
    def proxy(self) -> dict[str, str]:
        """What a page has to know of the proxy."""
        return {"baseURL": self.road.url, "apiKey": KEY}

    def jobs(self) -> list[dict[str, Any]]:
        """Every job at RunPod, the oldest first."""
        jobs: list[dict[str, Any]] = self.road.runpod.control("GET", "")["endpoints"]["ep"]["jobs"]
        return jobs


def pages(road: Road, packages: Path) -> Starlette:
    """A server of files: the test's page, the guide's, and the packages that they import."""
    routes = [
        Route("/", lambda _: HTMLResponse(PAGE)),
        Route("/guide", lambda _: HTMLResponse(GUIDE.for_proxy_at(road.url))),
        Mount("/node_modules", StaticFiles(directory=packages)),
    ]
    return Starlette(routes=routes)


@pytest.fixture(scope="module")
def site(packages: Path) -> Iterator[Site]:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    env = endpoint_settings()["env"] | {"MODEL_NAME": MODEL}
    settings = {"cors_origins": origin, "models": MODEL, "api_keys": KEY}
    with road(settings=settings, env=env, min_workers=1) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        served = pages(stack, packages)
        with serve(served, port=port) as allowed, serve(served) as other:
            yield Site(stack, allowed, other)


@pytest.fixture
def sdk(site: Site, page: Page) -> Page:
    """The page, opened where it may call the proxy."""
    page.goto(site.allowed)
    return page


def chat(**script: Any) -> dict[str, Any]:
    """The body of a chat, and what the engine is to do."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hallo, wie geht's? 🙂"}],
        "script": script,
    }


def error_of_chat(page: Page, proxy: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    """The error that the SDK raises in the page."""
    error: dict[str, Any] = page.evaluate("asked => errorOfChat(...asked)", [proxy, body])
    return error


def test_the_page_of_the_guide_shows_the_pieces_of_an_answer(site: Site, page: Page) -> None:
    page.goto(f"{site.allowed}/guide")
    page.wait_for_function(f"document.querySelector('#answer').textContent === '{ANSWER}'")
    parts = page.evaluate("Array.from(document.querySelector('#answer').childNodes, n => n.data)")
    assert len(list(filter(None, parts))) == 12


def test_a_text_arrives_in_pieces_and_to_the_byte(site: Site, sdk: Page) -> None:
    sdk.evaluate("asked => chat(...asked)", [site.proxy, chat(text=TEXT, chunk_bytes=1)])
    pieces = sdk.evaluate("pieces")
    assert "".join(pieces) == TEXT
    assert len(pieces) > 5


def test_the_browser_asks_before_and_the_sdks_own_headers_are_allowed(
    site: Site, page: Page
) -> None:
    seen: list[dict[str, Any]] = []
    watch = page.context.new_cdp_session(page)
    # Playwright marks what it calls, and a method of a list cannot be marked.
    watch.on("Network.requestWillBeSent", lambda event: seen.append(event["request"]))
    watch.send("Network.enable")
    page.goto(site.allowed)
    page.evaluate("asked => chat(...asked)", [site.proxy, chat()])
    calls = {call["method"]: call for call in seen if call["url"].startswith(site.road.url)}
    assert calls.keys() == {"OPTIONS", "POST"}
    asked = calls["OPTIONS"]["headers"]["Access-Control-Request-Headers"].split(",")
    assert {"authorization", "x-stainless-lang", "x-stainless-retry-count"} <= set(asked)


def test_the_page_reads_the_ids_of_its_request_and_its_job(site: Site, sdk: Page) -> None:
    sdk.evaluate("asked => chat(...asked)", [site.proxy, chat()])
    ids = sdk.evaluate("ids")
    assert ids["request"].startswith("req_")
    assert ids["job"] == site.jobs()[-1]["id"]


def test_a_page_that_aborts_its_stream_cancels_the_job(site: Site, sdk: Page) -> None:
    aborted = site.road.engine()["aborted"]
    body = chat(tokens=9, hang_after=4)
    sdk.evaluate("asked => { window.over = chat(...asked); }", [site.proxy, body])
    sdk.wait_for_function("pieces.length === 4")
    job = sdk.evaluate("ids.job")
    assert site.road.runpod.status(job)["status"] == "IN_PROGRESS"
    sdk.evaluate("() => { stream.controller.abort(); return over; }")
    wait_until(lambda: site.road.runpod.status(job)["status"] == "CANCELLED")
    wait_until(lambda: site.road.engine()["aborted"] == aborted + 1)


def test_a_page_that_is_left_cancels_the_job(site: Site, sdk: Page) -> None:
    body = chat(tokens=9, hang_after=4)
    sdk.evaluate("asked => { window.over = chat(...asked); }", [site.proxy, body])
    sdk.wait_for_function("pieces.length === 4")
    job = sdk.evaluate("ids.job")
    sdk.goto("about:blank")
    wait_until(lambda: site.road.runpod.status(job)["status"] == "CANCELLED")


def test_an_unknown_model_raises_the_sdks_error_in_the_page(site: Site, sdk: Page) -> None:
    error = error_of_chat(sdk, site.proxy, chat() | {"model": "no-such-model"})
    assert (error["kind"], error["status"]) == ("NotFoundError", 404)
    assert error["code"] == "model_not_found"
    assert "no-such-model" in error["message"]
    assert error["requestID"].startswith("req_")


def test_a_wrong_key_raises_the_sdks_error_in_the_page(site: Site, sdk: Page) -> None:
    error = error_of_chat(sdk, site.proxy | {"apiKey": "sk-wrong"}, chat())
    assert (error["kind"], error["code"]) == ("AuthenticationError", "invalid_api_key")


def test_an_unknown_route_raises_the_sdks_error_in_the_page(site: Site, sdk: Page) -> None:
    error = sdk.evaluate("asked => errorOfGet(...asked)", [site.proxy, "/no/such/route"])
    assert (error["kind"], error["code"]) == ("NotFoundError", "unknown_url")


def test_an_error_of_vllm_is_raised_in_the_page_and_not_asked_for_again(
    site: Site, sdk: Page
) -> None:
    before = len(site.jobs())
    error = error_of_chat(sdk, site.proxy, chat(status=500))
    assert (error["kind"], error["status"]) == ("InternalServerError", 500)
    assert len(site.jobs()) == before + 1


def test_the_browser_refuses_a_page_of_another_origin(site: Site, page: Page) -> None:
    before = len(site.jobs())
    page.goto(site.other)
    error = error_of_chat(page, site.proxy, chat())
    assert (error["kind"], error.get("status")) == ("APIConnectionError", None)
    assert len(site.jobs()) == before
