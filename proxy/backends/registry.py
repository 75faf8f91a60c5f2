"""Makes the backends that a configuration names, and keeps them over a change of it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import httpx

from proxy.access.worker_costs import WorkerCosts
from proxy.api.call import OnSpent, Work
from proxy.backends.admission import Admission
from proxy.backends.backend import Backend
from proxy.backends.ceiling import Ceiling
from proxy.backends.connections import Client
from proxy.backends.deadlines import Shutdown
from proxy.backends.fair_turns import FairTurns
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.relay import Relay
from proxy.backends.runpod.cancellation import Canceller
from proxy.backends.runpod.direct.channel import Connection
from proxy.backends.runpod.direct.road import DirectRoad, Invitation
from proxy.backends.runpod.endpoint import CallLimits, Endpoint
from proxy.backends.runpod.jobs import Jobs
from proxy.backends.runpod.journal import Journal
from proxy.backends.runpod.pacing import Shares
from proxy.backends.runpod.queue import QueueBackend
from proxy.backends.standing import Standing
from proxy.backends.start_clock import StartClock, StartTimes
from proxy.backends.start_progress import StartProgress
from proxy.backends.starts import Starts
from proxy.config.settings import Settings
from proxy.config.tables import EndpointConfig, FallbackURL, secret
from proxy.memory import Memory
from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.backends.runpod.sealing import Seal
    from proxy.backends.shared_turns import SharedTurns

log = logging.getLogger(__name__)


class BackendRegistry:
    """Makes backends, and keeps those whose tables a new configuration leaves as they were.

    A backend that is left out is given no new calls; the ones it has go on to their end.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        canceller: Canceller,
        journal: Journal,
        metrics: Metrics,
        memory: Memory,
        start_times: StartTimes,
        costs: WorkerCosts,
        shares: Shares,
        shared_turns: "SharedTurns | None" = None,
    ) -> None:
        self._shares = shares
        self._shared_turns = shared_turns
        self._costs = costs
        self._ceilings: dict[str, Ceiling] = {}
        """By the endpoints' names: what is spent does not change with a table."""
        self._start_times = start_times
        self._settings = settings
        self._memory = memory
        self._client = client
        self._canceller = canceller
        self._journal = journal
        self._metrics = metrics
        self._shutdown = Shutdown()
        self._endpoints: dict[tuple[str, EndpointConfig], Backend] = {}
        self._servers: dict[FallbackURL, Backend] = {}
        self._queues: dict[str, Endpoint] = {}
        """RunPod's API of each queue endpoint, by its URL."""
        self._direct: DirectRoad | None = None
        """Made with the first endpoint that allows it, and kept over a reload."""

    def endpoint(self, name: str, config: EndpointConfig) -> Backend:
        """The backend of an endpoint of RunPod's."""
        if (name, config) not in self._endpoints:
            makers = {"queue": self._queue, "load-balancing": self._load_balancer}
            self._endpoints[name, config] = makers[config.kind](name, config)
        backend = self._endpoints[name, config]
        if backend.monitor is not None:
            look_again = backend.monitor.request_updates
            self._ceiling(name).set(config, look_again, lambda: backend.in_flight().running > 0)
        return backend

    def lift_budgets(self, *, besides: Container[str]) -> None:
        """Endpoints that are not among these are named no more, and have no budget."""
        for name, ceiling in self._ceilings.items():
            if name not in besides:
                ceiling.lift()

    def spent_today(self, name: str) -> tuple[float, float] | None:
        """What an endpoint has spent of its daily budget, and that; None where it has none."""
        ceiling = self._ceilings.get(name)
        if ceiling is None or ceiling.budget is None:
            return None
        return ceiling.dollars_today, ceiling.budget

    def paused(self) -> int:
        """How many endpoints have spent their daily budgets."""
        return sum(ceiling.is_reached for ceiling in self._ceilings.values())

    def server(self, config: FallbackURL) -> Backend:
        """The backend of another server that speaks OpenAI's API."""
        if config not in self._servers:
            host = httpx.URL(config.url).host
            self._servers[config] = Relay(
                self._client,
                config.url,
                self._api_key(config.api_key_env),
                admission=Admission(self._settings.max_requests, self._settings.max_waiting),
                shutdown=self._shutdown,
                memory=self._memory,
                standing=Standing(f"fallback {host}", config.api_key_env),
                name=host,
                on_work=lambda work, on_spent: on_spent(replace(work, seconds=0.0)),
            )
        return self._servers[config]

    def cancel_orphans(self) -> None:
        """Cancel what a proxy that was killed left running at our endpoints."""
        for orphan in self._journal.orphans():
            if (endpoint := self._queues.get(orphan.endpoint)) is None:
                log.warning("job %s was left at %s, unknown now", orphan.job_id, orphan.endpoint)
                self._journal.remove(orphan.job_id)
            else:
                log.warning("cancelling job %s of a proxy that was killed", orphan.job_id)
                self._canceller.cancel(endpoint, orphan.job_id, is_running=True)

    def redeem(self, token: str) -> str | None:
        """The endpoint whose worker may open a channel to this proxy by this token, once."""
        return None if self._direct is None else self._direct.redeem(token)

    async def serve_channel(self, connection: Connection, endpoint: str) -> None:
        """Serve a channel that a worker of this endpoint has opened, until it ends."""
        assert self._direct is not None, "it has redeemed the token"
        await self._direct.serve(connection, endpoint)

    def endpoints(self) -> Iterator[tuple[str, Backend]]:
        """Every endpoint's backends by its name, those of its former tables first."""
        for (name, _), backend in self._endpoints.items():
            yield name, backend

    def note_in_flight(self) -> None:
        """Write down how many calls are under way, at an endpoint's former tables as well.

        And what endpoints with a daily budget have spent of it.
        """
        waiting, running, in_line = Counter[str](), Counter[str](), Counter[str]()
        for name, backend in self.endpoints():
            in_flight = backend.in_flight()
            waiting[name] += in_flight.waiting
            running[name] += in_flight.running
            in_line[name] += in_flight.in_line
        for name in waiting:
            self._metrics.note_jobs(name, waiting=waiting[name], running=running[name])
            self._metrics.note_in_line(name, in_line[name])
        for name, ceiling in self._ceilings.items():
            if ceiling.budget is not None:
                self._metrics.note_budget(name, ceiling.budget, ceiling.dollars_today)

    def drain(self, seconds: float) -> None:
        """Let all calls go on for this long; those that have not ended then raise Stopping."""
        self._shutdown.begin(seconds)

    async def close(self, seconds: float) -> None:
        """Look after no backend any more; what is still being submitted is awaited this long."""
        backends = [*self._endpoints.values(), *self._servers.values()]
        await asyncio.gather(*(backend.close(seconds) for backend in backends))
        if self._direct is not None:
            await self._direct.close()

    def _queue(self, name: str, config: EndpointConfig) -> Backend:
        endpoint = self._runpod_api(name, config)
        self._queues[endpoint.url] = endpoint
        turns = self._turns(name, config)
        jobs = Jobs(
            endpoint,
            admission=self._admission(config),
            shutdown=self._shutdown,
            monitor=self._monitor(name, config, endpoint, turns),
            canceller=self._canceller,
            journal=self._journal,
            metrics=self._metrics,
            price_per_second=config.price_per_second,
            invite=self._invite(name, config),
            seal=self._seal(config),
            turns=turns,
        )
        return QueueBackend(jobs, self._metrics, self._memory)

    def _invite(self, name: str, config: EndpointConfig) -> Callable[[], Invitation] | None:
        """What makes invitations to a channel, where the endpoint's workers may have one."""
        settings = self._settings
        if (port := config.port_for_channels(settings)) is None:
            return None
        if self._direct is None:
            self._direct = DirectRoad(
                self._memory,
                self._metrics,
                door=settings.channel_url,
                may_be_private=settings.direct_private_addresses,
            )
        return partial(self._direct.invite, name, port)

    def _seal(self, config: EndpointConfig) -> "Callable[[], Seal] | None":
        """What makes a seal for each job, where the endpoint's jobs are to be sealed."""
        if (shared := config.seal_secret(self._settings)) is None:
            return None
        from proxy.backends.runpod.sealing import Seal

        return partial(Seal, shared.get_secret_value().encode())

    def _load_balancer(self, name: str, config: EndpointConfig) -> Backend:
        def note_work(work: Work, on_spent: OnSpent) -> None:
            self._metrics.note_worker_seconds(name, work.seconds, config.price_per_second)
            self._ceiling(name).note_job(work.seconds)
            on_spent(replace(work, price_per_second=config.price_per_second))

        turns = self._turns(name, config)
        return Relay(
            self._client,
            config.worker_url(name),
            self._api_key(config.api_key_env),
            admission=self._admission(config),
            shutdown=self._shutdown,
            memory=self._memory,
            standing=Standing(f"endpoint {name}", config.api_key_env),
            monitor=self._monitor(name, config, self._runpod_api(name, config), turns),
            name=name,
            on_work=note_work,
            turns=turns,
        )

    def _runpod_api(self, name: str, config: EndpointConfig) -> Endpoint:
        settings = self._settings
        return Endpoint(
            self._client,
            config.runpod_url(name, settings.runpod_endpoint_base_url),
            name=name,
            api_key=self._api_key(config.api_key_env),
            limits=CallLimits(
                run=config.run_limit or settings.run_limit,
                stream=config.stream_limit or settings.stream_limit,
                status=config.status_limit or settings.status_limit,
                cancel=config.cancel_limit or settings.cancel_limit,
            ),
            metrics=self._metrics,
            memory=self._memory,
            key_variable=config.api_key_env,
            shares=self._shares,
        )

    def _ceiling(self, name: str) -> Ceiling:
        if name not in self._ceilings:
            self._ceilings[name] = Ceiling(name, self._costs)
        return self._ceilings[name]

    def _turns(self, name: str, config: EndpointConfig) -> FairTurns:
        settings = self._settings
        concurrency = config.worker_concurrency or settings.worker_concurrency
        turns = FairTurns(concurrency, copies=settings.copies)
        if self._shared_turns is not None:
            url = config.runpod_url(name, settings.runpod_endpoint_base_url)
            self._shared_turns.hold(turns, url)
        return turns

    def _monitor(
        self, name: str, config: EndpointConfig, endpoint: Endpoint, turns: FairTurns
    ) -> HealthMonitor:
        pause_seconds = config.failed_start_pause_seconds
        if pause_seconds is None:
            pause_seconds = self._settings.failed_start_pause_seconds
        return HealthMonitor(
            name,
            endpoint.health,
            Starts(name, pause_seconds=pause_seconds),
            StartClock(name, endpoint.url, self._start_times),
            self._start_progress(name, config),
            turns,
            self._ceiling(name),
        )

    def _start_progress(self, name: str, config: EndpointConfig) -> StartProgress | None:
        settings = self._settings
        key = secret(config.rest_api_key_env) if config.rest_api_key_env else settings.rest_api_key
        if key is None:
            return None
        url = f"{settings.rest_base_url}/v2/serverless/{config.id or name}"
        return StartProgress(self._client, url, key.get_secret_value(), name=name)

    def _admission(self, config: EndpointConfig) -> Admission:
        return Admission(
            config.max_requests or self._settings.max_requests,
            config.max_waiting or self._settings.max_waiting,
        )

    def _api_key(self, variable: str) -> str:
        if variable == "RUNPOD_API_KEY" and self._settings.runpod_api_key is not None:
            return self._settings.runpod_api_key.get_secret_value()
        return secret(variable).get_secret_value() if variable else ""
