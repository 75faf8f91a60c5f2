"""Open WebUI, started as its guide says, and one chat in it as a person sees it."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

from scripts.processes import Process, stop
from scripts.ui_tools import open_webui_environment
from tests.guides import ROOT, Block, blocks
from tests.waiting import wait_until

GUIDE = ROOT / "docs" / "guides" / "open-webui.md"
START_SECONDS = 120.0
STOP_SECONDS = 10.0

ALONE = {
    # One user, who need not log in.
    "WEBUI_AUTH": "false",
    "WEBUI_SECRET_KEY": "a secret of this test, which nobody but loopback can reach",
    # Nothing is looked up elsewhere, neither a newer version nor a model to embed with.
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ANONYMIZED_TELEMETRY": "false",
    "NO_PROXY": "127.0.0.1",
}
"""What the guide does not say: that there is no network here, and nobody else."""


def _guide_blocks() -> list[Block]:
    return [block for block in blocks("console", GUIDE) if "export " in block.text]


def exports(block: Block, base_url: str) -> dict[str, str]:
    """The environment that a block of the guide sets."""
    text = block.for_proxy_at(base_url)
    pairs = re.findall(r"^\$ export (.*)$", text, re.MULTILINE)
    words = [word for pair in pairs for word in shlex.split(pair)]
    return dict(word.split("=", 1) for word in words)


def as_the_guide_says(base_url: str) -> dict[str, str]:
    """The environment of the guide's first part."""
    return exports(_guide_blocks()[0], base_url)


def without_requests_of_its_own(base_url: str) -> dict[str, str]:
    """The environment that makes Open WebUI ask for nothing but answers."""
    return as_the_guide_says(base_url) | exports(_guide_blocks()[1], base_url)


@contextmanager
def open_webui(environment: Mapping[str, str], folder: Path, port: int) -> Iterator[str]:
    """Run Open WebUI with its data in `folder`, and yield its address."""
    url = f"http://127.0.0.1:{port}"
    program = open_webui_environment().folder / "bin" / "open-webui"
    folder.mkdir()
    paths = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder)}
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]
    settings = {**paths, **ALONE, **environment}
    ui = Process("Open WebUI", command, settings, folder / "open-webui.log")
    try:

        def is_up() -> bool:
            ui.check()
            try:
                return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
            except httpx.HTTPError:
                return False

        wait_until(is_up, seconds=START_SECONDS)
        yield url
    finally:
        stop([ui], STOP_SECONDS)


def create_model(url: str, name: str, **parameters: Any) -> None:
    """Add a model, as an administrator does: `tiny-chat` with other parameters."""
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as client:
        signed_in = client.post("/auths/signin", json={"email": "", "password": ""})
        token = signed_in.raise_for_status().json()["token"]
        body = {"id": name, "name": name, "base_model_id": "tiny-chat", "params": parameters}
        body |= {"meta": {"capabilities": {"builtin_tools": False}}}
        headers = {"authorization": f"Bearer {token}"}
        client.post("/models/create", json=body, headers=headers).raise_for_status()


class Chat:
    """A new chat in an open page."""

    def __init__(self, page: Page, url: str, model: str = "tiny-chat") -> None:
        self._page = page
        # What is new in this version is shown at the first visit, over whatever is there.
        news = page.get_by_role("button", name="Okay, Let's Go!")
        page.add_locator_handler(news, lambda button: button.click())
        page.goto(f"{url}/?model={model}")
        self.model = page.get_by_role("button", name=f"Selected model: {model}")
        expect(self.model).to_be_visible()

    @property
    def _input(self) -> Locator:
        return self._page.locator("#chat-input")

    @property
    def answer(self) -> Locator:
        """The last answer, as far as it is there."""
        return self._page.locator(".chat-assistant").last

    @property
    def stop_button(self) -> Locator:
        """It is there while an answer is awaited or comes in."""
        return self._page.get_by_role("button", name="Stop", exact=True)

    def models(self) -> list[str]:
        """The names in the list of models."""
        self.model.click()
        options = self._page.get_by_role("option")
        expect(options.first).to_be_visible()
        names = options.all_inner_texts()
        self._page.keyboard.press("Escape")
        return [name.strip() for name in names]

    def send(self, text: str) -> None:
        """Type a message and send it."""
        self._input.click()
        self._page.keyboard.insert_text(text)
        self._page.keyboard.press("Enter")
        expect(self.stop_button).to_be_visible()

    def await_more(self) -> None:
        """Until the answer is longer than it was."""
        size = len(self.answer.inner_text())
        self._page.wait_for_function(
            "([answer, size]) => answer.innerText.length > size",
            arg=[self.answer.element_handle(), size],
        )

    def await_end(self, seconds: float = 60) -> str:
        """The whole answer."""
        expect(self.stop_button).to_be_hidden(timeout=seconds * 1000)
        return self.answer.inner_text()
