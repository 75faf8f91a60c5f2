"""A storm: many requests while the network, the platform, the workers and their starts fail.

`python -m tests.chaos.storm --seed 7 --requests 2000` runs a long one. The seed says what each
client asks and when it leaves; what meets a fault depends on timing as well.
"""

import argparse
import asyncio
import itertools
import random
import re
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from proxy.backends.refusals import GUST_SECONDS
from proxy.config.settings import DATABASE_FILE
from tests.chaos.road_weather import LEASE_SECONDS, RoadWeather
from tests.emulator.running import API_KEY, Client, Json, emulator
from tests.end_to_end.conftest import endpoint_settings
from tests.proxy.conftest import KEY
from tests.proxy.process import Proxy
from tests.waiting import wait_until
from tests.wire.sealing import SECRET

WORDS = ["Grüße", "你好", "🌍🙂", "привет", "ẞ\u2028x", "naïve", "data: [DONE]", '{"id": "x"}', "a"]
FAULTS: list[dict[str, Any]] = [
    {"operation": "stream", "drop": "answer", "chance": 0.05},
    {"operation": "stream", "status": 500, "chance": 0.03},
    {"operation": "stream", "status": 429, "headers": {"retry-after": "1"}, "chance": 0.005},
    {"operation": "stream", "delay_seconds": 0.1, "chance": 0.1},
    {"operation": "job-stream", "status": 429, "chance": 0.05},
    {"operation": "job-stream", "drop": "call", "chance": 0.03},
    {"operation": "job-stream", "drop": "answer", "chance": 0.02},
    {"operation": "job-stream", "delay_seconds": 0.03, "chance": 0.3},
    {"operation": "run", "status": 503, "chance": 0.03},
    {"operation": "run", "status": 429, "chance": 0.03},
    {"operation": "run", "drop": "answer", "chance": 0.02},
    {"operation": "stream", "status": 404, "chance": 0.03},
    {"operation": "status", "status": 404, "chance": 0.1},
    {"operation": "cancel", "status": 404, "chance": 0.1},
    {"operation": "cancel", "status": 500, "chance": 0.2},
    {"operation": "cancel", "status": 429, "chance": 0.1},
    {"operation": "cancel", "drop": "call", "chance": 0.1},
    {"operation": "status", "status": 500, "chance": 0.1},
    {"operation": "status", "drop": "answer", "chance": 0.1},
    {"operation": "job-done", "drop": "call", "chance": 0.01},
    {"operation": "job-take", "status": 500, "chance": 0.05},
]
AT_THE_EDGE = ("run", "stream", "status", "cancel", "health")
"""The calls that RunPod's edge refuses, all of them for a while."""
CAUSES = [
    "",
    "OSError: [Errno 28] No space left on device",
    "User-specified max_model_len (9) is greater than the derived max_model_len "
    "(max_position_embeddings=8.0)",
]
"""What vLLM says when it cannot start: nothing, as it starts; a host's fault, for which the worker
ends; the configuration's, for which it stays up and ends each job."""
START_FAILED = "model_start_failed"
DIRECT = {"direct": True, "direct_private_addresses": True, "seal_secret": SECRET}
PATIENCE_SECONDS = 90.0


