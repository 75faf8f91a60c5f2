"""A RunPod queue with workers that never run out: `python -m tests.bench.scripted_queue`.

The emulator with real workers cannot post two thousand outputs a second on one core. This speaks
the calls that a proxy makes, with RunPod's limits and a network between, and makes the frames of
our own worker by itself, at the stand-in's pace. `/bench/counts` tells how many calls came.
"""

import argparse
import asyncio
import base64
import itertools
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.bench.http_server import Connection, serve
from tests.bench.metronome import Metronome, first_chunk, plain_answer, token_chunk
from tests.bench.scripted_channel import ScriptedChannel

WINDOW_SECONDS: Final = 10.0
LIMITS: Final = {
    "run": (1000, 200),
    "stream": (2000, 400),
    "status": (2000, 400),
    "cancel": (100, 20),
}
"""RunPod's: calls in ten seconds, and at once."""
LONGEST_HOLD_SECONDS: Final = 300.0
KEPT_JOBS: Final = 2000


@dataclass
class Meter:
    """The calls of one operation, and what RunPod would refuse of them."""

    calls: int
    at_once: int
    now: int = 0
    admitted: int = 0
    refused: int = 0
    _moments: deque[float] = field(default_factory=deque)

    def admit(self) -> bool:
        """Whether one more call is within the limits; it is counted either way."""
        now = time.monotonic()
        while self._moments and self._moments[0] <= now - WINDOW_SECONDS:
            self._moments.popleft()
        if len(self._moments) >= self.calls or self.now >= self.at_once:
            self.refused += 1
            return False
        self._moments.append(now)
        self.admitted += 1
        self.now += 1
        return True


class Job:
    """One job, whose worker is always there."""

    def __init__(self, job_id: str, given: dict[str, Any], channel: ScriptedChannel | None) -> None:
        body = given["openai_input"]
        self.id = job_id
        self.status = "IN_PROGRESS"
        self.waiting: list[dict[str, Any]] = []
        """Frames that no poll has taken."""
        self.frames: list[dict[str, Any]] = []
        self.held: Poll | None = None
        asked = given.get("proxy", {}).get("channel")
        self._channel = channel if asked else None
        self._nonce = ""
        if channel is not None and asked:
            self._nonce = asked["nonce"]
            channel.begin(self._nonce, base64.b64decode(asked["certificate"]), self)
        self._received = 0
        self._run = f"run-{job_id}"
        self._chat, self._model = f"chatcmpl-{job_id}".encode(), str(body.get("model", "m"))
        self._is_stream = bool(body.get("stream"))
        self._tokens = int(body.get("max_tokens") or 16)
        self._made = 0

    def tick(self) -> bool:
        """Put the next frame out; whether there are more."""
        if self.status != "IN_PROGRESS":
            return False
        is_last = not self._is_stream or self._made + 1 == self._tokens
        text = self._text(is_last=is_last)
        frame: dict[str, Any] = {"seq": self._made, "run": self._run, "text": text}
        if self._made == 0:
            kind = "text/event-stream; charset=utf-8" if self._is_stream else "application/json"
            models = [{"id": "m", "max_model_len": 8192}]
            frame |= {"status": 200, "content_type": kind, "models": models}
            if self._channel is not None:
                frame["channel"] = self._channel.offer
        if is_last:
            frame["end"] = True
        self._made += 1
        self.frames.append(frame)
        if self._channel is None or not self._channel.send(self._nonce, frame):
            self._queue([frame])
        return not is_last

    def acknowledge(self, received: int) -> None:
        """The proxy has all frames below this number, by the channel."""
        self._received = max(self._received, received)
        if self.frames[-1].get("end") and self._received == len(self.frames):
            self._finish("COMPLETED")

    def fall_back(self) -> None:
        """The channel is lost: the queue has what was not acknowledged."""
        self._queue(self.frames[self._received :])

    def _queue(self, frames: list[dict[str, Any]]) -> None:
        self.waiting += frames
        if frames and frames[-1].get("end"):
            self._finish("COMPLETED")
        elif self.held is not None:
            self.held.release()

    def _finish(self, status: str) -> None:
        if self.status == "IN_PROGRESS":
            self.status = status
        if self._channel is not None:
            self._channel.end(self._nonce)
        if self.held is not None:
            self.held.release()

    def _text(self, *, is_last: bool) -> str:
        if not self._is_stream:
            return json.dumps(plain_answer(self._chat.decode(), self._model))
        model = self._model.encode()
        chunk = token_chunk(self._chat, model, self._made, is_last=is_last)
        if self._made == 0:
            chunk = first_chunk(self._chat, model) + chunk
        return (chunk + (b"data: [DONE]\n\n" if is_last else b"")).decode()

    def cancel(self) -> None:
        """End it, unless it has ended."""
        self._finish("CANCELLED")

    def page(self) -> dict[str, Any]:
        """What /stream hands out now; each frame is given once."""
        outputs, self.waiting = self.waiting, []
        return {"status": self.status, "stream": [{"output": frame} for frame in outputs]}


