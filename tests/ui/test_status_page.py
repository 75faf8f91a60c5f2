"""The status page as an admin sees it, in a real browser, before a RunPod that follows a script."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from proxy.app import create_app
from proxy.config.settings import Settings
from proxy.telemetry import history
from tests.proxy.conftest import settings_for
from tests.proxy.scripted_runpod import Page as Step
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = [pytest.mark.ui, pytest.mark.slow]

KEY = "sk-admin-of-the-tests-0123456789"
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
CONFIG = f"""
[endpoints.ep]
price_per_second = 1

[models.small]
endpoint = "ep"

[models.'{HOSTILE}']
endpoint = "ep"

[keys.'{HOSTILE}']
env = "HOSTILE_KEY"
"""


@dataclass
class Site:
    """A proxy, its RunPod, and whatever the browser complained of."""

    url: str
    runpod: ScriptedRunPod
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def runpod_server() -> Iterator[tuple[ScriptedRunPod, str]]:
    runpod = ScriptedRunPod()
    with serve(runpod.app) as url:
        yield runpod, url


@pytest.fixture
def site(runpod_server: tuple[ScriptedRunPod, str], page: Page, tmp_path: Path) -> Iterator[Site]:
    """A proxy of this test alone, whose samples take a second each."""
    runpod, runpod_url = runpod_server
    runpod.reset()
    (tmp_path / "proxy.toml").write_text(CONFIG)
    changes: dict[str, Any] = {"admin_keys": KEY, "state_dir": tmp_path / "state"}
    changes |= {"config": tmp_path / "proxy.toml", "models": "", "runpod_endpoint_id": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTILE_KEY", "sk-of-a-hostile-name")
        patch.setattr(history, "STEP_SECONDS", 1)
        settings: Settings = settings_for(runpod_url, **changes)
        with serve(create_app(settings)) as url:
            site = Site(url, runpod)
            page.on("pageerror", lambda error: site.complaints.append(str(error)))
            page.on("console", lambda said: _note(site, said.text))
            yield site
    assert site.complaints == []


def _note(site: Site, said: str) -> None:
    if "Content Security Policy" in said or "TrustedHTML" in said:
        site.complaints.append(said)


@pytest.fixture
def status(site: Site, page: Page) -> Page:
    """The page of an admin who has logged in."""
    log_in(page, site.url)
    return page


def log_in(page: Page, url: str, key: str = KEY) -> None:
    page.goto(url)
    page.get_by_label("Admin key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_have_value("small")


def rows(page: Page, table: str) -> Locator:
    return page.locator(f"#{table} tbody tr")


def piece(text: str, *, first: bool = False, last: bool = False) -> dict[str, Any]:
    """A worker's frame with a piece of an answer."""
    chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}}]}
    if last:
        chunk["choices"][0]["finish_reason"] = "stop"
        chunk["usage"] = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
    events = f"data: {json.dumps(chunk)}\n\n" + ("data: [DONE]\n\n" if last else "")
    frame: dict[str, Any] = {"seq": 0 if first else 1, "text": events}
    if first:
        frame |= {"status": 200, "content_type": "text/event-stream"}
    return frame | ({"end": True} if last else {})


def answered(text: str) -> list[Step]:
    whole = piece(text, first=True, last=True)
    return [Step("COMPLETED", [whole])]


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_a_wrong_key_is_told_so_and_sees_nothing(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.get_by_label("Admin key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Incorrect API key provided.")
    expect(page.get_by_role("heading", name="Endpoints")).to_have_count(0)
    page.get_by_label("Admin key").fill("sk-of-a-hostile-name")  # good, but no admin's
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("may not administer")
    assert page.context.cookies() == []


def test_a_login_outlasts_a_reload_and_ends_by_logging_out(site: Site, status: Page) -> None:
    status.reload()
    expect(status.get_by_role("heading", name="Endpoints")).to_be_visible()
    (cookie,) = status.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/admin")
    assert KEY not in cookie["value"]
    assert status.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
        *(0, 0, "")
    ]
    status.get_by_role("button", name="Log out").click()
    expect(status.get_by_label("Admin key")).to_be_visible()
    assert status.context.cookies() == []


