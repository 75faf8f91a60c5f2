"""A soak: streams start and end all the time, some clients leave, and nothing may pile up.

`python -m tests.chaos.soak --minutes 5 --streams 200` runs a long one. The proxy's memory and open
files are sampled every second; after a warm-up the last samples are compared with the first.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil

from tests.chaos.stack import stack_of_processes
from tests.chaos.storm import PATIENCE_SECONDS, WORDS, Stack
from tests.proxy.conftest import KEY
from tests.waiting import wait_until

MiB = 2**20
SAMPLE_SECONDS = 1.0
WARM_UP = 0.3
"""The share of the time after which everything has its size."""
MEMORY_NOISE_MIB = 3.0
"""How much the memory of a healthy proxy may differ from one part of a soak to another."""
FILES_NOISE, CALLS_NOISE = 0.1, 0.5
"""The same for open files and for connections to RunPod, as a share of the clients. Of the latter
there are as many as there were calls at once in the last half minute."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the proxy holds at one moment, and how many requests have ended."""

    seconds: float
    memory_bytes: int
    files: int
    """All that is open but for connections to RunPod."""
    calls: int
    """Connections to RunPod."""
    requests: int


@dataclass(frozen=True, slots=True)
class Trend:
    """One figure's median early and late, and its slope in between."""

    early: float
    late: float
    per_minute: float

    @classmethod
    def of(cls, moments: Sequence[float], values: Sequence[float]) -> "Trend":
        """The trend of these values: the first third of them against the last."""
        third = max(1, len(values) // 3)
        slope = statistics.linear_regression(moments, values).slope
        return cls(
            statistics.median(values[:third]), statistics.median(values[-third:]), 60 * slope
        )

    @property
    def growth(self) -> float:
        """How much more there is late than early."""
        return self.late - self.early

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.early:.1f} early, {self.late:.1f} late, {self.per_minute:+.2f} a minute"


@dataclass
class Report:
    """What a soak saw."""

    streams: int
    samples: list[Sample] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Every answer that was not exactly right. To be empty: nothing is broken in a soak."""
    left_open: int = 0
    """Connections of clients that the proxy still has when all of them have gone."""

    @property
    def warm(self) -> list[Sample]:
        """The samples after the warm-up."""
        return self.samples[int(len(self.samples) * WARM_UP) :]

    @property
    def memory(self) -> Trend:
        """The trend of the proxy's memory, in MiB."""
        return self._trend([sample.memory_bytes / MiB for sample in self.warm])

    @property
    def files(self) -> Trend:
        """The trend of what it has open."""
        return self._trend([sample.files for sample in self.warm])

    @property
    def calls(self) -> Trend:
        """The trend of its connections to RunPod."""
        return self._trend([sample.calls for sample in self.warm])

    def _trend(self, values: Sequence[float]) -> Trend:
        return Trend.of([sample.seconds for sample in self.warm], values)

    @property
    def leaks(self) -> list[str]:
        """What piled up, a sentence each."""
        found = []
        if self.memory.growth > MEMORY_NOISE_MIB:
            found.append(f"memory grew by {self.memory.growth:.1f} MiB")
        if self.files.growth > max(10, FILES_NOISE * self.streams):
            found.append(f"open files grew by {self.files.growth:.0f}")
        if self.calls.growth > max(20, CALLS_NOISE * self.streams):
            found.append(f"connections to RunPod grew by {self.calls.growth:.0f}")
        if self.left_open:
            found.append(f"{self.left_open} connections stayed open when all clients had gone")
        return found

    def __str__(self) -> str:
        """A few lines for people."""
        requests = max(1, self.warm[-1].requests - self.warm[0].requests)
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        return "\n".join(
            [
                f"{self.streams} clients for {self.samples[-1].seconds:.0f} s: {ends}; "
                f"{len(self.wrong)} wrong",
                f"memory in MiB: {self.memory}; "
                f"{self.memory.growth * MiB / requests:+.0f} bytes for each request",
                f"open files: {self.files}",
                f"connections to RunPod: {self.calls}",
                *self.leaks,
                *self.wrong,
            ]
        )