class Poll:
    """A call of /stream that is held until there is something to say."""

    def __init__(self, queue: "ScriptedQueue", connection: Connection, job: Job, seconds: float):
        self._queue, self._connection, self._job = queue, connection, job
        self._timer = asyncio.get_running_loop().call_later(seconds, self.release)
        job.held = self
        connection.on_close = self._abandon

    def release(self) -> None:
        """Answer it."""
        if self._end():
            self._queue.send(self._connection, self._job.page())

    def _abandon(self) -> None:
        if self._end():
            self._queue.meters["stream"].now -= 1

    def _end(self) -> bool:
        self._timer.cancel()
        if self._job.held is not self:
            return False
        self._job.held = None
        self._connection.on_close = None
        return True


class ScriptedQueue:
    """The queue of one endpoint, at `network_seconds` (a round trip) from its proxy."""

    def __init__(
        self,
        *,
        network_seconds: float,
        worker_seconds: float,
        has_limits: bool,
        channel: ScriptedChannel | None = None,
    ) -> None:
        self._channel = channel
        self.metronome = Metronome()
        many = (10**9, 10**9)
        self.meters = {
            name: Meter(*(limit if has_limits else many)) for name, limit in LIMITS.items()
        }
        self._one_way_seconds = network_seconds / 2
        self._worker_seconds = worker_seconds
        self._serial = itertools.count(1)
        self._jobs: dict[str, Job] = {}

    def answer(self, connection: Connection) -> None:
        """Take a call, which reaches RunPod half a round trip later."""
        call = connection.method, connection.path, connection.body
        self._after_network(self._take, connection, *call)

    def send(self, connection: Connection, value: object, status: int = 200) -> None:
        """Answer a call that was counted, or refused."""
        operation = urlsplit(connection.path).path.split("/")[3]
        if status != 429 and operation in self.meters:
            self.meters[operation].now -= 1
        self._after_network(connection.respond_json, value, status)

    def _after_network(self, call: Any, *arguments: Any) -> None:
        if self._one_way_seconds:
            asyncio.get_running_loop().call_later(self._one_way_seconds, call, *arguments)
        else:
            call(*arguments)

    def _take(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        parts = urlsplit(path)
        words = parts.path.split("/")  # "", "v2", endpoint, operation, job
        if words[1] == "bench":
            connection.respond_json(self._counts())
            return
        operation = words[3]
        if operation in self.meters and not self.meters[operation].admit():
            self.send(connection, {}, 429)
            return
        if operation == "run":
            self._run(connection, json.loads(body))
        elif operation == "health":
            workers = {"idle": 1, "ready": 1, "running": 0}
            self.send(connection, {"jobs": {"inQueue": 0, "inProgress": 0}, "workers": workers})
        elif (job := self._jobs.get(words[4])) is None:
            self.send(connection, {}, 404)
        elif operation == "stream":
            wait = float(parse_qs(parts.query).get("wait", ["10000"])[0]) / 1000
            self._stream(connection, job, min(wait, LONGEST_HOLD_SECONDS))
        elif operation == "cancel":
            job.cancel()
            self.send(connection, {"id": job.id, "status": job.status})
        else:
            self.send(connection, {"id": job.id, "status": job.status, "output": job.frames})

    def _run(self, connection: Connection, body: dict[str, Any]) -> None:
        job = Job(f"job-{next(self._serial)}", body["input"], self._channel)
        self._jobs[job.id] = job
        while len(self._jobs) > KEPT_JOBS:
            self._jobs.pop(next(iter(self._jobs)))
        self.send(connection, {"id": job.id, "status": "IN_QUEUE"})
        asyncio.get_running_loop().call_later(self._worker_seconds, self.metronome.add, job)

    def _stream(self, connection: Connection, job: Job, seconds: float) -> None:
        if job.waiting or job.status != "IN_PROGRESS":
            self.send(connection, job.page())
        else:
            Poll(self, connection, job, seconds)

    def _counts(self) -> dict[str, dict[str, int]]:
        return {
            name: {"admitted": meter.admitted, "refused": meter.refused}
            for name, meter in self.meters.items()
        }


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--network-ms", type=float, default=0)
    parser.add_argument("--worker-ms", type=float, default=5, help="until a job's first frame")
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument("--channel-port", type=int, help="where the worker has a door")
    arguments = parser.parse_args()
    network_seconds = arguments.network_ms / 1000
    channel = None
    if arguments.channel_port:
        channel = ScriptedChannel(arguments.channel_port, network_seconds)
    queue = ScriptedQueue(
        network_seconds=network_seconds,
        worker_seconds=arguments.worker_ms / 1000,
        has_limits=not arguments.no_limits,
        channel=channel,
    )
    doors = [channel.start] if channel is not None else []
    serve(queue, arguments.port, queue.metronome.start, *doors)


if __name__ == "__main__":
    main()
