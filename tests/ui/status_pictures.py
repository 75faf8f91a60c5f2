"""Takes the pictures of the status page for the documents: `python -m tests.ui.status_pictures`.

The page and the proxy are real; the traffic of the last two hours, and RunPod, are made up.
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from proxy.api.answer import Course
from proxy.app import create_app
from proxy.backends.start_clock import StartTimes
from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.history import MAX_SAMPLES, STEP_SECONDS, History
from scripts.ui_tools import chromium
from tests.guides import ROOT
from tests.proxy.conftest import settings_for
from tests.proxy.scripted_runpod import Page as Step
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.servers import serve
from tests.ui.conftest import CHROMIUM_FLAGS

KEY = "sk-admin-of-the-pictures-0123456789"
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 150_000
CONFIG = """
[endpoints.chat]
price_per_second = 0.00031
daily_budget = 20

[endpoints.code]
price_per_second = 0.00053

[models."qwen3-8b"]
endpoint = "chat"

[models."qwen3-coder-30b"]
endpoint = "code"
"""
COLD_AFTER = 0.45
"""Which part of the time has passed when all workers are gone, and one is started anew."""


def made_up() -> History:
    """Two hours of a product by day, with a cold start on the way."""
    chance = random.Random(7)
    began = time.time() - MAX_SAMPLES * STEP_SECONDS
    moment = [began]
    history = History(lambda: moment[0])
    for number in range(MAX_SAMPLES):
        share = number / MAX_SAMPLES
        load = 0 if abs(share - COLD_AFTER) < 0.04 else 1.5 + 1.2 * chance.random() + 2 * share
        is_cold = COLD_AFTER + 0.04 <= share < COLD_AFTER + 0.046
        for _ in range(round(load)):
            _end_one(history, chance, is_cold=is_cold)
        moment[0] = began + (number + 1) * STEP_SECONDS + 0.5
        history.close_sample(_now(load, is_cold=is_cold))
    return history


def _end_one(history: History, chance: random.Random, *, is_cold: bool) -> None:
    key = chance.choices(("product", "alice", "batch"), (5, 3, 2))[0]
    model, price = chance.choices((("qwen3-8b", 0.00031), ("qwen3-coder-30b", 0.00053)), (3, 1))[0]
    seconds = chance.lognormvariate(-0.9, 0.4) + (48 if is_cold else 0)
    outcome = chance.choices(("completed", "client_left", "rate_limit_exceeded"), (95, 3, 2))[0]
    ended = EndedRequest(
        *(f"req_{chance.getrandbits(64):016x}", "POST", "/v1/chat/completions"),
        *(429 if outcome == "rate_limit_exceeded" else 200, outcome, seconds + 4),
        route="POST /v1/chat/completions",
        key=key,
        model=model,
        first_token_seconds=seconds,
        tokens=(chance.randint(50, 900), chance.randint(20, 700)),
        course=Course(was_cold=is_cold),
    )
    history.note(ended)
    history.note_spent(key, model, 6.0, 6.0 * price)


def _now(load: float, *, is_cold: bool) -> Callable[[], dict[str, Any]]:
    running = round(load * 1.3)
    workers = {"idle": 0, "running": (running + 2) // 3, "starting": 0}
    if is_cold:
        workers = {"idle": 0, "running": 0, "starting": 1}
    waiting = 5 if is_cold else max(0, running - 5)
    return lambda: {
        "requests": {"running": 0 if is_cold else running, "waiting": waiting},
        "workers": workers,
    }


def log_in(page: Page, url: str) -> None:
    """To the status."""
    page.goto(url)
    page.get_by_label("Admin key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_have_value("qwen3-8b")


def overview(page: Page) -> bytes:
    """Endpoints and plots, by day."""
    page.set_viewport_size({"width": 1160, "height": 940})
    page.emulate_media(color_scheme="light")
    page.get_by_label("Show the last").select_option("7200")
    page.mouse.move(0, 0)
    return page.screenshot()


def chat(page: Page, runpod: ScriptedRunPod) -> bytes:
    """A chat that waits for a worker, by night."""
    page.set_viewport_size({"width": 760, "height": 520})
    page.emulate_media(color_scheme="dark")
    runpod.workers, runpod.in_queue = {"initializing": 1}, 1
    runpod.script = [Step("IN_QUEUE", hold=threading.Event())]
    page.get_by_label("Message", exact=True).fill("What is a cold start?")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-state")).to_contain_text("warming")
    page.wait_for_timeout(8_000)  # so that it has waited for a while
    return page.locator("section", has=page.locator("#chat")).screenshot()


def main() -> None:
    """Take both."""
    folder = Path(tempfile.mkdtemp(prefix="status-pictures-"))
    (folder / "proxy.toml").write_text(CONFIG)
    runpod = ScriptedRunPod()
    runpod.workers = {"idle": 1, "ready": 1, "running": 1}
    changes: dict[str, Any] = {"config": folder / "proxy.toml", "models": "", "admin_keys": KEY}
    changes |= {"runpod_endpoint_id": "", "state_dir": folder}
    expect.set_options(timeout=60_000)
    with serve(runpod.app) as runpod_url, sync_playwright() as playwright:
        StartTimes(folder).add(f"{runpod_url}/v2/chat", 48)
        app = create_app(settings_for(runpod_url, **changes))
        with serve(app) as url:
            browser = playwright.chromium.launch(
                executable_path=chromium(),
                args=CHROMIUM_FLAGS,
                chromium_sandbox=os.geteuid() != 0,
            )
            page = browser.new_page()
            log_in(page, url)  # the proxy is up
            app.state.services.history = made_up()
            page.reload()
            expect(page.locator("#endpoints-table")).to_contain_text("1 idle, 1 running")
            for name, picture in (("status", overview(page)), ("status-chat", chat(page, runpod))):
                assert len(picture) < MAX_BYTES, f"{name} has {len(picture)} bytes"
                (IMAGES / f"{name}.png").write_bytes(picture)
            browser.close()


if __name__ == "__main__":
    main()
