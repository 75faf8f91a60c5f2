"""A stack, Open WebUI in front of it, and a browser that reaches nothing but loopback.

Each test needs only what it asks for, and is skipped where `make ui-check` has not made that.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from scripts import ui_tools
from scripts.local_stack import LocalStack, local_stack
from scripts.processes import free_port
from scripts.progress import SetUpError
from tests.jobs import Jobs
from tests.long_models import long_models
from tests.ui.open_webui import as_the_guide_says, open_webui, without_requests_of_its_own

PATIENCE_MILLISECONDS = 60_000
"""How long the browser waits for what is to appear, on a slow machine."""

CHROMIUM_FLAGS = [
    *("--disable-gpu", "--disable-quic", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder `node_modules`; skips where it was not made."""
    if not ui_tools.node_packages().exists():
        pytest.skip("run `make ui-check`")
    return ui_tools.node_packages()


@pytest.fixture(scope="session")
def installed_ui() -> None:
    """Skips where there is no Open WebUI."""
    if not ui_tools.open_webui_environment().is_ready:
        pytest.skip("run `make ui-check`")


@pytest.fixture(scope="module")
def ui_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def stack(ui_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """What `make run` starts, before its first request: each file of tests finds no worker up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXY_KEEP_ALIVE_SECONDS", "1")
        patch.setenv("PROXY_WAKE_SHIELD", "true")
        patch.setenv("PROXY_CORS_ORIGINS", f"http://127.0.0.1:{ui_port}")
        # The same question has the same answer.
        models = long_models({"OVERRIDE_GENERATION_CONFIG": '{"temperature": 0}'})
        with local_stack(models, tmp_path_factory.mktemp("logs")) as stack:
            yield stack


@pytest.fixture
def warm_stack(stack: LocalStack) -> LocalStack:
    """The stack with a worker up."""
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {stack.api_key}"}
    url = f"{stack.base_url}/chat/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=300, trust_env=False)
    answer.raise_for_status()
    return stack


@pytest.fixture(scope="module")
def jobs(stack: LocalStack) -> Jobs:
    return Jobs(stack)


@pytest.fixture(scope="module")
def ui(
    installed_ui: None,
    stack: LocalStack,
    ui_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Open WebUI as the guide has it."""
    folder = tmp_path_factory.mktemp("ui") / "data"
    with open_webui(as_the_guide_says(stack.base_url), folder, ui_port) as url:
        yield url


@pytest.fixture(scope="module")
def quiet_ui(
    installed_ui: None, stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Open WebUI that asks for nothing but answers."""
    folder = tmp_path_factory.mktemp("quiet-ui") / "data"
    environment = without_requests_of_its_own(stack.base_url)
    with open_webui(environment, folder, free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        chromium = ui_tools.chromium()
    except SetUpError as error:
        pytest.skip(str(error))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=CHROMIUM_FLAGS,
            # Its sandbox does not work as root, and it shows our own pages only.
            chromium_sandbox=os.geteuid() != 0,
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1100, "height": 720})
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    yield context.new_page()
    context.close()
