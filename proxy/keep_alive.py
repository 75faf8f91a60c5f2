"""What a stream sends while it has nothing to say, so that nobody on the way gives up on it.

`comment` is a line that every client skips. Some clients and proxies count only events as signs of
life; for them `chunk` sends one that means nothing, where the route's clients know such a thing.
`off` sends nothing.
"""

from collections.abc import Callable
from typing import Literal

from proxy.dialects import Dialect
from proxy.endpoint import JobStatus

Mode = Literal["comment", "chunk", "off"]
KeepAlive = Callable[[JobStatus], bytes]


def keep_alive(mode: Mode, dialect: Dialect, model: str) -> KeepAlive:
    """A function from the job's state to what is sent; empty bytes are not sent."""
    if mode == "off":
        return lambda status: b""
    if mode == "chunk" and dialect.sign_of_life is not None:
        event = dialect.sign_of_life(model)
        return lambda status: event
    return _comment


def _comment(status: JobStatus) -> bytes:
    # One word for one look at the network tab: is a worker missing, or is it at work?
    return b": queued\n\n" if status is JobStatus.IN_QUEUE else b": running\n\n"