def test_a_session_that_has_ended_leads_to_the_login(site: Site, status: Page) -> None:
    status.context.clear_cookies()
    expect(status.get_by_label("Admin key")).to_be_visible()


def test_endpoints_and_what_is_under_way_are_shown_and_wake_nobody(
    site: Site, status: Page
) -> None:
    site.runpod.workers = {"idle": 1, "ready": 1, "throttled": 2}
    row = rows(status, "endpoints-table").first
    expect(row).to_contain_text("1 idle, 2 throttled")
    expect(row).to_contain_text("ready")
    expect(rows(status, "live-table")).to_have_text(["Nothing is under way."])
    assert site.runpod.jobs == []


def test_a_chat_streams_and_shows_the_cold_start_as_it_passes(site: Site, status: Page) -> None:
    starts, comes = threading.Event(), threading.Event()
    site.runpod.workers, site.runpod.in_queue = {"initializing": 1}, 1
    site.runpod.script = [
        Step("IN_QUEUE", hold=starts),
        Step("IN_PROGRESS", [piece("Hello ", first=True)]),
        Step("IN_PROGRESS", hold=comes),
        Step("COMPLETED", [piece("wörld 🙂", last=True)]),
    ]
    say(status, "Hi")
    expect(status.locator("#chat-state")).to_have_text("Waiting for a worker (warming)")
    expect(status.get_by_role("timer")).to_have_text(re.compile(r"^\d+ s$"))
    expect(rows(status, "endpoints-table").first).to_contain_text("warming")
    expect(rows(status, "live-table").first).to_contain_text("waiting")
    site.runpod.workers, site.runpod.in_queue = {"running": 1}, 0
    starts.set()
    answer = status.locator(".message.assistant pre").last
    expect(answer).to_have_text("Hello ")
    expect(status.locator("#chat-state")).to_have_text("Answering")
    expect(status.get_by_role("timer")).to_be_empty()
    comes.set()
    expect(answer).to_have_text("Hello wörld 🙂")
    expect(status.locator(".message footer").last).to_contain_text("7 tokens, job job-")
    (job,) = site.runpod.jobs
    asked = json.loads(json.dumps(job["input"]["openai_input"]))
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    expect(rows(status, "endpoints-table").first).not_to_contain_text("not known;")


def test_a_chat_goes_on_with_what_was_said_before_and_is_stopped(site: Site, status: Page) -> None:
    site.runpod.script = answered("One.")
    say(status, "First")
    expect(status.locator("#chat-state")).to_have_text("Done")
    site.runpod.stream_calls = 0
    site.runpod.script = [Step("IN_QUEUE", hold=threading.Event())]
    say(status, "Second")
    wait_until(lambda: len(site.runpod.jobs) == 2)
    said = [one["content"] for one in site.runpod.jobs[1]["input"]["openai_input"]["messages"]]
    assert said == ["First", "One.", "Second"]
    status.get_by_role("button", name="Stop").click()
    expect(status.locator("#chat-state")).to_have_text("Stopped")
    wait_until(lambda: site.runpod.cancelled != [])


def test_an_error_is_told_where_it_happened(site: Site, status: Page) -> None:
    site.runpod.script = [Step("FAILED")]
    site.runpod.final = {"status": "FAILED", "error": HOSTILE}
    say(status, "Hi")
    expect(status.locator("#chat-error")).not_to_be_empty()
    expect(rows(status, "errors-table").first).to_contain_text("small")


