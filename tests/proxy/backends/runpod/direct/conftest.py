"""A proxy whose endpoint allows the direct channel, and a worker that a test drives."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, HEAD, without_comments
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_worker import ScriptedWorker
from tests.waiting import wait_until

DIRECT = {"direct": True, "direct_private_addresses": True}


def frame(seq: int, text: str | None = None, **more: Any) -> dict[str, Any]:
    """A frame of a stream; its text names its number unless said otherwise."""
    head = HEAD if seq == 0 else {}
    return {"seq": seq, "run": "r1", "text": event(seq) if text is None else text} | head | more


def event(seq: int) -> str:
    """What a frame of this number says."""
    return f"data: {seq}\n\n"


class Answer:
    """A streamed answer under way."""

    def __init__(self, response: httpx.Response) -> None:
        self.text = ""
        self._pieces = response.iter_text()

    def read_to(self, text: str) -> None:
        """Read on until this has come."""
        while text not in self.text:
            self.text += next(self._pieces)

    def read_all(self) -> str:
        """Read to the end, and return all of the answer but comments."""
        self.text += "".join(self._pieces)
        return without_comments(self.text)


class Direct:
    """A proxy, the RunPod and the worker it talks to, and a client."""

    def __init__(self, client: httpx.Client, runpod: ScriptedRunPod, worker: ScriptedWorker):
        self.client = client
        self.runpod = runpod
        self.worker = worker
        self.polled = threading.Event()
        """Until it is set RunPod holds the polls behind the first."""
        runpod.on_job = worker.take_job

    @property
    def nonce(self) -> str:
        """Of the last job."""
        return self.worker.nonces[-1]

    @contextmanager
    def asked(self, *pages: Page, **channel: Any) -> Iterator[Answer]:
        """Send a streamed chat whose first poll brings a head that tells of the worker's door.

        The next poll is held until `polled` is set; then come the pages.
        """
        head = frame(0, channel=self.worker.offer | channel)
        held = Page("IN_PROGRESS", [], hold=self.polled)
        self.runpod.script = [Page("IN_PROGRESS", [head]), held, *pages]
        self.runpod.stream_calls = 0
        with self.client.stream("POST", CHAT, json=chat(stream=True)) as response:
            yield Answer(response)

    @contextmanager
    def connected(self, *pages: Page) -> Iterator[Answer]:
        """The same, and the head has been read, and the worker dialled."""
        with self.asked(*pages or (Page("FAILED"),)) as answer:
            answer.read_to(event(0))
            wait_until(lambda: self.worker.is_connected)
            yield answer

    def metric(self, name: str, **labels: str) -> float:
        """What the proxy has counted."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + "{") and wanted <= set(re.findall(r'\w+="[^"]*"', line)):
                found += float(line.rpartition(" ")[2])
        return found

    def send(self, *frames: dict[str, Any]) -> None:
        """Let the worker send frames of the last job, in one message."""
        self.worker.send(*(["frame", self.nonce, frame] for frame in frames))


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    """A worker's door."""
    with ScriptedWorker() as worker:
        yield worker


@pytest.fixture
def direct(
    proxies: Callable[..., str],
    runpod: ScriptedRunPod,
    worker: ScriptedWorker,
    awake: None,
    settings: dict[str, Any],
) -> Iterator[Direct]:
    """A proxy that may dial the worker."""
    headers = {"authorization": f"Bearer {KEY}"}
    url = proxies(**DIRECT | settings)
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        found = Direct(client, runpod, worker)
        yield found
        found.polled.set()
