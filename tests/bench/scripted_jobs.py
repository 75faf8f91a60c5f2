"""RunPod as a worker sees it, with a stopwatch: `python -m tests.bench.scripted_jobs --port 8002`.

It hands out one job after the other, and notes when each was handed out, when its first output came
back, and how many outputs were posted. `/bench/times` tells.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.bench.http_server import Connection, serve

HOLD_SECONDS: Final = 20.0
PAUSES: Final = tuple(number * 37 % 100 / 1000 for number in range(1, 21))
"""Between two jobs: anywhere in the tenth of a second that an SDK may sleep."""


class ScriptedJobs:
    """The jobs of one endpoint, of which one is out at a time."""

    def __init__(self, jobs: int, tokens: int) -> None:
        self.first_outputs: list[float] = []
        """From handing a job out to its first output, in seconds."""
        self.posts = 0
        self._left = jobs
        self._jobs = jobs
        self._tokens = tokens
        self._handed_out: float | None = None
        """When the present job was, if nothing has come for it."""
        self._is_due = True
        self._taking: tuple[Connection, bool] | None = None

    def answer(self, connection: Connection) -> None:
        """Answer a call of the worker's SDK."""
        parts = urlsplit(connection.path)
        operation = parts.path.split("/")[3 if parts.path.startswith("/v2/") else 2]
        if operation == "times":
            told = {"left": self._left, "first_outputs": self.first_outputs, "posts": self.posts}
            connection.respond_json(told | {"tokens": self._jobs * self._tokens})
        elif operation.startswith("job-take"):
            is_batch = "batch_size" in parse_qs(parts.query)
            self._taking = (connection, is_batch)
            self._hand_out()
            self._later(HOLD_SECONDS, connection, lambda: self._taking == (connection, is_batch))
        elif operation == "job-stop":
            self._later(HOLD_SECONDS, connection, lambda: True)
        else:
            self._note(operation)
            connection.respond(b"{}")

    def _note(self, operation: str) -> None:
        now = time.monotonic()
        if operation in ("job-stream", "job-done") and self._handed_out is not None:
            self.first_outputs.append(now - self._handed_out)
            self._handed_out = None
        if operation == "job-stream":
            self.posts += 1
        elif operation == "job-done":
            self._left -= 1
            pause = PAUSES[self._left % len(PAUSES)]
            asyncio.get_running_loop().call_later(pause, self._make_due)

    def _make_due(self) -> None:
        self._is_due = self._left > 0
        self._hand_out()

    def _hand_out(self) -> None:
        if self._taking is None or not self._is_due or not self._taking[0].is_open:
            return
        (connection, is_batch), self._taking = self._taking, None
        self._is_due = False
        self._handed_out = time.monotonic()
        job = {"id": f"job-{self._left}", "input": self._input()}
        connection.respond_json([job] if is_batch else job)

    def _input(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Count."}]
        body = {"model": "m", "messages": messages, "stream": True, "max_tokens": self._tokens}
        return {
            "openai_route": "/v1/chat/completions",
            "openai_input": body,
            "proxy": {"protocol": 1, "request_id": "req_bench"},
        }

    def _later(self, seconds: float, connection: Connection, is_wanted: Callable[[], bool]) -> None:
        """Say that there is nothing, if it is still asked."""

        def say() -> None:
            if is_wanted():
                connection.respond(b"", 204)

        asyncio.get_running_loop().call_later(seconds, say)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--jobs", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=5)
    arguments = parser.parse_args()
    serve(ScriptedJobs(arguments.jobs, arguments.tokens), arguments.port)


if __name__ == "__main__":
    main()
