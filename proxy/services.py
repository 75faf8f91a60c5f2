"""What the routes work with, made once at start-up and found again from a request."""

import logging
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from proxy.backends.registry import Backends
from proxy.config.file import ConfigError
from proxy.config.settings import Settings
from proxy.config.tables import load
from proxy.http.body import BodyReader
from proxy.http.origins import check_origin
from proxy.keys import ANYBODY, Key, Keys
from proxy.memory import Memory
from proxy.metrics import Metrics
from proxy.serving.models import Models
from proxy.serving.sharing import Sharing
from proxy.serving.shield import Shield
from proxy.serving.stored_responses import StoredResponses
from proxy.serving.warmup import Warmer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Services:
    """The parts of a running proxy."""

    settings: Settings
    memory: Memory
    bodies: BodyReader
    metrics: Metrics
    backends: Backends
    warmer: Warmer
    shield: Shield
    sharing: Sharing
    stored_responses: StoredResponses
    keys: Keys
    models: Models
    is_draining: bool = False

    def check_caller(self, connection: HTTPConnection) -> Key:
        """The key of a request that may start a job; raises InvalidAPIKey or NotPermitted."""
        key = self.keys.check(connection)
        if key is ANYBODY:
            check_origin(connection, self.settings.cors_origins)
        return key

    def drain(self) -> None:
        """New requests are not welcome any more; running ones get their grace time."""
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
        models = self.backends.build(config)
        models.take_over(self.models)
        for model in models:
            if model.backend.watch is not None:
                model.backend.watch.starts.forgive()
        self.models, self.keys = models, Keys(self.settings.api_keys, config.keys)
        self.warmer.schedule(models)
        log.info("the configuration has been read again")

    def watch_all(self) -> None:
        """Somebody wants to know how all endpoints are."""
        for model in self.models:
            if model.backend.watch is not None:
                model.backend.watch.touch()


def services(connection: HTTPConnection) -> Services:
    """The services of the application that serves this request."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found
