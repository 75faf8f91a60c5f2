"""Numbers for Prometheus: requests and their times, calls to RunPod, lost frames, GPU time.

Labels are names of ours or of the configuration, never of a client's making, so there are few.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proxy.telemetry.ended_request import EndedRequest
from proxy.telemetry.live_requests import LiveRequests
from proxy.telemetry.request_times import RequestTimes

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_BYTE_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """All counters of one proxy."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live = LiveRequests(self.registry)
        self._times = RequestTimes(self.registry)
        self._requests = self._counter(
            "proxy_requests", "Requests answered", "model", "status", "outcome"
        )
        self._first_byte = Histogram(
            "proxy_first_byte_seconds",
            "From a request's arrival to the first byte of its answer, keep-alives not counted",
            ("model",),
            buckets=FIRST_BYTE_BUCKETS,
            registry=self.registry,
        )
        self._calls = self._counter(
            "runpod_calls", "Calls to RunPod", "endpoint", "operation", "outcome"
        )
        self._lost = self._counter(
            "proxy_frames_lost", "Frames of a worker that did not arrive", "endpoint"
        )
        self._repaired = self._counter(
            "proxy_frames_repaired", "Lost frames taken from the job's aggregate", "endpoint"
        )
        self._unrepairable = self._counter(
            "proxy_answers_unrepairable", "Answers that could not be made whole", "endpoint"
        )
        self._channels = Gauge(
            "proxy_channels", "Direct channels to workers", ("endpoint",), registry=self.registry
        )
        self._roads = self._counter(
            "proxy_roads",
            "Answers where a direct channel is allowed, by the road they came by, and what was in "
            "the way of the channel",
            *("endpoint", "road", "reason"),
        )
        self._frames = self._counter(
            "proxy_frames", "Outputs of such answers, by the road they came by", "endpoint", "road"
        )
        self._cancelled = self._counter(
            "proxy_jobs_cancelled", "Jobs given up before their end", "endpoint"
        )
        self._tokens = self._counter(
            "proxy_tokens", "Tokens of prompts (in) and of answers (out)", "model", "direction"
        )
        self._fallbacks = self._counter(
            "proxy_fallbacks", "Requests answered by a fallback", "model"
        )
        self._worker_seconds = self._counter(
            "proxy_worker_seconds",
            "Seconds that workers had jobs of ours; jobs that run side by side add up",
            "endpoint",
        )
        self._dollars = self._counter(
            "proxy_worker_dollars", "The same, times the endpoint's price_per_second", "endpoint"
        )
        self._jobs = Gauge(
            "proxy_jobs", "Jobs in flight", ("endpoint", "phase"), registry=self.registry
        )
        self._in_line = Gauge(
            "proxy_turns_waiting",
            "Of those that wait, the requests whose turn has not come",
            ("endpoint",),
            registry=self.registry,
        )
        self._ledger = Gauge(
            "proxy_ledger_rows",
            "Rows of the ledger that wait for its database, and those that are lost",
            ("state",),
            registry=self.registry,
        )

        self._budget = Gauge(
            "proxy_endpoint_budget_dollars",
            "What an endpoint may cost in a day",
            ("endpoint",),
            registry=self.registry,
        )
        self._spent_today = Gauge(
            "proxy_endpoint_spent_today_dollars",
            "What such an endpoint's workers have cost since midnight (UTC), as estimated",
            ("endpoint",),
            registry=self.registry,
        )

    def note_request(self, model: str, status: int, outcome: str) -> None:
        """A request was answered; `model` is empty if it named none of ours.

        The outcome is `completed`, `client_left`, or what went wrong: a code of our errors.
        """
        self._requests.labels(model, str(status), outcome).inc()

    def note_ended(self, ended: EndedRequest) -> None:
        """A request has ended: how, how long it took, and what it used."""
        self.note_request(ended.model, ended.status, ended.outcome)
        if ended.first_byte_seconds is not None:
            self._first_byte.labels(ended.model).observe(ended.first_byte_seconds)
        if any(ended.tokens):
            for direction, tokens in zip(("in", "out"), ended.tokens, strict=True):
                self._tokens.labels(ended.model, direction).inc(tokens)
        if ended.route:
            self._times.note(ended)

    def note_call(self, endpoint: str, operation: str, outcome: str) -> None:
        """RunPod was called; the outcome is an HTTP status, or `error`."""
        self._calls.labels(endpoint, operation, outcome).inc()

    def note_repair(self, endpoint: str, *, lost: int, repaired: int) -> None:
        """An answer had holes when its job ended; without all of them repaired, it is broken."""
        self._lost.labels(endpoint).inc(lost)
        self._repaired.labels(endpoint).inc(repaired)
        if repaired < lost:
            self._unrepairable.labels(endpoint).inc()

    def note_channels(self, endpoint: str, number: int) -> None:
        """So many channels to an endpoint's workers are open now."""
        self._channels.labels(endpoint).set(number)

    def note_road(self, endpoint: str, road: str, reason: str) -> None:
        """An answer has come: by `direct`, or by `queue` for a reason in one word."""
        self._roads.labels(endpoint, road, reason).inc()

    def note_frames(self, endpoint: str, *, direct: int, polled: int) -> None:
        """So many frames of an answer came by a channel, so many outputs by polls."""
        self._frames.labels(endpoint, "direct").inc(direct)
        self._frames.labels(endpoint, "queue").inc(polled)

    def note_cancelled(self, endpoint: str) -> None:
        """A job was given up."""
        self._cancelled.labels(endpoint).inc()

    def note_fallback(self, model: str) -> None:
        """A model's fallback was asked in its place."""
        self._fallbacks.labels(model).inc()

    def note_worker_seconds(self, endpoint: str, seconds: float, price_per_second: float) -> None:
        """A worker had a job for so long."""
        self._worker_seconds.labels(endpoint).inc(seconds)
        self._dollars.labels(endpoint).inc(seconds * price_per_second)

    def note_jobs(self, endpoint: str, *, waiting: int, running: int) -> None:
        """How many jobs are in flight now."""
        self._jobs.labels(endpoint, "waiting").set(waiting)
        self._jobs.labels(endpoint, "running").set(running)

    def note_in_line(self, endpoint: str, number: int) -> None:
        """So many requests wait for their turn before an endpoint now."""
        self._in_line.labels(endpoint).set(number)

    def note_budget(self, endpoint: str, dollars: float, spent: float) -> None:
        """An endpoint may cost so much a day, and has cost so much today."""
        self._budget.labels(endpoint).set(dollars)
        self._spent_today.labels(endpoint).set(spent)

    def note_ledger(self, *, waiting: int, lost: int) -> None:
        """How many rows of the ledger wait for its database, and how many are lost."""
        self._ledger.labels("waiting").set(waiting)
        self._ledger.labels("lost").set(lost)

    def page(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(name, says, labels, registry=self.registry)
