"""Whether a server takes our key and knows our endpoint: each change is one line in the log.

Clients are told of it with each answer, but whoever runs the proxy reads its log.
"""

import logging

log = logging.getLogger(__name__)


class Standing:
    """What the last answers said of one endpoint, or of one fallback's server."""

    def __init__(self, name: str, variable: str) -> None:
        self.problem: str | None = None
        """What is wrong, in words that hold no key; None while it works."""
        self._name = name
        self._variable = variable

    def note(self, status: int, *, names_job: bool = False) -> None:
        """Take the HTTP status of an answer; a job's 404 says nothing of its endpoint."""
        if status in (401, 403):
            key = f"the key that {self._variable} holds" if self._variable else "a call without key"
            self._set(f"{key} is refused")
        elif status == 404 and not names_job:
            self._set("no endpoint of this id is known")
        elif 200 <= status < 300:
            self._set(None)

    def _set(self, problem: str | None) -> None:
        if problem == self.problem:
            return
        self.problem = problem
        if problem is None:
            log.info("%s works again", self._name)
        else:
            log.warning("%s: %s; see python -m proxy --check", self._name, problem)
