"""Waking a worker before anybody asks: on request, or by the clock.

The job that does it asks for vLLM's list of models: every worker, RunPod's own included, answers
that without generating anything, and ours tells by the way what it serves.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from cronsim import CronSim

from proxy.api.call import Call, JSONContent, OnSpent, spends_unwatched
from proxy.api.route_table import Route
from proxy.backends.backend import Backend
from proxy.errors import ProxyError
from proxy.serving.models import Model
from proxy.telemetry.ended_request import WARM, EndedRequest

if TYPE_CHECKING:
    from proxy.ledger.ledger import Ledger

log = logging.getLogger(__name__)


class Warmer:
    """Wakes workers, one at a time for each endpoint. What the clock costs is in the ledger."""

    def __init__(self, ledger: "Ledger | None" = None) -> None:
        self._ledger = ledger
        self._waking: dict[Backend, asyncio.Task[None]] = {}
        self._schedules: list[asyncio.Task[None]] = []

    def wake(self, model: Model, on_spent: OnSpent = spends_unwatched) -> None:
        """Start a job that needs a worker, unless one is under way. Returns at once."""
        if model.backend.monitor is not None:
            model.backend.monitor.request_updates()
        if model.backend not in self._waking:
            task = asyncio.create_task(_ask(model, on_spent))
            self._waking[model.backend] = task
            task.add_done_callback(lambda _: self._waking.pop(model.backend, None))

    def schedule(self, models: Iterable[Model]) -> None:
        """Wake these models when their schedules say so, and no others."""
        for task in self._schedules:
            task.cancel()
        self._schedules = [
            asyncio.create_task(self._by_the_clock(model, model.warm_schedule))
            for model in models
            if model.warm_schedule is not None
        ]

    async def close(self) -> None:
        """Wake no worker any more."""
        tasks = [*self._schedules, *self._waking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _by_the_clock(self, model: Model, schedule: str) -> None:
        for moment in CronSim(schedule, datetime.now()):
            # Points in time: their difference is right also where local time leaves out an hour.
            await asyncio.sleep(max(0.0, moment.timestamp() - time.time()))
            self.wake(model, self._accounted(model))

    def _accounted(self, model: Model) -> OnSpent:
        """What keeps account of a job that no request asks for."""
        if self._ledger is None:
            return spends_unwatched
        entry = self._ledger.entry(model.label or model.name, spends_unwatched)
        request_id = f"warm_{uuid.uuid4().hex}"
        entry.end(EndedRequest(request_id, "", "", 0, WARM, 0.0, route="warm_schedule"))
        return entry.note


async def _ask(model: Model, on_spent: OnSpent) -> None:
    call = Call(
        f"warm_{uuid.uuid4().hex}",
        Route("GET", "/v1/models"),
        "",
        JSONContent(b"{}", {}, {}, None, wants_stream=False),
        on_spent,
    )
    answer = model.backend.ask(call, None, model.terms)
    try:
        await answer.open()
        async for _ in answer.pieces():
            pass
        log.info("the endpoint of %s is awake", model.name)
    except ProxyError as exc:
        log.warning("the endpoint of %s could not be woken: %s", model.name, exc)
    finally:
        answer.close()