def test_keys_are_made_rotated_and_revoked_and_each_is_shown_once(site: Site, status: Page) -> None:
    def may_call(key: str) -> bool:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{site.url}/v1/models", headers=headers, timeout=30).is_success

    def shown() -> str:
        key = status.get_by_label("Key", exact=True).input_value()
        status.get_by_role("button", name="Done").click()
        expect(status.locator("#made-key")).to_have_value("")
        assert key not in status.content()
        return key

    status.get_by_text("Create a key").click()
    status.get_by_label("Name", exact=True).fill("alice")
    status.get_by_label("Requests a minute", exact=True).fill("60")
    status.get_by_label("Days until it expires").fill("7")
    status.keyboard.press("Enter")
    expect(status.get_by_role("dialog", name="The key of alice")).to_be_visible()
    first = shown()
    assert may_call(first)
    row = rows(status, "keys-table").filter(has_text="alice")
    expect(row).to_contain_text("requests a minute: 60")
    expect(row).to_contain_text("active until")
    status.get_by_role("button", name="Rotate alice").click()
    status.get_by_role("button", name="Rotate", exact=True).click()
    expect(status.get_by_role("dialog", name="The new key of alice")).to_be_visible()
    second = shown()
    wait_until(lambda: may_call(second) and not may_call(first))
    status.get_by_role("button", name="Revoke alice").click()
    status.get_by_role("button", name="Leave it").click()
    expect(row).to_contain_text("active")
    status.get_by_role("button", name="Revoke alice").click()
    status.get_by_role("button", name="Revoke", exact=True).click()
    expect(row).to_contain_text("revoked")
    wait_until(lambda: not may_call(second))
    status.get_by_label("Name", exact=True).fill("alice")
    status.get_by_role("button", name="Create", exact=True).click()
    expect(status.locator("#keys-trouble")).to_contain_text("alice")


def test_nothing_that_others_have_named_or_said_becomes_markup(site: Site, status: Page) -> None:
    headers = {"authorization": "Bearer sk-of-a-hostile-name"}
    site.runpod.script = answered(HOSTILE)
    body = {"model": HOSTILE, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    url = f"{site.url}/v1/chat/completions"
    assert httpx.post(url, headers=headers, json=body, timeout=30).is_success
    httpx.post(url, headers=headers, json=body | {"messages": 7}, timeout=30)
    expect(rows(status, "endpoints-table").first).to_contain_text(HOSTILE)
    expect(rows(status, "errors-table").first).to_contain_text(HOSTILE)
    expect(rows(status, "spending-table").first).to_contain_text(HOSTILE)
    status.get_by_label("By", exact=True).select_option("models")
    expect(rows(status, "spending-table").first).to_contain_text(HOSTILE)
    expect(status.locator("#spending-figure .legend")).to_contain_text(HOSTILE)
    expect(rows(status, "keys-table").filter(has_text=HOSTILE)).to_have_count(1)
    status.get_by_label("Model", exact=True).select_option(HOSTILE)
    site.runpod.stream_calls = 0
    say(status, HOSTILE)
    expect(status.locator(".message.assistant pre").last).to_have_text(HOSTILE)
    refusal = {"error": {"message": HOSTILE, "type": HOSTILE, "param": None, "code": 400}}
    frame = {"seq": 0, "status": 400, "content_type": "application/json", "end": True}
    site.runpod.stream_calls = 0
    site.runpod.script = [Step("COMPLETED", [frame | {"text": json.dumps(refusal)}])]
    say(status, "again")
    expect(status.locator("#chat-error")).to_have_text(HOSTILE)
    assert status.locator("img, main script").count() == 0
    assert status.evaluate("window.hacked") is None


def test_what_was_spent_is_shown_by_day_as_the_ledger_has_it(site: Site, page: Page) -> None:
    headers = {"authorization": "Bearer sk-of-a-hostile-name"}
    site.runpod.script = answered("Yes.")
    body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    url = f"{site.url}/v1/chat/completions"
    assert httpx.post(url, headers=headers, json=body, timeout=30).is_success

    def ledger() -> Any:
        by_admin = {"authorization": f"Bearer {KEY}"}
        usage = f"{site.url}/admin/usage?keys=all"
        return httpx.get(usage, headers=by_admin, timeout=30).raise_for_status().json()["data"]

    wait_until(lambda: ledger() != [])
    log_in(page, site.url)
    expect(page.locator("#tiles")).to_contain_text("Spent today")
    page.get_by_label("in", exact=True).select_option("days")
    expect(page.get_by_role("img", name="Dollars a day")).to_be_visible()
    expect(rows(page, "spending-table")).to_have_count(1)
    expect(rows(page, "spending-table").first).to_contain_text(HOSTILE)


COPIES = """async () => {
  const { Samples, level, rate, largest, totals } = await import("/page/samples.js");
  const share = (dollars) => ({ alice: { requests: 1, dollars } });
  const sample = (number, time, completed, running, workers, dollars) => ({
    ...{ number, time, completed, keys: share(dollars) },
    now: { requests: { running }, workers },
  });
  const answer = (copy, samples) => ({ copy, samples, time: 1040, step_seconds: 10 });
  const all = new Samples();
  all.add(answer("a", [sample(7, 1000, 2, 3, { idle: 2 }, 1), sample(8, 1010, 4, 1, null, 0)]));
  all.add(answer("b", [sample(1, 1010, 6, 5, { idle: 2 }, 5)]));
  all.add(answer("a", [sample(9, 1020, 0, 0, { idle: 0 }, 0)]));
  const parts = all.parts(40, 1040);
  return {
    have: all.have,
    copies: all.current.length,
    completed: rate(parts, 60, (one) => one.completed),
    running: level(parts, (one) => one.now.requests.running),
    idle: largest(parts, (one) => one.now.workers?.idle ?? null),
    totals: totals(parts, "keys"),
  };
}"""


def test_what_copies_tell_is_put_together_by_its_time(site: Site, page: Page) -> None:
    page.goto(site.url)
    assert page.evaluate(COPIES) == {
        "have": "a:9,b:1",
        "copies": 2,
        "completed": [12, 60, 0, None],
        "running": [3, 6, 0, None],
        "idle": [2, 2, 0, None],
        "totals": [["alice", {"requests": 4, "dollars": 6}]],
    }


def test_the_policy_of_the_page_stops_markup_even_if_a_script_of_ours_made_it(
    site: Site, page: Page
) -> None:
    page.goto(site.url)
    refused = page.evaluate(
        """() => {
          try { document.body.innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
        }"""
    )
    assert refused == "TypeError"
    site.complaints.clear()


def test_all_of_it_is_reached_by_the_keyboard(site: Site, page: Page) -> None:
    site.runpod.script = answered("By keys.")
    page.goto(site.url)
    page.keyboard.type(KEY)  # the field has the focus
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.get_by_label("Model", exact=True)).to_have_value("small")
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "chat-send":
            break
        if reached[-1] == "chat-text":
            page.keyboard.type("Hi")
            page.keyboard.press("Enter")
            expect(page.locator("#chat-state")).to_have_text("Done")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", reached[-1]
    assert {"range", "svg", "group", "chat-model", "chat-text"} <= set(reached)


