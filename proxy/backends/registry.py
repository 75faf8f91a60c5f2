"""From the configuration to what serves it: endpoints, relays, and the table of models."""

import asyncio
import logging
from collections import Counter
from dataclasses import replace

import httpx

from proxy.backends.admission import Admission
from proxy.backends.deadlines import Shutdown, Terms
from proxy.backends.health_monitor import Watch
from proxy.backends.relay import Relay
from proxy.backends.runpod.cancellation import Canceller
from proxy.backends.runpod.endpoint import Endpoint, Limits
from proxy.backends.runpod.jobs import Jobs
from proxy.backends.runpod.journal import Journal
from proxy.backends.runpod.queue import Backend, QueueBackend
from proxy.backends.standing import Standing
from proxy.backends.start_clock import StartClock, StartTimes
from proxy.backends.start_progress import StartProgress
from proxy.backends.starts import Starts
from proxy.config.settings import Settings
from proxy.config.tables import Config, EndpointConfig, FallbackURL, ModelConfig, secret
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.serving.models import Model, Models

log = logging.getLogger(__name__)


class Backends:
    """Makes backends, and keeps those whose tables a new configuration leaves as they were.

    A backend that is left out is given no new calls; the ones it has go on to their end.
    """

    def __init__(
        self,
        settings: Settings,
        client: httpx.AsyncClient,
        canceller: Canceller,
        journal: Journal,
        metrics: Metrics,
        memory: Memory,
        start_times: StartTimes,
    ) -> None:
        self._start_times = start_times
        self._settings = settings
        self._memory = memory
        self._client = client
        self._canceller = canceller
        self._journal = journal
        self._metrics = metrics
        self._shutdown = Shutdown()
        self._made: dict[tuple[str, EndpointConfig | FallbackURL], QueueBackend | Relay] = {}

    def build(self, config: Config) -> Models:
        """The table of models that this configuration describes."""
        endpoints = {name: self._endpoint(name, e) for name, e in config.endpoints.items()}
        models = {
            name: self._model(name, m, endpoints[m.endpoint]) for name, m in config.models.items()
        }
        listed = []
        for name, model_config in config.models.items():
            model = self._with_fallback(models[name], model_config, models)
            listed.append(model)
            listed += [
                replace(model, name=lora, served_as=lora, parent=name)
                for lora in model_config.loras
            ]
        aliases = {alias: name for name, m in config.models.items() for alias in m.aliases}
        return Models(listed, aliases, open_model=self._open_model(config, endpoints))

    def cancel_orphans(self) -> None:
        """Cancel what a proxy that was killed left running at our endpoints."""
        queues = {b.jobs.endpoint.url: b.jobs.endpoint for b in self._queues()}
        for orphan in self._journal.orphans():
            if (endpoint := queues.get(orphan.endpoint)) is None:
                log.warning("job %s was left at %s, unknown now", orphan.job_id, orphan.endpoint)
                self._journal.remove(orphan.job_id)
            else:
                log.warning("cancelling job %s of a proxy that was killed", orphan.job_id)
                self._canceller.cancel(endpoint, orphan.job_id, is_running=True)

    def note_jobs(self) -> None:
        """Write down how many jobs are in flight, those of an endpoint's former tables as well."""
        waiting, live = Counter[str](), Counter[str]()
        for backend in self._queues():
            name = backend.jobs.endpoint.name
            waiting[name] += backend.jobs.waiting
            live[name] += backend.jobs.live
        for name in live:
            self._metrics.note_jobs(name, waiting=waiting[name], running=live[name] - waiting[name])

    def drain(self, seconds: float) -> None:
        """Let all calls go on for this long; those that have not ended then raise Stopping."""
        self._shutdown.begin(seconds)

    async def close(self, seconds: float) -> None:
        """Look after no endpoint any more; jobs still being submitted are awaited this long."""
        for backend in self._made.values():
            if backend.watch is not None:
                await backend.watch.close()
        await asyncio.gather(*(backend.jobs.settle(seconds) for backend in self._queues()))

    def _queues(self) -> list[QueueBackend]:
        return [b for b in self._made.values() if isinstance(b, QueueBackend)]

    def _endpoint(self, name: str, config: EndpointConfig) -> Backend:
        if (name, config) not in self._made:
            self._made[name, config] = self._new_endpoint(name, config)
        return self._made[name, config]

    def _new_endpoint(self, name: str, config: EndpointConfig) -> QueueBackend | Relay:
        settings = self._settings
        is_queue = config.kind == "queue"
        api_key = self._api_key(config.api_key_env)
        endpoint = Endpoint(
            self._client,
            config.runpod_url(name, settings.runpod_endpoint_base_url),
            name=name,
            api_key=api_key,
            limits=Limits(
                run=config.run_limit or settings.run_limit,
                stream=config.stream_limit or settings.stream_limit,
                status=config.status_limit or settings.status_limit,
                cancel=config.cancel_limit or settings.cancel_limit,
            ),
            metrics=self._metrics,
            memory=self._memory,
            key_variable=config.api_key_env,
        )
        pause_seconds = config.failed_start_pause_seconds
        if pause_seconds is None:
            pause_seconds = settings.failed_start_pause_seconds
        watch = Watch(
            name,
            endpoint.health,
            Starts(name, pause_seconds=pause_seconds),
            StartClock(name, endpoint.url, self._start_times),
            self._start_progress(name, config),
        )
        admission = Admission(
            config.max_requests or settings.max_requests,
            config.max_waiting or settings.max_waiting,
        )
        if not is_queue:
            return Relay(
                self._client,
                config.worker_url(name),
                api_key,
                admission=admission,
                shutdown=self._shutdown,
                memory=self._memory,
                standing=Standing(f"endpoint {name}", config.api_key_env),
                watch=watch,
                on_worker_seconds=lambda seconds: self._metrics.note_worker_seconds(
                    name, seconds, config.price_per_second
                ),
            )
        jobs = Jobs(
            endpoint,
            admission=admission,
            shutdown=self._shutdown,
            watch=watch,
            canceller=self._canceller,
            journal=self._journal,
            metrics=self._metrics,
            price_per_second=config.price_per_second,
        )
        return QueueBackend(jobs, self._metrics, self._memory)

    def _start_progress(self, name: str, config: EndpointConfig) -> StartProgress | None:
        settings = self._settings
        key = secret(config.rest_api_key_env) if config.rest_api_key_env else settings.rest_api_key
        if key is None:
            return None
        url = f"{settings.rest_base_url}/v2/serverless/{config.id or name}"
        return StartProgress(self._client, url, key.get_secret_value(), name=name)

    def _api_key(self, variable: str) -> str:
        if variable == "RUNPOD_API_KEY" and self._settings.runpod_api_key is not None:
            return self._settings.runpod_api_key.get_secret_value()
        return secret(variable).get_secret_value() if variable else ""

    def _model(self, name: str, config: ModelConfig, backend: Backend) -> Model:
        settings = self._settings
        hold = config.first_byte_hold_seconds
        return Model(
            name=name,
            served_as=config.served_as or name,
            backend=backend,
            terms=Terms(
                connect=config.connect_timeout_seconds or settings.connect_timeout_seconds,
                queue=config.queue_timeout_seconds or settings.queue_timeout_seconds,
                first_token=(
                    config.first_token_timeout_seconds or settings.first_token_timeout_seconds
                ),
                idle=config.idle_timeout_seconds or settings.idle_timeout_seconds,
                total=config.total_timeout_seconds or settings.total_timeout_seconds,
                poll=config.keep_alive_seconds or settings.keep_alive_seconds,
                low_priority=config.low_priority,
            ),
            first_byte_hold_seconds=settings.first_byte_hold_seconds if hold is None else hold,
            keep_alive_mode=config.keep_alive_mode or settings.keep_alive_mode,
            metrics=self._metrics,
            max_model_len=config.max_model_len,
            owned_by=config.owned_by or "vllm",
            fallback_after_seconds=config.fallback_after_seconds,
            warm_schedule=config.warm_schedule,
            tokenizer=config.tokenizer,
        )

    def _open_model(self, config: Config, endpoints: dict[str, Backend]) -> Model | None:
        if (name := config.open_endpoint) is None:
            return None
        model = self._model(name, ModelConfig(endpoint=name), endpoints[name])
        return replace(model, served_as=None)

    def _with_fallback(self, model: Model, config: ModelConfig, models: dict[str, Model]) -> Model:
        fallback = config.fallback
        if isinstance(fallback, str):
            return replace(model, fallback=models[fallback])
        if fallback is None:
            return model
        key = (fallback.url, fallback)
        if key not in self._made:
            api_key = self._api_key(fallback.api_key_env)
            admission = Admission(self._settings.max_requests, self._settings.max_waiting)
            host = httpx.URL(fallback.url).host
            self._made[key] = Relay(
                self._client,
                fallback.url,
                api_key,
                admission=admission,
                shutdown=self._shutdown,
                memory=self._memory,
                standing=Standing(f"fallback {host}", fallback.api_key_env),
            )
        second = replace(model, backend=self._made[key], served_as=fallback.model)
        return replace(model, fallback=second)
