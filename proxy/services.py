"""What the routes work with, made once at start-up."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.access.keys import Key, Keys
from proxy.access.limits import Limiter
from proxy.access.sessions import Sessions
from proxy.api.call import OnSpent, Work
from proxy.backends.registry import BackendRegistry
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.memory import Memory
from proxy.serving.build import build_models
from proxy.serving.models import Model, Models
from proxy.serving.overview import endpoints_now, under_way
from proxy.serving.sharing import Sharing
from proxy.serving.shield import Shield
from proxy.serving.stored_responses import StoredResponses
from proxy.serving.warmup import Warmer
from proxy.telemetry.history import History
from proxy.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from proxy.ledger.ledger import Ledger
    from proxy.telemetry.traces import Traces

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Services:
    """The parts of a running proxy."""

    settings: Settings
    memory: Memory
    metrics: Metrics
    history: History
    backends: BackendRegistry
    warmer: Warmer
    shield: Shield
    sharing: Sharing
    stored_responses: StoredResponses
    keys: Keys
    sessions: Sessions
    limiter: Limiter
    ledger: "Ledger | None"
    """What each request has used, where that is kept."""
    models: Models
    traces: "Traces | None" = None
    is_draining: bool = False

    def drain(self) -> None:
        """Take no new requests; those that run get their grace time."""
        self.is_draining = True
        self.backends.drain(self.settings.drain_seconds)

    def reload(self) -> None:
        """Read the configuration again, and serve what it says from now on.

        Requests under way end as they began. A configuration that is wrong changes nothing.
        """
        try:
            config = load(self.settings)
        except ConfigError as exc:
            log.error("the configuration stays as it was: %s", exc)
            return
        models = build_models(config, self.settings, self.backends, self.metrics)
        models.take_over(self.models)
        self.backends.lift_budgets(besides=config.endpoints)
        for model in models:
            if model.backend.monitor is not None:
                model.backend.monitor.starts.forgive()
        self.models, self.keys = models, self.keys.replaced(config.keys)
        self.warmer.schedule(models)
        log.info("the configuration has been read again")

    def begin_history(self) -> None:
        """Keep from now on how things stand."""
        self.history.begin(lambda: under_way(endpoints_now(self.backends, self.models)))

    def on_spent(self, key: Key, model: Model) -> OnSpent:
        """What counts a job's cost, for whoever is to know what this key spends on this model."""
        count = self.limiter.on_spent(key)

        def note(work: Work) -> None:
            count(work)
            label = model.label or model.name
            self.history.note_spent(key.name, label, work.seconds, work.dollars)

        return note

    def request_updates(self) -> None:
        """Look how all endpoints are, for a client that asks."""
        for model in self.models:
            if model.backend.monitor is not None:
                model.backend.monitor.request_updates()
