"""The models clients may name, and what is known of them: told from memory, waking no GPU."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proxy.access.keys import Key
from proxy.api.answer import Answer
from proxy.api.call import Call
from proxy.backends.backend import Backend
from proxy.backends.deadlines import Terms
from proxy.backends.health_monitor import State
from proxy.config.mistakes import nearest
from proxy.config.values import MAX_NAME_LENGTH
from proxy.errors import InvalidRequest, ModelNotFound
from proxy.serving.fallback import FallbackAnswer
from proxy.telemetry.metrics import Metrics

MAX_SHOWN = 10
"""How many models an error names."""
MAX_COMPARED = 100
"""How many names one that is unknown is compared with: that takes time, and a client chooses it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as clients know it, and how it is asked."""

    name: str
    served_as: str | None
    """The name its backend knows; None to name none, so that the backend takes its own."""
    backend: Backend
    terms: Terms
    metrics: Metrics = field(repr=False)
    max_model_len: int | None = None
    owned_by: str = "vllm"
    parent: str | None = None
    """The model that this one is a LoRA adapter of."""
    fallback: "Model | None" = None
    fallback_after_seconds: float | None = None
    warm_schedule: str | None = None
    tokenizer: Path | None = None
    """The file of its tokenizer, to count tokens while no worker is up."""
    label: str = ""
    """What the metrics call it, where that is not its name: a name of a client's making."""

    @property
    def state(self) -> State:
        """The state of its endpoint."""
        return self.backend.monitor.state if self.backend.monitor else State.READY

    @property
    def known_max_model_len(self) -> int | None:
        """The longest context, configured or told by a worker."""
        return self.max_model_len or self.backend.served.get(self.served_as or self.name)

    @property
    def base_label(self) -> str:
        """What the metrics call the model that a worker loads for it: an adapter's parent."""
        return self.parent or self.label or self.name

    async def is_awake(self) -> bool:
        """Whether a worker is up, as of a moment ago."""
        monitor = self.backend.monitor
        return monitor is None or await monitor.current_state() is State.READY

    def ask(self, call: Call, terms: Terms) -> Answer:
        """The answer to this call, from whoever gives it; nothing happens until it is opened."""
        if self.fallback is None:
            return self.backend.ask(call, self.served_as, terms)
        second = self.fallback
        is_broken = self.state in (State.UNHEALTHY, State.PAUSED)
        if is_broken and self.backend.monitor is not None:
            # No waiting request does, which would show when it is well again.
            self.backend.monitor.request_updates()
        return FallbackAnswer(
            None if is_broken else self.backend.ask(call, self.served_as, terms),
            lambda: second.ask(call, second.terms),
            after_seconds=self.fallback_after_seconds,
            on_fallback=lambda: self.metrics.note_fallback(self.name),
        )

    def entry(self, created: int) -> dict[str, Any]:
        """OpenAI's description of it, with what vLLM adds, and the state of its endpoint."""
        entry: dict[str, Any] = {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": self.owned_by,
        }
        if (length := self.known_max_model_len) is not None:
            entry["max_model_len"] = length
        if self.parent is not None:
            entry["parent"] = self.parent
        if (monitor := self.backend.monitor) is not None:
            entry |= {"state": monitor.state, "state_reason": monitor.reason}
        return entry


class Models:
    """The table of models.

    `open_model` is for an endpoint whose models are not configured: any name is handed on to it.
    Its own name stands in the list, for whatever is served, until a worker has told what that is.
    """

    def __init__(
        self,
        models: Iterable[Model],
        aliases: Mapping[str, str],
        *,
        open_model: Model | None = None,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._aliases = dict(aliases)
        self._open_model = open_model
        self._created = int(time.time())

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values() if self._open_model is None else [self._open_model])

    def find(self, name: str | None, key: Key) -> Model:
        """The model a request names; without a name, the only one that this key may use.

        Raises:
            ModelNotFound: there is none of this name, or this key may not use it.
            InvalidRequest: none is named, and there are several.
        """
        if name is None:
            return self._only(key)
        found = self._models.get(self._aliases.get(name, name)) or self._open(name)
        if found is None or not key.may_use(found.parent or found.name):
            raise self._not_found(name, key)
        return found

    def listing(self, key: Key) -> dict[str, Any]:
        """OpenAI's list of the models that this key may use."""
        entries = [model.entry(self._created) for model in self._listed(key)]
        return {"object": "list", "data": entries}

    def get(self, name: str, key: Key) -> dict[str, Any]:
        """OpenAI's description of one model; raises ModelNotFound."""
        for model in self._listed(key):
            if model.name == self._aliases.get(name, name):
                return model.entry(self._created)
        raise self._not_found(name, key)

    def take_over(self, former: "Models") -> None:
        """Keep what another table has learned, for this one comes in its place."""
        self._created = former._created

    def _only(self, key: Key) -> Model:
        usable = [model for model in self if key.may_use(model.parent or model.name)]
        names = [model for model in usable if model.parent is None]
        if len(names) == 1:
            return names[0]
        message = f"you must provide a model parameter. {self._names(key)}"
        raise InvalidRequest(message, param="model")

    def _not_found(self, name: str, key: Key) -> ModelNotFound:
        """With the names that there are for this key, and the one that was probably meant."""
        shown = name[:MAX_NAME_LENGTH]
        known = [model.name for model in self._listed(key)[:MAX_COMPARED]]
        close = nearest(shown, known)
        hint = f" Did you mean '{close}'?" if close else ""
        return ModelNotFound(
            f"The model '{shown}' does not exist or you do not have access to it."
            f"{hint} {self._names(key)}",
            param="model",
        )

    def _names(self, key: Key) -> str:
        """The models that there are for this key, as a sentence of bounded length."""
        names = [model.name for model in self._listed(key)]
        if not names:
            return "There is no model for this key."
        left_out = len(names) - MAX_SHOWN
        more = f" and {left_out} more (GET /v1/models)" if left_out > 0 else ""
        return f"There are: {', '.join(names[:MAX_SHOWN])}{more}."

    def _open(self, name: str) -> Model | None:
        model = self._open_model
        if model is None or name == model.name:
            return model
        return replace(model, name=name, served_as=name, label=model.name)

    def _listed(self, key: Key) -> list[Model]:
        if (model := self._open_model) is None:
            return [m for m in self._models.values() if key.may_use(m.parent or m.name)]
        if not model.backend.served:
            return [model]
        return [replace(model, name=name, served_as=name) for name in model.backend.served]
