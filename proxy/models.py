"""The models clients may name. Answered from memory: a list of models must never wake a GPU."""

import time
from typing import Any

import orjson

from proxy.errors import ModelNotFound


class Models:
    """The models of one endpoint.

    With names from the settings, just those are known. Without, every name is handed on to vLLM;
    the list shows the endpoint's id, which stands for whatever the endpoint serves, until an
    answer has told a name.
    """

    def __init__(self, names: tuple[str, ...], *, endpoint_id: str) -> None:
        self._names = [*names]
        self._endpoint_id = endpoint_id
        self._is_open = not names
        self._created = int(time.time())

    @property
    def wants_to_learn(self) -> bool:
        """Is no name known yet?"""
        return not self._names

    def learn_from(self, answer: bytes) -> None:
        """Note the name told by a plain answer, or by the first event of a stream."""
        try:
            fields = orjson.loads(answer.removeprefix(b"data: ").partition(b"\n")[0])
        except orjson.JSONDecodeError:
            return
        match fields:
            case {"model": str(name)} if name not in self._names:
                self._names.append(name)

    def check(self, name: str) -> None:
        """Raise ModelNotFound unless clients may name this model."""
        if not self._is_open and name not in self._names:
            raise ModelNotFound(
                f"The model '{name}' does not exist or you do not have access to it.", param="model"
            )

    def is_placeholder(self, name: str) -> bool:
        """Is this the endpoint's id, standing for whatever it serves?"""
        return self._is_open and name == self._endpoint_id

    def listing(self) -> dict[str, Any]:
        """OpenAI's list of models."""
        return {"object": "list", "data": [self._entry(name) for name in self._listed()]}

    def get(self, name: str) -> dict[str, Any]:
        """OpenAI's description of one model; raises ModelNotFound."""
        if name not in self._listed():
            raise ModelNotFound(f"The model '{name}' does not exist.", param="model")
        return self._entry(name)

    def _listed(self) -> list[str]:
        return self._names or [self._endpoint_id]

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "vllm"}
