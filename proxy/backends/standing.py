"""Whether a server takes our key and knows our endpoint: each change is one line in the log.

Clients are told of it with each answer, but whoever runs the proxy reads its log. RunPod's edge may
refuse some calls and take others within one second; such a gust is one change.
"""

import logging
import time

log = logging.getLogger(__name__)

CALM_SECONDS = 15.0
"""How long nothing must have been refused before a call that is taken counts as a change."""


class Standing:
    """What the last answers said of one endpoint, or of one fallback's server."""

    def __init__(self, name: str, variable: str) -> None:
        self._name = name
        self._variable = variable
        self._told: set[str] = set()
        """What is wrong, in words that hold no key; empty while it works."""
        self._refused = 0.0
        """When a call was last refused (monotonic clock)."""

    def note(self, status: int, *, names_job: bool = False) -> None:
        """Take the HTTP status of an answer; a job's 404 says nothing of its endpoint."""
        if status in (401, 403):
            key = f"the key that {self._variable} holds" if self._variable else "a call without key"
            self._note_problem(f"{key} is refused")
        elif status == 404 and not names_job:
            self._note_problem("no endpoint of this id is known")
        elif 200 <= status < 300:
            self._note_success()

    def _note_problem(self, problem: str) -> None:
        self._refused = time.monotonic()
        if problem not in self._told:
            self._told.add(problem)
            log.warning("%s: %s; see python -m proxy --check", self._name, problem)

    def _note_success(self) -> None:
        if self._told and time.monotonic() - self._refused >= CALM_SECONDS:
            self._told.clear()
            log.info("%s works again", self._name)