async def soak(stack: Stack, *, streams: int, seconds: float, verbose: bool = False) -> Report:
    """Keep that many clients busy for that long."""
    report = Report(streams)
    ends_at = time.monotonic() + seconds
    client = openai.AsyncOpenAI(
        base_url=f"{stack.proxy.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_SECONDS
    )
    async with client, asyncio.TaskGroup() as group:
        for seed in range(streams):
            group.create_task(_client(client, random.Random(seed), ends_at, report))
        group.create_task(_watch(stack, ends_at, report, verbose=verbose))
    return report


async def _watch(stack: Stack, ends_at: float, report: Report, *, verbose: bool) -> None:
    process = psutil.Process(stack.proxy.process.pid)
    began = time.monotonic()
    while (now := time.monotonic()) < ends_at:
        calls = _connections(process, to=stack.runpod.url)
        sample = Sample(
            seconds=now - began,
            memory_bytes=process.memory_info().rss,
            files=process.num_fds() - calls,
            calls=calls,
            requests=report.ends.total(),
        )
        report.samples.append(sample)
        if verbose and len(report.samples) % 15 == 1:
            print(
                f"{sample.seconds:5.0f} s: {sample.memory_bytes / MiB:6.1f} MiB, "
                f"{sample.files:4} open files, {sample.calls:4} connections to RunPod, "
                f"{sample.requests} requests",
                flush=True,
            )
        await asyncio.sleep(SAMPLE_SECONDS)


async def _client(
    client: openai.AsyncOpenAI, dice: random.Random, ends_at: float, report: Report
) -> None:
    await asyncio.sleep(dice.uniform(0, 2))
    while time.monotonic() < ends_at:
        text = " ".join(dice.choice(WORDS) for _ in range(dice.randint(3, 20)))
        got: list[str] = []
        try:
            end = await _ask(client, text, got, dice)
        except openai.OpenAIError as exc:
            end = "failed"
            report.wrong.append(repr(exc))
        report.ends[end] += 1
        if end == "whole" and "".join(got) != text:
            report.wrong.append(f"wanted {text!r}, got {''.join(got)!r}")


async def _ask(client: openai.AsyncOpenAI, text: str, got: list[str], dice: random.Random) -> str:
    """One request; what came is appended to `got`. Returns how it ended."""
    script = {"text": text, "delay_seconds": dice.choice([0.05, 0.2, 0.6])}
    fields: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "extra_body": {"script": script},
    }
    if dice.random() < 0.1:
        answer = await client.chat.completions.create(**fields)
        got.append(answer.choices[0].message.content or "")
        return "whole"
    leaves_after = dice.randint(0, 10) if dice.random() < 0.2 else None
    async with await client.chat.completions.create(**fields, stream=True) as chunks:
        count = 0
        async for chunk in chunks:
            if count == leaves_after:
                return "left"
            got.append(chunk.choices[0].delta.content or "")
            count += 1
    return "whole"


def soaked(*, streams: int, seconds: float, verbose: bool = False) -> Report:
    """The report of a soak with a stack of its own, and of what is left when all is over."""
    with stack_of_processes(streams=streams, retention_seconds=30) as stack:
        report = asyncio.run(soak(stack, streams=streams, seconds=seconds, verbose=verbose))
        stack.wait_until_quiet()
        stack.proxy.client.close()
        process = psutil.Process(stack.proxy.process.pid)
        with suppress(AssertionError):
            wait_until(lambda: _connections(process, of=stack.proxy.url) == 0)
        report.left_open = _connections(process, of=stack.proxy.url)
    return report


def _connections(process: psutil.Process, *, to: str = "", of: str = "") -> int:
    """How many connections it has made to one URL, or taken at another."""
    there, here = httpx.URL(to).port, httpx.URL(of).port
    return sum(
        one.raddr.port == there if to else one.laddr.port == here
        for one in process.net_connections("tcp")
        if one.status != psutil.CONN_LISTEN and one.raddr
    )


def main() -> int:
    """Run a long soak; 0 if every answer was right and nothing piled up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--streams", type=int, default=200)
    arguments = parser.parse_args()
    report = soaked(streams=arguments.streams, seconds=60 * arguments.minutes, verbose=True)
    print(report)
    return 1 if report.wrong or report.leaks else 0


if __name__ == "__main__":
    sys.exit(main())
