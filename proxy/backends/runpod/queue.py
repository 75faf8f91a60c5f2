"""Where an answer comes from: a queue endpoint, or a server that is asked by plain HTTP."""

import base64
from typing import Any, Protocol

import msgspec

from proxy.api.answer import Answer, Head, is_name
from proxy.api.call import Call
from proxy.backends.cold_start import ColdStartAnswer
from proxy.backends.deadlines import Terms
from proxy.backends.health_monitor import Watch
from proxy.backends.runpod.answer import JobAnswer
from proxy.backends.runpod.jobs import Jobs
from proxy.backends.runpod.wire import PROTOCOL
from proxy.memory import Memory
from proxy.metrics import Metrics

MAX_SERVED = 1_000
"""How many models an endpoint may be said to serve; a broken worker might tell ever new ones."""


class Backend(Protocol):
    """Something that answers calls."""

    served: dict[str, int | None]
    """The models its workers have told of, and how long a context each takes, where known."""

    @property
    def watch(self) -> Watch | None:
        """What state it is in, where that can be told."""
        ...

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """The answer to this call, with the model named as the server knows it.

        Nothing happens until the answer is opened.
        """
        ...


class QueueBackend:
    """A queue endpoint: every call becomes a job."""

    def __init__(self, jobs: Jobs, metrics: Metrics, memory: Memory) -> None:
        self.served: dict[str, int | None] = {}
        self.jobs = jobs
        self._metrics = metrics
        self._memory = memory

    @property
    def watch(self) -> Watch:
        """See Backend."""
        return self.jobs.watch

    def ask(self, call: Call, served_as: str | None, terms: Terms) -> Answer:
        """See Backend."""
        answer = JobAnswer(
            lambda: self.jobs.submit(job_input(call, served_as), terms),
            wants_stream=call.wants_stream,
            ends=call.route.dialect.ends,
            endpoint=self.jobs.endpoint.name,
            metrics=self._metrics,
            memory=self._memory,
            on_head=self._learn,
        )
        return ColdStartAnswer(answer, self.watch, self._worker_of)

    async def _worker_of(self, job_id: str) -> str | None:
        return (await self.jobs.endpoint.status(job_id)).worker_id

    def _learn(self, head: Head, first: bytes) -> None:
        """Note what a worker serves: it says so itself, or at least its answer names its model."""
        for model in head.models:
            self._note(model["id"], model["max_model_len"])
        if self.served:
            return
        try:
            fields = msgspec.json.decode(first.removeprefix(b"data: ").partition(b"\n")[0])
        except (ValueError, RecursionError):
            return
        match fields:
            case {"model": name} if is_name(name):
                self._note(name, None)

    def _note(self, name: str, max_model_len: int | None) -> None:
        if name in self.served or len(self.served) < MAX_SERVED:
            self.served[name] = max_model_len


def job_input(call: Call, served_as: str | None) -> dict[str, Any]:
    """A job's input: what RunPod's own OpenAI route sends, and what our own worker reads.

    A JSON body is the bytes that the client sent. A request without one, or with a form, has no
    place in RunPod's shape; `route` and `body` are what RunPod's worker takes for it, `body_base64`
    what ours does.
    """
    ours = {"proxy": {"protocol": PROTOCOL, "request_id": call.request_id}}
    if call.content is None:
        return {"route": call.target, "method": call.route.method} | ours
    body = call.content.naming(served_as)
    if call.content.content_type == "application/json":
        return {"openai_route": call.target, "openai_input": msgspec.Raw(body)} | ours
    return {
        "route": call.target,
        "method": call.route.method,
        "content_type": call.content.content_type,
        "body_base64": base64.b64encode(body).decode(),
    } | ours
