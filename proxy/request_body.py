"""The client's JSON body: read up to a limit, checked for what we rely on, otherwise untouched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from proxy.errors import InvalidRequest, RequestTooLarge

DISCARDED_BYTES = 64 * 1024 * 1024
"""How much of a body that is too large is still read, so that the client gets to our answer."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body as it was sent, and the fields we look at."""

    raw: bytes
    fields: Mapping[str, Any]
    model: str
    wants_stream: bool

    def without_model(self) -> bytes:
        """The body with no `model`, so that vLLM takes the one it serves."""
        return orjson.dumps({k: v for k, v in self.fields.items() if k != "model"})


async def read(request: Request, *, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        RequestTooLarge: it is longer than `max_bytes`.
        ClientDisconnect: the client left before it was sent.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > DISCARDED_BYTES:
            break
    if size > max_bytes:
        raise RequestTooLarge(
            f"The request body is larger than {max_bytes:,} bytes, the most this service takes."
        )
    return b"".join(chunks)


def check(raw: bytes, *, prompt_field: str) -> Body:
    """Check what we rely on: `model`, `stream`, and that `prompt_field` is there.

    Raises:
        InvalidRequest: with the name of the field that is wrong as its `param`.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload.)"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body of your request must be a JSON object.")
    model = fields.get("model")
    if model is None:
        raise InvalidRequest("you must provide a model parameter", param="model")
    if not isinstance(model, str) or not model:
        raise _wrong_type("model", "a non-empty string")
    wants_stream = fields.get("stream")
    if not isinstance(wants_stream, bool | None):
        raise _wrong_type("stream", "a boolean")
    if prompt_field == "messages":
        _check_messages(fields.get("messages"))
    else:
        _check_prompt(fields, prompt_field)
    return Body(raw, fields, model, bool(wants_stream))


def _check_messages(messages: Any) -> None:
    if messages is None:
        raise InvalidRequest("Missing required parameter: 'messages'.", param="messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong_type("messages", "a non-empty array")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", "an object")
        if not isinstance(message.get("role"), str):
            raise _wrong_type(f"messages[{index}].role", "a string")


def _check_prompt(fields: Mapping[str, Any], name: str) -> None:
    # vLLM also takes `prompt_embeds` in place of a prompt, so its absence alone is not an error.
    prompt = fields.get(name)
    if prompt is None and "prompt_embeds" not in fields:
        raise InvalidRequest(f"Missing required parameter: '{name}'.", param=name)
    if not isinstance(prompt, str | list | None):
        raise _wrong_type(name, "a string or an array")


def _wrong_type(name: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid type for '{name}': expected {wanted}.", param=name)


__all__ = ["Body", "ClientDisconnect", "check", "read"]
