"""What a stream sends while it has nothing to say, so that nobody on the way gives up on it.

`comment` is a line that every client skips. Some clients and proxies count only events as signs of
life; for them `chunk` sends one with an empty delta. `off` sends nothing.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import orjson

from proxy.endpoint import JobStatus

Mode = Literal["comment", "chunk", "off"]
KeepAlive = Callable[[JobStatus], bytes]


def keep_alive(mode: Mode, *, route: str, model: str) -> KeepAlive:
    """A function from the job's state to what is sent; empty bytes are not sent."""
    match mode:
        case "comment":
            return _comment
        case "chunk":
            event = b"data: " + orjson.dumps(_empty_chunk(route, model)) + b"\n\n"
            return lambda status: event
        case "off":
            return lambda status: b""


def _comment(status: JobStatus) -> bytes:
    # One word for one look at the network tab: is a worker missing, or is it at work?
    return b": queued\n\n" if status is JobStatus.IN_QUEUE else b": running\n\n"


def _empty_chunk(route: str, model: str) -> dict[str, Any]:
    is_chat = route.endswith("/chat/completions")
    choice: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
    return {
        "id": "keep-alive",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": None}],
    }
