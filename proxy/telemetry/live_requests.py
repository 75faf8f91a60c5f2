"""The requests under way, waiting and running, by model and under the names that vLLM has for them.

Those who choose between model servers (llm-d, the endpoint picker of the Gateway API Inference
Extension, production-stack) go by these two gauges.
"""

from collections import Counter
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from proxy.api.answer import Answer


class LiveRequests:
    """The answers that clients wait for or read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: dict[Answer, str] = {}
        self._waiting = Gauge(
            "vllm:num_requests_waiting",
            "Requests that wait for a worker, or before its queue",
            ("model_name",),
            registry=registry,
        )
        self._running = Gauge(
            "vllm:num_requests_running",
            "Requests that a worker has",
            ("model_name",),
            registry=registry,
        )
        self._told: set[str] = set()

    def begin(self, answer: Answer, model: str) -> None:
        """A request for this model is under way."""
        self._models[answer] = model

    def end(self, answer: Answer) -> None:
        """It is over."""
        self._models.pop(answer, None)

    def tell(self, models: Iterable[str]) -> None:
        """Set the gauges, of these models also where there are none: a picker needs the zero."""
        waiting, running = Counter[str](), Counter[str]()
        for answer, model in self._models.items():
            (waiting if answer.is_waiting else running)[model] += 1
        self._told |= {*models, *self._models.values()}
        for model in self._told:
            self._waiting.labels(model).set(waiting[model])
            self._running.labels(model).set(running[model])
