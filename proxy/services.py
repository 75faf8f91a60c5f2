"""What the routes work with, made once at start-up and found again from a request."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from proxy.auth import Keys
from proxy.jobs import Jobs
from proxy.models import Models
from proxy.settings import Settings


@dataclass(slots=True)
class Services:
    """The parts of a running proxy."""

    settings: Settings
    keys: Keys
    models: Models
    jobs: Jobs
    is_draining: bool = False

    def drain(self) -> None:
        """New requests are not welcome any more; running ones get their grace time."""
        self.is_draining = True
        self.jobs.drain(self.settings.drain_seconds)


def services(connection: HTTPConnection) -> Services:
    """The services of the application that serves this request."""
    found = connection.app.state.services
    assert isinstance(found, Services)
    return found
