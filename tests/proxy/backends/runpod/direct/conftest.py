"""A proxy whose endpoint allows the direct channel, and a worker that a test drives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, HEAD
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

    @property
    def events(self) -> str:
        """What has been read, without comments."""
        return "".join(part for part in self.text.split("\n\n") if not part.startswith(":"))

    def read_to(self, text: str) -> None:
        """Read on until this has come."""
        while text not in self.text:
            self.text += next(self._pieces)

    def read_all(self) -> str:
        """Read to the end, and return all of the answer but comments."""
        self.text += "".join(self._pieces)
        parts = self.text.split("\n\n")
        return "\n\n".join(part for part in parts if not part.startswith(":"))


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

    def offer_door(self, **changes: Any) -> None:
        """Let the first poll bring a head that tells of the worker's door; later ones are held."""
        head = frame(0, channel=self.worker.offer | changes)
        self.runpod.script = [
            Page("IN_PROGRESS", [head]),
            Page("IN_PROGRESS", [], hold=self.polled),
            Page("COMPLETED"),
        ]

    @contextmanager
    def asked(self, **changes: Any) -> Iterator[Answer]:
        """Send a streamed chat."""
        with self.client.stream("POST", CHAT, json=chat(stream=True, **changes)) as response:
            yield Answer(response)

    @contextmanager
    def connected(self) -> Iterator[Answer]:
        """A streamed chat whose head came by the queue, and whose worker has been dialled."""
        self.offer_door()
        with self.asked() as answer:
            answer.read_to(event(0))
            wait_until(lambda: self.worker.is_connected)
            yield answer

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
    proxies: Callable[..., str], runpod: ScriptedRunPod, worker: ScriptedWorker, awake: None
) -> Iterator[Direct]:
    """A proxy that may dial the worker."""
    headers = {"authorization": f"Bearer {KEY}"}
    url = proxies(**DIRECT)
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        found = Direct(client, runpod, worker)
        yield found
        found.polled.set()
