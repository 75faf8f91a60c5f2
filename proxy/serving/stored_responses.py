"""Whose each stored response is, and which model's worker has it.

vLLM keeps stored responses in one worker's memory, and gives one to whoever knows its id. Here a
response belongs to the key that made it; for any other key it does not exist.

What is known is in memory, like the responses themselves, and in Redis where copies share one
(`proxy.serving.shared_responses`). A proxy that was started again knows
nothing of them, so it asks for an unknown one only where no other client can have made it and no
GPU is woken: if there is one key, and one model that it can be of, whose endpoint has a worker up.
A worker that is yet to start cannot have it.
"""

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from proxy.access.keys import Key, Keys
from proxy.api.call import Call, JSONContent
from proxy.errors import InvalidRequest, ResponseNotFound
from proxy.serving.models import Model, Models

MAX_RESPONSES = 10_000
"""Of so many, the latest, we know whose they are."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The names of the key that made a response, and of the model whose worker has it."""

    key: str
    model: str


class StoredResponses:
    """The table of owners."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, Owner] = OrderedDict()

    async def note(self, response_id: str, key: Key, model: Model) -> None:
        """A response was made with this key, by a worker of this model."""
        self._keep(response_id, Owner(key.name, model.name))

    async def owner_of(self, response_id: str) -> Owner | None:
        """Whose a response is, if that is known."""
        return self._owners.get(response_id)

    async def model_of(
        self, response_id: str, key: Key, keys: Keys, models: Models, *, named: str | None = None
    ) -> Model:
        """The model whose worker may have stored this response; if unknown, the one of this name.

        Raises:
            ResponseNotFound: no worker can have it, or it is not this key's.
            SharedStateAway: another copy may know, and cannot be asked.
        """
        owner = await self.owner_of(response_id)
        try:
            model = models.find(owner.model if owner else named, key)
        except InvalidRequest:
            raise _not_found(response_id) from None
        if owner is not None and owner.key == key.name:
            return model
        if owner is not None or keys.are_several or not await model.is_awake():
            raise _not_found(response_id)
        return model

    async def check(self, call: Call, key: Key, keys: Keys, models: Models) -> None:
        """That a new response builds on none, and takes the id of none, that is another key's.

        Raises:
            ResponseNotFound, SharedStateAway: the one it builds on, as `model_of`.
            InvalidRequest: it is to have the id of another key's.
        """
        if not call.route.stores_response or not isinstance(call.content, JSONContent):
            return
        if previous := _text(call.content, "previous_response_id"):
            await self.model_of(previous, key, keys, models, named=call.model)
        # vLLM takes the id that a client chooses, and would put its response in the other's place.
        if chosen := _text(call.content, "request_id"):
            owner = await self.owner_of(chosen)
            if owner is not None and owner.key != key.name:
                raise InvalidRequest("This request_id cannot be used.", param="request_id")

    def _keep(self, response_id: str, owner: Owner) -> None:
        self._owners.setdefault(response_id, owner)
        if len(self._owners) > MAX_RESPONSES:
            self._owners.popitem(last=False)


def _text(content: JSONContent, name: str) -> str:
    try:
        return msgspec.json.decode(content.readable.get(name, b'""'), type=str)
    except msgspec.ValidationError:
        return ""  # vLLM says what is wrong with it


def _not_found(response_id: str) -> ResponseNotFound:
    return ResponseNotFound(f"Response with id '{response_id}' not found.", param="response_id")
