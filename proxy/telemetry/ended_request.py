"""What is told of a request that has ended: in the log, in the numbers, wherever it is counted."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from proxy.api.answer import NO_COURSE, Course

WARM: Final = "warm"
"""The outcome of what woke a worker by the clock, which is no request."""
_SAFE: Final = re.compile(r"[A-Za-z0-9/._~-]*")
"""A path that `quote` leaves as it is, as most are: it takes longer than this."""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """One request, without a word of what it asked and was answered. Times are in seconds."""

    id: str
    method: str
    path: str
    """As the client wrote it."""
    status: int
    outcome: str
    """`completed`, `client_left`, `failed`, or what went wrong: a code of our errors."""
    seconds: float
    """From its first byte to its end."""
    route: str = ""
    """The route that a worker answers, as in `POST /v1/responses/{id}`; empty for our own."""
    key: str = ""
    """The name of its API key."""
    model: str = ""
    """Empty if it named none of ours."""
    job_id: str = ""
    road: str = ""
    first_byte_seconds: float | None = None
    """From asking to the first byte of the answer, keep-alives not counted."""
    first_token_seconds: float | None = None
    """From its first byte to the first token of the answer, where that is a stream."""
    is_stream: bool = False
    """It was answered by a stream of events."""
    tokens: tuple[int, int] = (0, 0)
    """How many went in and came out, where they are counted."""
    are_tokens_told: bool = True
    """By the answer's usage. Else it was left, broke off or told none: at least so many came out,
    and how many went in need not be known."""
    course: Course = NO_COURSE
    trace: str = ""
    """The id of its trace, where traces are made."""
    remark: str = ""

    @property
    def start(self) -> str:
        """`cold` if a worker had to be started for it, `warm` if not, empty if nobody knows."""
        return {None: "", True: "cold", False: "warm"}[self.course.was_cold]

    @property
    def cold_start_seconds(self) -> float | None:
        """How long it waited, if a worker had to be started for it.

        A stream up to its first byte, as a worker may take jobs while it loads its model. A plain
        answer comes when all of it has been made: until a worker had the job, if that is known.
        """
        if not self.course.was_cold:
            return None
        if self.is_stream or self.course.queue_seconds is None:
            return self.first_byte_seconds
        return self.course.queue_seconds

    @property
    def seconds_per_token(self) -> float | None:
        """From a stream's first token to its end, for each token after the first."""
        further = self.tokens[1] - 1
        if self.first_token_seconds is None or further < 1 or not self.are_tokens_told:
            return None
        return (self.seconds - self.first_token_seconds) / further

    @property
    def safe_path(self) -> str:
        """The path in printable characters: unpacked, it could hold a line of its own."""
        return self.path if _SAFE.fullmatch(self.path) else quote(self.path)

    @property
    def facts(self) -> dict[str, str | int | float]:
        """What a line of the log tells by names, beside what every line begins with."""
        tokens_in, tokens_out = self.tokens
        known: dict[str, str | int | float | None] = {
            "key": self.key,
            "model": self.model,
            "first_byte_seconds": self.first_byte_seconds,
            "queue_seconds": self.course.queue_seconds,
            "start": self.start,
            "tokens_in": tokens_in or None,
            "tokens_out": tokens_out or None,
            "road": self.road,
            "trace": self.trace,
        }
        return {name: value for name, value in known.items() if value not in (None, "")}