def test_arrow_keys_tell_the_values_of_a_plot(site: Site, status: Page) -> None:
    plot = status.get_by_role("img", name="Requests a minute")
    expect(plot).to_have_attribute("aria-label", re.compile("Last: completed 0, failed 0"))
    plot.focus()
    page_told = status.locator("figure output").first
    expect(page_told).to_be_empty()
    status.keyboard.press("ArrowLeft")
    expect(page_told).to_have_text(re.compile(r": completed 0, failed 0, left by the client 0$"))
    status.keyboard.press("Home")
    expect(page_told).to_contain_text("completed unknown")
    status.keyboard.press("Escape")
    expect(page_told).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_it_can_be_read_by_day_and_by_night_and_on_a_phone(
    site: Site, page: Page, scheme: Any, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    log_in(page, site.url)
    expect(rows(page, "endpoints-table").first).to_contain_text("ep")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for words in ("main", ".quiet", "th", "button", "a[href='#chat']", ".line-1"):
        assert contrast(page, words) >= 4.5, words


def contrast(page: Page, selector: str) -> float:
    """That of an element's text with what is behind it, as WCAG reckons."""
    ratio: float = page.locator(selector).first.evaluate(
        """(element) => {
          const parts = (color) => color.match(/[\\d.]+/g).map(Number);
          const light = (color) => {
            const linear = parts(color).slice(0, 3).map((part) => {
              const share = part / 255;
              return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
          };
          const isClear = (color) => color === "rgba(0, 0, 0, 0)";
          let behind = element;
          while (behind && isClear(getComputedStyle(behind).backgroundColor)) {
            behind = behind.parentElement;
          }
          const one = light(getComputedStyle(element).color);
          const other = light(getComputedStyle(behind).backgroundColor);
          return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        }"""
    )
    return ratio
