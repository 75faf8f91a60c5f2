"""Balancer: the workers of a load-balancing endpoint, and which of them takes a request.

No client's HTTP here; that is `relay.py`. A worker is an HTTP server that was told its ports. The
balancer looks at its health again and again and gives requests to healthy ones only. There is no
queue: a request waits for a worker, and is refused when none comes in time.
"""

import asyncio
import itertools
import secrets
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from emulator.bell import Bell
from emulator.clock import Clock, LoopClock
from emulator.errors import NoWorker, WorkerGone
from emulator.settings import EndpointSettings
from emulator.work.affinity import Affinity
from emulator.work.workers import Worker

BY_HAND: Final = "by-hand"
"""The id of the worker that the emulator has not started."""
REMEMBERED_WORKERS: Final = 1000
PING_TIMEOUT_SECONDS: Final = 5.0
FRESH_CONNECTIONS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""A worker may close an idle connection at the moment a request is sent on it."""


class Health(StrEnum):
    """What a worker last said of itself at its health port."""

    SILENT = "silent"
    """Nothing was said yet: it does not listen, or not there."""
    INITIALIZING = "initializing"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


SAID: Final = {200: Health.HEALTHY, 204: Health.INITIALIZING}


@dataclass(eq=False, slots=True)
class Door:
    """Where one worker listens, and how it is doing."""

    worker_id: str
    port: int
    health_url: str
    well_at: float
    """When it was last healthy or initializing; at first, when it was started."""
    health: Health = Health.SILENT
    is_draining: bool = False
    watch: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits for a worker."""

    affinity: Affinity
    since: float


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place that a request has: where it is, and under which number."""

    worker: Worker
    port: int
    number: str


@dataclass(eq=False)
class Balancer:
    """The requests and the workers of one load-balancing endpoint."""

    settings: EndpointSettings
    clock: Clock = field(default_factory=LoopClock)
    workers: dict[str, Worker] = field(default_factory=dict)
    """Those that have been healthy, by id."""
    running: dict[str, Place] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    """How requests ended: `completed`, `failed`, or `left` when it was the client that did."""
    arrivals: Bell = field(default_factory=Bell)
    """Rings when there may be a worker for a waiting request."""
    activity: Bell = field(default_factory=Bell)
    """Rings when the need for workers may have changed."""

    def __post_init__(self) -> None:
        self._doors: dict[str, Door] = {}
        self._stopped: dict[str, None] = {}
        """Workers that were scaled down and may be resumed, the oldest first."""
        self._resumed: set[str] = set()
        """Those of them that are being started again and have no door yet."""
        self._is_closed = False
        self._numbers = map(str, itertools.count(1))
        self.http = httpx.AsyncClient(
            trust_env=False,
            timeout=None,  # noqa: S113  # a worker may take its time, up to limits of our own
            limits=FRESH_CONNECTIONS,
            # What a worker sets is for its client, and would else come with our own calls.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
        """The client that reaches workers."""

    def start(self) -> None:
        """Begin to look at a worker that was started by hand, if there is to be one."""
        if not self.settings.worker and "PORT" in self.settings.env:
            self.prepare(BY_HAND)

    async def close(self) -> None:
        """Refuse the requests that wait, and look at no worker any more."""
        self._is_closed = True
        self.arrivals.ring()
        watches = [door.watch for door in self._doors.values() if door.watch is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self.http.aclose()

    # What requests do

    async def find_place(self, affinity: Affinity) -> Place:
        """Wait for a worker and take a place on it.

        Raises:
            NoWorker: none was there in time.
            WorkerGone: the request insists on a worker that is not there.
        """
        limits = self.settings.balancing
        seconds = limits.pinned_wait_seconds if affinity.is_strict else limits.worker_wait_seconds
        with self._waits(affinity):
            if not await self.arrivals.wait_for(lambda: self._is_decided(affinity), seconds):
                raise self._no_worker(affinity)
            worker = self._choose(affinity)
            if self._is_closed:
                raise NoWorker("no workers available")
            if worker is None:
                raise WorkerGone("affinity_worker_gone")
            return self._occupy(worker)

    def leave(self, place: Place, outcome: str) -> None:
        """Give a place back; `outcome` is a key of `ended`."""
        del self.running[place.number]
        place.worker.let_go(place.number, self.clock.now())
        place.worker.jobs_done += 1
        self.ended[outcome] += 1
        self.arrivals.ring()
        self.activity.ring()

    def reset(self) -> None:
        """Forget every count; requests under way go on."""
        self.ended.clear()

    def count_new(self, health: Health) -> int:
        """How many started workers, of those that have never been healthy, are in this health."""
        new = [door for door in self._doors.values() if door.worker_id not in self.workers]
        return sum(door.health is health for door in new)

    def count_ready(self) -> int:
        """How many workers may be given requests."""
        return sum(door.health is Health.HEALTHY for door in self._doors.values())

    def ports(self) -> dict[str, int]:
        """Where each worker listens."""
        return {door.worker_id: door.port for door in self._doors.values()}

    # What the scaler asks

    def urgent(self, enough: int) -> int:
        """How many requests wait."""
        return min(len(self.waiting), enough)

    def longest_wait(self) -> float | None:
        """For how long the first request has waited."""
        first = next(iter(self.waiting.values()), None)
        return None if first is None else self.clock.now() - first.since

    def least_workers(self) -> int:
        """One more than there are for each stopped worker that a request insists on."""
        there = sum(not door.is_draining for door in self._doors.values())
        resumed = len(self._to_resume())
        return there + resumed if resumed else 0

    def name_worker(self) -> str:
        """The id of a stopped worker that a request wants back, or a new one."""
        wanted = self._to_resume()
        if not wanted:
            return secrets.token_hex(7)
        del self._stopped[wanted[0]]
        self._resumed.add(wanted[0])
        return wanted[0]

    def prepare(self, worker_id: str) -> dict[str, str]:
        """Choose the worker's ports and begin to look for it there.

        An endpoint whose `env` names a port means that one, as on RunPod.
        """
        env, balancing = self.settings.env, self.settings.balancing
        port = env.get("PORT") or str(_free_port())
        own_health_port = str(_free_port()) if balancing.separate_health_port else port
        health_port = env.get("PORT_HEALTH") or own_health_port
        path = "/" + env.get("HEALTH_CHECK_PATH", "ping").lstrip("/")
        url = f"http://127.0.0.1:{health_port}{path}"
        self._resumed.discard(worker_id)
        door = self._doors[worker_id] = Door(worker_id, int(port), url, self.clock.now())
        door.watch = asyncio.create_task(self._watch(door))
        return {"PORT": port, "PORT_HEALTH": health_port, "HEALTH_CHECK_PATH": path}

    def reason_to_replace(self, worker_id: str) -> str | None:
        """A worker that stays unhealthy makes room for another."""
        door = self._doors.get(worker_id)
        seconds = self.settings.balancing.unhealthy_seconds
        if door is None or self.clock.now() - door.well_at < seconds:
            return None
        return f"it was not healthy for {seconds:g} s"

    def drain(self, worker_id: str) -> None:
        """Give the worker no more requests; it may be resumed later."""
        if worker_id in self._doors:
            self._doors[worker_id].is_draining = True
            self._stopped[worker_id] = None
            while len(self._stopped) > REMEMBERED_WORKERS:
                del self._stopped[next(iter(self._stopped))]
        self.arrivals.ring()

    def lose_worker(self, worker_id: str) -> None:
        """The worker is gone. Its requests see that by their own connections."""
        self._resumed.discard(worker_id)
        self.workers.pop(worker_id, None)
        door = self._doors.pop(worker_id, None)
        if door is not None and door.watch is not None:
            door.watch.cancel()
        self.arrivals.ring()

    # Who takes a request

    def _is_decided(self, affinity: Affinity) -> bool:
        return self._is_closed or self._choose(affinity) is not None or self._is_gone(affinity)

    def _is_gone(self, affinity: Affinity) -> bool:
        """Can the one worker the request insists on not come any more?"""
        if not affinity.is_strict or affinity.worker_id in self._doors:
            return False
        can_return = affinity.worker_id in self._stopped or affinity.worker_id in self._resumed
        return not (affinity.resumes and can_return)

    def _choose(self, affinity: Affinity) -> Worker | None:
        """The worker that takes a request now, if there is one."""
        free = {worker.id: worker for worker in self.workers.values() if self._is_free(worker)}
        if affinity.worker_id in free:
            return free[affinity.worker_id]
        if affinity.is_strict or not free:
            return None
        return min(free.values(), key=lambda worker: len(worker.held))

    def _is_free(self, worker: Worker) -> bool:
        most = self.settings.balancing.worker_concurrency
        is_full = bool(most) and len(worker.held) >= most
        is_leaving = self._doors[worker.id].is_draining
        return not (is_leaving or worker.is_unhealthy or is_full)

    def _occupy(self, worker: Worker) -> Place:
        place = Place(worker, self._doors[worker.id].port, next(self._numbers))
        worker.held[place.number] = self.clock.now()
        self.running[place.number] = place
        return place

    @contextmanager
    def _waits(self, affinity: Affinity) -> Iterator[None]:
        number = next(self._numbers)
        self.waiting[number] = Waiting(affinity, self.clock.now())
        self.activity.ring()
        try:
            yield
        finally:
            del self.waiting[number]
            self.activity.ring()

    def _no_worker(self, affinity: Affinity) -> NoWorker:
        if affinity.is_strict:
            return NoWorker("worker_timeout")
        return NoWorker("timed out waiting for worker" if self._doors else "no workers available")

    def _to_resume(self) -> list[str]:
        """The stopped workers that waiting requests want back."""
        wanted = {one.affinity.worker_id for one in self.waiting.values() if one.affinity.resumes}
        gone = [worker_id for worker_id in self._stopped if worker_id not in self._doors]
        return [worker_id for worker_id in gone if worker_id in wanted]

    # How workers are

    async def _watch(self, door: Door) -> None:
        while True:
            self._note(door, await self._ask(door))
            await asyncio.sleep(self.settings.balancing.ping_interval_seconds)

    async def _ask(self, door: Door) -> Health:
        try:
            # The status says all: what follows it may never end.
            request = self.http.stream("GET", door.health_url, timeout=PING_TIMEOUT_SECONDS)
            async with request as answer:
                return SAID.get(answer.status_code, Health.UNHEALTHY)
        except httpx.HTTPError:
            return Health.SILENT if door.health is Health.SILENT else Health.UNHEALTHY

    def _note(self, door: Door, health: Health) -> None:
        door.health = health
        now = self.clock.now()
        if health in (Health.HEALTHY, Health.INITIALIZING):
            door.well_at = now
        worker = self.workers.get(door.worker_id)
        if worker is None and health is Health.HEALTHY:
            worker = self.workers[door.worker_id] = Worker(door.worker_id, now, now)
        if worker is not None:
            worker.seen_at = now
            worker.is_unhealthy = health is not Health.HEALTHY
        self.arrivals.ring()
        self.activity.ring()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
