"""How long requests took, in histograms: by model, route, and the name of the API key."""

from typing import Final

from prometheus_client import CollectorRegistry, Histogram

from proxy.telemetry.ended_request import EndedRequest

SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
"""From an answer that wakes nobody to the longest that a request may take by default."""
TOKEN_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
"""From what a small model does alone to what no reader waits for."""
MAX_KEYS: Final = 50
"""So many keys have series of their own, those that are used first; the others are one."""
OTHER_KEYS: Final = "other"


class RequestTimes:
    """The histograms of requests to workers; of times that are not known nothing is said."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, says: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            labels = ("model", "route", "key")
            return Histogram(name, says, labels, buckets=buckets, registry=registry)

        self._duration = histogram(
            "proxy_request_seconds", "From the first byte of a request that went well to its end"
        )
        self._queue = histogram("proxy_queue_seconds", "How long a job waited for a worker")
        self._cold_start = histogram(
            "proxy_cold_start_seconds",
            "How long a request waited for which a worker had to be started",
        )
        self._first_token = histogram(
            "proxy_time_to_first_token_seconds",
            "From the first byte of a request to the first token of its stream",
        )
        self._per_token = histogram(
            "proxy_time_per_output_token_seconds",
            "From the first token of a stream to its end, for each further token",
            TOKEN_SECONDS,
        )
        self._keys: set[str] = set()
        self._children: dict[tuple[Histogram, str, str, str], Histogram] = {}
        """By histogram, model, route and key: to find one costs more than to count in it."""

    def note(self, ended: EndedRequest) -> None:
        """A request to a worker has ended."""
        self._observe(self._queue, ended, ended.course.queue_seconds)
        self._observe(self._cold_start, ended, ended.cold_start_seconds)
        if ended.outcome == "completed":
            self._observe(self._duration, ended, ended.seconds)
            self._observe(self._first_token, ended, ended.first_token_seconds)
            self._observe(self._per_token, ended, ended.seconds_per_token)

    def _observe(self, histogram: Histogram, ended: EndedRequest, seconds: float | None) -> None:
        if seconds is None:
            return
        place = (histogram, ended.model, ended.route, self._label(ended.key))
        if (child := self._children.get(place)) is None:
            child = self._children[place] = histogram.labels(*place[1:])
        child.observe(seconds)

    def _label(self, key: str) -> str:
        if key not in self._keys:
            if len(self._keys) >= MAX_KEYS:
                return OTHER_KEYS
            self._keys.add(key)
        return key
