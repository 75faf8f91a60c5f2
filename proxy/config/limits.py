"""RunPod's limits for calls, as the settings give them."""

import re
from dataclasses import dataclass
from typing import Final

_LIMIT = re.compile(r"(\d{1,9})/(\d{1,9})")
WINDOW_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class CallLimit:
    """RunPod's limit for one operation of an endpoint.

    Source: https://docs.runpod.io/serverless/endpoints/send-requests#rate-limits
    """

    calls: int
    """In WINDOW_SECONDS."""
    at_once: int

    def __str__(self) -> str:
        """As the settings have it."""
        return f"{self.calls}/{self.at_once}"


def call_limit(value: object) -> object:
    """`2000/400` as a CallLimit: calls in ten seconds, and at once; raises ValueError."""
    if isinstance(value, CallLimit):
        return value
    match = _LIMIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not (int(match[1]) and int(match[2])):
        raise ValueError("give calls in ten seconds and calls at once, as in 2000/400")
    return CallLimit(int(match[1]), int(match[2]))