@dataclass
class Report:
    """What became of the requests of one storm."""

    ends: Counter[str] = field(default_factory=Counter)
    gusts: list[tuple[float, float]] = field(default_factory=list)
    """From when to when RunPod refused everything, by the monotonic clock."""
    told_of_refusals: list[tuple[float, str]] = field(default_factory=list)
    """Every answer that says RunPod refuses the key, and when it came."""
    failed_starts: int = 0
    """For how many periods no worker could start."""
    spells: Counter[str] = field(default_factory=Counter)
    """What happened to the direct road, and how often."""
    roads: Counter[str] = field(default_factory=Counter)
    """By which road answers came, and why not by the other."""
    tokens: dict[str, int] = field(default_factory=dict)
    """How many the engine has made for each answer that ended, by its request's id."""
    left: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each stream that was left: how many tokens its client has had, and how many there were."""
    wrong: list[str] = field(default_factory=list)
    """Every answer that was neither right nor an honest error. To be empty."""

    @property
    def refused_starts(self) -> int:
        """How many requests were told that the model cannot be started."""
        return sum(count for end, count in self.ends.items() if START_FAILED in end)

    def judge_refusals(self) -> None:
        """Each answer that says RunPod refuses the key is wrong, but in a gust that was long.

        Gusts are short, but on a machine that stands still for a while.
        """
        long = [(began, ended) for began, ended in self.gusts if ended - began >= GUST_SECONDS]
        for told, what in self.told_of_refusals:
            if not any(began <= told <= ended + GUST_SECONDS for began, ended in long):
                self.wrong.append(what)

    def __str__(self) -> str:
        """Some lines for people."""
        longest = max((ended - began for began, ended in self.gusts), default=0.0)
        return (
            f"{self.ends.total()} requests, {len(self.gusts)} gusts of refusals, "
            f"the longest {longest:.0f} s, "
            f"{self.failed_starts} periods without a start: {_counts(self.ends)}; "
            f"{len(self.wrong)} wrong\nby road: {_counts(self.roads)}\n"
            f"on the direct road: {_counts(self.spells)}"
        )


@dataclass
class Stack:
    """The stack in the storm: everything in processes or servers of its own."""

    proxy: Proxy
    runpod: Client
    engine_port: int
    cause: Path | None = None
    """While this file is there, no engine starts, and each says what the file holds."""
    has_direct_road: bool = False
    lost_runs: int = 0
    """How many answers of /run were lost: of their jobs the proxy cannot know."""

    def calm(self) -> None:
        """Let everything go well again."""
        for fault in self._control("GET", "/_emulator").json()["faults"]:
            if (fault["operation"], fault["drop"]) == ("run", "answer"):
                self.lost_runs += fault["hits"]
        self._control("DELETE", "/_emulator/faults")

    def stir(self) -> None:
        """Put all faults in force, and no others."""
        self.calm()
        for fault in FAULTS:
            self._control("POST", "/_emulator/faults", json=fault | {"times": 0})

    def refuse(self, status: int) -> None:
        """Have RunPod's edge refuse every call of the proxy, until it is stirred or calmed."""
        for operation in AT_THE_EDGE:
            fault = {"operation": operation, "status": status, "times": 0}
            self._control("POST", "/_emulator/faults", json=fault)

    def crash_workers(self) -> None:
        """Kill the workers with all they started."""
        self._control("POST", "/_emulator/ep/crash")

    def control_endpoint(self, method: str, path: str, body: Json | None) -> Any:
        """A call to the emulator's control API that is about the endpoint."""
        return self._control(method, f"/_emulator/ep{path}", json=body).json()

    def roads(self) -> Counter[str]:
        """How many answers came by which road, with what was in the way of the other."""
        page = self.proxy.client.get("/metrics").raise_for_status().text
        line = r'^proxy_roads_total{endpoint="[^"]*",reason="([^"]*)",road="([^"]*)"} (\d+)'
        found = re.findall(line, page, re.MULTILINE)
        return Counter({f"{road} {reason}".strip(): int(count) for reason, road, count in found})

    def spoil_starts(self, cause: str) -> None:
        """Let no engine start from now on, for that cause."""
        assert self.cause is not None
        self.cause.write_text(cause)

    def mend_starts(self) -> None:
        """Let engines start again."""
        if self.cause is not None:
            self.cause.unlink(missing_ok=True)

    def wait_until_answered(self) -> None:
        """Until a request is answered again, which is tried as a client would."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "script": {"text": "calm"},
        }
        wait_until(lambda: self._answers(body), seconds=PATIENCE_SECONDS)

    def wait_until_accounted(self, report: Report) -> None:
        """Until the ledger has a row for each request of these that was answered, or left midway.

        With the tokens of the answers that ended, and of those that were left at least as many as
        their clients have had, and no more than there can be.
        """
        tokens, left = report.tokens, report.left
        awaited = tokens.keys() | left.keys()
        wait_until(lambda: self._accounted().keys() >= awaited, seconds=PATIENCE_SECONDS)
        found = self._accounted()
        assert {request: found[request] for request in tokens} == {
            request: ("completed", number, 1) for request, number in tokens.items()
        }
        for request, (had, made) in left.items():
            outcome, counted, is_told = found[request]
            assert had <= (counted or 0) <= made, (request, found[request], had, made)
            if outcome == "completed":  # it had all been sent when its client left
                assert (counted, is_told) == (made, 1), found[request]
            else:
                assert not is_told, found[request]

    def leave_midway(self) -> None:
        """In calm weather: of a stream that is left the ledger has no more than the engine made."""
        text, had, request = "a " * 500, 0, "storm-left"
        script = {"text": text, "delay_seconds": 0.05}
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "script": script}
        with self.proxy.client.stream(
            "POST",
            "/v1/chat/completions",
            json=body | {"stream": True},
            headers={"x-request-id": request},
            timeout=PATIENCE_SECONDS,
        ) as answer:
            lines = (line for line in answer.iter_lines() if '"content":"a ' in line)
            while had < 7:
                next(lines)
                had += 1
        self.wait_until_quiet()
        wait_until(lambda: request in self._accounted(), seconds=PATIENCE_SECONDS)
        outcome, counted, is_told = self._accounted()[request]
        made = next(one["tokens"] for one in self._engine_requests() if one["id"] == request)
        assert (outcome, is_told) == ("client_left", 0)
        assert had <= (counted or 0) <= made < 500, (had, counted, made)

    def _accounted(self) -> dict[str, tuple[str, int | None, int | None]]:
        """The outcome and tokens of each request's row, and whether these were told."""
        path = self.proxy.state_dir / DATABASE_FILE
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
            rows = database.execute(
                "SELECT request_id, outcome, tokens_out, are_tokens_told FROM ledger"
            ).fetchall()
        assert len({request for request, *_ in rows}) == len(rows), "a request has two rows"
        return {request: tuple(facts) for request, *facts in rows}

    def _answers(self, body: dict[str, Any]) -> bool:
        url = "/v1/chat/completions"
        answer = self.proxy.client.post(url, json=body, timeout=PATIENCE_SECONDS)
        return answer.status_code == 200 and '"calm"' in answer.text

    def wait_until_quiet(self) -> None:
        """Until the proxy waits for nothing, no job is left, and the engine does nothing.

        When the proxy knows of no job any more, none runs but those whose ids it never learned.
        """
        wait_until(lambda: self.proxy.journal() == [], seconds=PATIENCE_SECONDS)
        left = self._jobs()
        assert left <= self.lost_runs, f"{left} jobs run, {self.lost_runs} ids were lost"
        wait_until(lambda: self._jobs() == 0, seconds=PATIENCE_SECONDS)
        wait_until(lambda: not self._engine_is_running(), seconds=PATIENCE_SECONDS)

    def _control(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        base = self.runpod.url.removesuffix("/v2/ep")
        return self.runpod.http.request(method, base + path, **kwargs).raise_for_status()

    def _jobs(self) -> int:
        jobs = self.runpod.health()["jobs"]
        return int(jobs["inQueue"]) + int(jobs["inProgress"])

    def _engine_is_running(self) -> bool:
        try:
            return int(self._engine()["running"]) > 0
        except httpx.TransportError:
            return False  # no worker, no engine

    def _engine_requests(self) -> list[dict[str, Any]]:
        """What the engine that runs now remembers of its requests."""
        found: list[dict[str, Any]] = self._engine()["requests"]
        return found

    def _engine(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.engine_port}/_engine/requests"
        found: dict[str, Any] = httpx.get(url, timeout=60).json()
        return found


@contextmanager
def stormy_stack(*, direct: bool = False) -> Iterator[Stack]:
    """A stack with quick leases, so that what gets lost is found again soon.

    With `direct` answers may come past the queue, and jobs are sealed.
    """
    settings = endpoint_settings() | {
        "ports": ["8899/tcp"] if direct else [],
        "lease_seconds": LEASE_SECONDS,
        "min_workers": 1,
        "max_backoff_seconds": 1,
        "execution_timeout_seconds": 60,
    }
    with tempfile.TemporaryDirectory() as state_dir, ExitStack() as running:
        cause = Path(state_dir, "cause")
        settings["env"] |= {"VLLM_EXTRA_ARGS": f"--die-saying {cause}"}
        settings["env"] |= {"WORKER_SEAL_SECRET": SECRET} if direct else {}
        clients = running.enter_context(emulator(ep=settings))
        runpod = clients("ep")
        proxy = Proxy(
            runpod.url.removesuffix("/v2/ep"),
            runpod_api_key=API_KEY,
            module="tests.chaos.eager_proxy" if direct else "proxy",
            drain_seconds=5,
            state_dir=state_dir,
            total_timeout_seconds=PATIENCE_SECONDS,
            ledger=True,
            failed_start_pause_seconds=2,
            **(DIRECT if direct else {}),
        )
        try:
            wait_until(lambda: runpod.workers("idle") == 1, seconds=60)
            yield Stack(proxy, runpod, int(settings["env"]["WORKER_VLLM_PORT"]), cause, direct)
        finally:
            proxy.close()


async def storm(stack: Stack, *, seed: int, requests: int, at_once: int = 24) -> Report:
    """Send requests while everything fails, then let it calm down."""
    report = Report()
    dice = random.Random(seed)
    plans = iter([dice.getrandbits(32) for _ in range(requests)])
    weather = RoadWeather(stack.control_endpoint, dice.random())
    async with openai.AsyncOpenAI(
        base_url=f"{stack.proxy.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_SECONDS + 30
    ) as client:
        stack.stir()
        try:
            async with asyncio.TaskGroup() as group:
                clients = [
                    group.create_task(_client(client, plans, report)) for _ in range(at_once)
                ]
                group.create_task(_killer(stack, dice.random(), clients, report))
                group.create_task(_gusts(stack, dice.random(), clients, report))
                if stack.has_direct_road:
                    group.create_task(weather.rage(clients))
        finally:
            weather.calm()
            stack.mend_starts()
            stack.calm()
    report.judge_refusals()
    report.spells = weather.spells
    report.roads = stack.roads()
    return report


async def _killer(
    stack: Stack, luck: float, clients: list[asyncio.Task[None]], report: Report
) -> None:
    """Kill the workers every now and then, as long as there are clients.

    Those that follow start, or fail to. Not before twice as many requests have ended as a kill can
    end, or on a slow machine hardly any would end otherwise.
    """
    dice = random.Random(luck)
    causes = itertools.cycle(dice.sample(CAUSES, len(CAUSES)))
    while not _are_done(clients):
        ended = report.ends.total()
        await asyncio.wait(clients, timeout=dice.uniform(8, 20))
        while report.ends.total() < ended + 2 * len(clients) and not _are_done(clients):
            await asyncio.wait(clients, timeout=0.1)
        if _are_done(clients):
            return
        if cause := next(causes):
            await _fail_starts(stack, cause, dice, clients, report)
        await asyncio.to_thread(stack.crash_workers)


async def _fail_starts(
    stack: Stack,
    cause: str,
    dice: random.Random,
    clients: list[asyncio.Task[None]],
    report: Report,
) -> None:
    """Kill the workers, and let those that follow fail to start until a few clients were told."""
    report.failed_starts += 1
    stack.spoil_starts(cause)
    await asyncio.to_thread(stack.crash_workers)
    enough = report.refused_starts + dice.randint(1, len(clients))
    while report.refused_starts < enough and not _are_done(clients):
        await asyncio.wait(clients, timeout=0.1)
    stack.mend_starts()


async def _gusts(
    stack: Stack, luck: float, clients: list[asyncio.Task[None]], report: Report
) -> None:
    """Have RunPod refuse everything for a few seconds every now and then.

    It has just taken jobs with the proxy's key, so that no request is to be told of it.
    """
    dice = random.Random(luck)
    while not _are_done(clients):
        whole, failed_starts = report.ends["whole"], report.refused_starts
        await asyncio.wait(clients, timeout=dice.uniform(4, 10))
        if _are_done(clients) or report.ends["whole"] == whole:
            continue
        if report.refused_starts > failed_starts:  # few submissions, if any
            continue
        began = time.monotonic()
        await asyncio.to_thread(stack.refuse, dice.choice([401, 403, 404]))
        await asyncio.wait(clients, timeout=dice.uniform(1, 3))
        await asyncio.to_thread(stack.stir)
        report.gusts.append((began, time.monotonic()))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "nothing"


def _are_done(clients: list[asyncio.Task[None]]) -> bool:
    return all(client.done() for client in clients)


async def _client(client: openai.AsyncOpenAI, plans: Iterator[int], report: Report) -> None:
    for seed in plans:
        dice = random.Random(seed)
        text = " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 120)))
        got: list[str] = []
        try:
            end = await _ask(client, text, got, dice, f"storm-{seed}")
        except openai.APIStatusError as exc:
            end = f"HTTP {exc.status_code} {exc.code}"
            code = exc.body.get("code") if isinstance(exc.body, dict) else None
            if code == "upstream_misconfigured":
                report.told_of_refusals.append((time.monotonic(), f"{seed}: {exc.body}"))
            elif not code:
                report.wrong.append(f"{seed}: an error that is not honest: {exc.body}")
        except openai.APIError as exc:
            end = f"error event {exc.code}"
            if exc.code == "upstream_misconfigured":
                report.told_of_refusals.append((time.monotonic(), f"{seed}: {exc}"))
            if isinstance(exc, openai.APIConnectionError):
                report.wrong.append(f"{seed}: the connection broke: {exc!r}")
        report.ends[end] += 1
        made = len(re.findall(r"\S+\s*|\s+", text))
        if end == "whole":
            report.tokens[f"storm-{seed}"] = made
        elif end == "left" and got:
            report.left[f"storm-{seed}"] = sum(map(bool, got)), made
        if end.endswith("internal_error"):
            report.wrong.append(f"{seed}: a fault of the proxy's own, which its log tells")
        if START_FAILED in end:  # as Retry-After asks, or all requests would be spent on it
            await asyncio.sleep(dice.uniform(1, 3))
        if not text.startswith("".join(got)) or (end == "whole" and "".join(got) != text):
            report.wrong.append(f"{seed}: {end}: wanted {text!r}, got {''.join(got)!r}")


async def _ask(
    client: openai.AsyncOpenAI, text: str, got: list[str], dice: random.Random, request_id: str
) -> str:
    """One request; what came is appended to `got`. Returns how it ended."""
    leaves = dice.random() < 0.2
    # What is left would go on for long, so that it shows if it is not cancelled.
    delays = [0.02, 0.5] if leaves else [0, 0.005, 0.02]
    script = {"text": text, "delay_seconds": dice.choice(delays)}
    if dice.random() < 0.2:
        script["chunk_bytes"] = dice.randint(1, 50)
    fields: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "extra_body": {"script": script},
        "extra_headers": {"x-request-id": request_id},
    }
    if dice.random() < 0.3:
        try:
            async with asyncio.timeout(dice.uniform(0.01, 3) if leaves else None):
                answer = await client.chat.completions.create(**fields)
        except TimeoutError:
            return "left"
        got.append(answer.choices[0].message.content or "")
        return "whole"
    leaves_after = dice.randint(0, 10) if leaves else None
    async with _streamed(client, fields) as chunks:
        finish_reason = None
        count = 0
        async for chunk in chunks:
            if count == leaves_after:
                return "left"
            got.append(chunk.choices[0].delta.content or "")
            finish_reason = chunk.choices[0].finish_reason
            count += 1
    return "whole" if finish_reason == "stop" else "broken off"


@asynccontextmanager
async def _streamed(client: openai.AsyncOpenAI, fields: dict[str, Any]) -> AsyncIterator[Any]:
    stream = await client.chat.completions.create(**fields, stream=True)
    try:
        yield stream
    finally:
        await stream.close()


def main() -> int:
    """Run a long storm; 0 if every answer was right or an honest error and nothing is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--queue", action="store_true", help="without the direct road")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with stormy_stack(direct=not arguments.queue) as stack:
        process = psutil.Process(stack.proxy.process.pid)
        before = process.memory_info().rss
        report = asyncio.run(
            storm(
                stack,
                seed=arguments.seed,
                requests=arguments.requests,
                at_once=arguments.at_once,
            )
        )
        print(report, *report.wrong, sep="\n", flush=True)
        stack.wait_until_answered()
        stack.wait_until_quiet()
        stack.wait_until_accounted(report)
        stack.leave_midway()
        print(f"{len(report.left)} streams were left midway", flush=True)
        grown = (process.memory_info().rss - before) / 2**20
    print(f"nothing is left running; the proxy grew by {grown:.1f} MiB")
    return 1 if report.wrong or report.ends["broken off"] else 0


if __name__ == "__main__":
    sys.exit(main())
