"""Balancer: the workers of a load-balancing endpoint, and which of them takes a request.

No client's HTTP here; that is `emulator/faces/load_balancing.py`. A worker is an HTTP server that
was told its ports. The balancer looks at its health again and again and gives requests to healthy
ones only. There is no queue: a request waits for a worker, and is refused when none comes in time.
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

from emulator.clock import Clock, LoopClock
from emulator.errors import NoWorker, WorkerGone
from emulator.notifier import Notifier
from emulator.settings import EndpointSettings
from emulator.work.affinity import Affinity
from emulator.work.workers import Worker

BY_HAND: Final = "by-hand"
"""The id of the worker that the emulator has not started."""
MAX_STOPPED_WORKERS: Final = 1000
"""Whose ids are remembered, so that a request can have them started again."""
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


HEALTH_BY_STATUS: Final = {200: Health.HEALTHY, 204: Health.INITIALIZING}


@dataclass(eq=False, slots=True)
class WorkerAddress:
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
class Lease:
    """What a request holds of a worker while it is relayed: the worker, its port, and a number."""

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
    running: dict[str, Lease] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    """How requests ended: `completed`, `failed`, or `left` when it was the client that did."""
    arrivals: Notifier = field(default_factory=Notifier)
    """Notified when there may be a worker for a waiting request."""
    activity: Notifier = field(default_factory=Notifier)
    """Notified when the need for workers may have changed."""

    def __post_init__(self) -> None:
        self._addresses: dict[str, WorkerAddress] = {}
        self._stopped: dict[str, None] = {}
        """Workers that were scaled down and may be resumed, the oldest first."""
        self._resumed: set[str] = set()
        """Those of them that are being started again and have no address yet."""
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
        self.arrivals.notify()
        watches = [
            address.watch for address in self._addresses.values() if address.watch is not None
        ]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self.http.aclose()

    # What requests do

    async def acquire(self, affinity: Affinity) -> Lease:
        """Wait for a worker that may be given the request.

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
            return self._lease(worker)

    def release(self, lease: Lease, outcome: str) -> None:
        """The request has ended; `outcome` is a key of `ended`."""
        del self.running[lease.number]
        lease.worker.release(lease.number, self.clock.now())
        lease.worker.jobs_done += 1
        self.ended[outcome] += 1
        self.arrivals.notify()
        self.activity.notify()

    def reset(self) -> None:
        """Forget every count; requests under way go on."""
        self.ended.clear()

    def count_new(self, health: Health) -> int:
        """How many started workers, of those that have never been healthy, are in this health."""
        new = [
            address for address in self._addresses.values() if address.worker_id not in self.workers
        ]
        return sum(address.health is health for address in new)

    def count_ready(self) -> int:
        """How many workers may be given requests."""
        return sum(address.health is Health.HEALTHY for address in self._addresses.values())

    def ports(self) -> dict[str, int]:
        """Where each worker listens."""
        return {address.worker_id: address.port for address in self._addresses.values()}

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
        there = sum(not address.is_draining for address in self._addresses.values())
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
        address = self._addresses[worker_id] = WorkerAddress(
            worker_id, int(port), url, self.clock.now()
        )
        address.watch = asyncio.create_task(self._watch(address))
        return {"PORT": port, "PORT_HEALTH": health_port, "HEALTH_CHECK_PATH": path}

    def reason_to_replace(self, worker_id: str) -> str | None:
        """A worker that stays unhealthy makes room for another."""
        address = self._addresses.get(worker_id)
        seconds = self.settings.balancing.unhealthy_seconds
        if address is None or self.clock.now() - address.well_at < seconds:
            return None
        return f"it was not healthy for {seconds:g} s"

    def drain(self, worker_id: str) -> None:
        """Give the worker no more requests; it may be resumed later."""
        if worker_id in self._addresses:
            self._addresses[worker_id].is_draining = True
            self._stopped[worker_id] = None
            while len(self._stopped) > MAX_STOPPED_WORKERS:
                del self._stopped[next(iter(self._stopped))]
        self.arrivals.notify()

    def lose_worker(self, worker_id: str) -> None:
        """The worker is gone. Its requests see that by their own connections."""
        self._resumed.discard(worker_id)
        self.workers.pop(worker_id, None)
        address = self._addresses.pop(worker_id, None)
        if address is not None and address.watch is not None:
            address.watch.cancel()
        self.arrivals.notify()

    # Who takes a request

    def _is_decided(self, affinity: Affinity) -> bool:
        return self._is_closed or self._choose(affinity) is not None or self._is_gone(affinity)

    def _is_gone(self, affinity: Affinity) -> bool:
        """True when the one worker that the request insists on cannot come any more."""
        if not affinity.is_strict or affinity.worker_id in self._addresses:
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
        is_leaving = self._addresses[worker.id].is_draining
        return not (is_leaving or worker.is_unhealthy or is_full)

    def _lease(self, worker: Worker) -> Lease:
        lease = Lease(worker, self._addresses[worker.id].port, next(self._numbers))
        worker.held[lease.number] = self.clock.now()
        self.running[lease.number] = lease
        return lease

    @contextmanager
    def _waits(self, affinity: Affinity) -> Iterator[None]:
        number = next(self._numbers)
        self.waiting[number] = Waiting(affinity, self.clock.now())
        self.activity.notify()
        try:
            yield
        finally:
            del self.waiting[number]
            self.activity.notify()

    def _no_worker(self, affinity: Affinity) -> NoWorker:
        if affinity.is_strict:
            return NoWorker("worker_timeout")
        return NoWorker(
            "timed out waiting for worker" if self._addresses else "no workers available"
        )

    def _to_resume(self) -> list[str]:
        """The stopped workers that waiting requests want back."""
        wanted = {one.affinity.worker_id for one in self.waiting.values() if one.affinity.resumes}
        gone = [worker_id for worker_id in self._stopped if worker_id not in self._addresses]
        return [worker_id for worker_id in gone if worker_id in wanted]

    # How workers are

    async def _watch(self, address: WorkerAddress) -> None:
        while True:
            self._note(address, await self._ask(address))
            await asyncio.sleep(self.settings.balancing.ping_interval_seconds)

    async def _ask(self, address: WorkerAddress) -> Health:
        try:
            # The status says all: what follows it may never end.
            request = self.http.stream("GET", address.health_url, timeout=PING_TIMEOUT_SECONDS)
            async with request as answer:
                return HEALTH_BY_STATUS.get(answer.status_code, Health.UNHEALTHY)
        except httpx.HTTPError:
            return Health.SILENT if address.health is Health.SILENT else Health.UNHEALTHY

    def _note(self, address: WorkerAddress, health: Health) -> None:
        address.health = health
        now = self.clock.now()
        if health in (Health.HEALTHY, Health.INITIALIZING):
            address.well_at = now
        worker = self.workers.get(address.worker_id)
        if worker is None and health is Health.HEALTHY:
            worker = self.workers[address.worker_id] = Worker(address.worker_id, now, now)
        if worker is not None:
            worker.seen_at = now
            worker.is_unhealthy = health is not Health.HEALTHY
        self.arrivals.notify()
        self.activity.notify()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
