"""A stream's usage, which vLLM tells where `stream_options` ask for it."""

from dataclasses import replace
from typing import Any

import msgspec

from proxy.api.call import Call, JSONContent

MAX_OPTIONS_BYTES = 10_000
"""Of `stream_options`, which hold two booleans."""


def asking_for_usage(call: Call) -> tuple[Call, bool]:
    """The call with usage asked for at the end of its stream, and whether its client did not.

    What vLLM would refuse, or take in a way of its own (`"include_usage": "no"`), stays as it is.
    """
    content = call.content
    if not call.route.has_usage_option or not isinstance(content, JSONContent):
        return call, False
    options = _stream_options(content)
    if not content.wants_stream or options is None:
        return call, False
    in_each_chunk = options.get("continuous_usage_stats")
    if options.get("include_usage") not in (None, False) or in_each_chunk not in (
        None,
        False,
        True,
    ):
        return call, False
    if in_each_chunk:  # alone it means nothing to vLLM, beside `include_usage` it does
        options["continuous_usage_stats"] = False
    asked = {"stream_options": msgspec.Raw(msgspec.json.encode(options | {"include_usage": True}))}
    fields, readable = dict(content.fields) | asked, dict(content.readable) | asked
    raw = msgspec.json.encode(fields)
    changed = replace(content, raw=raw, fields=fields, readable=readable)
    return replace(call, content=changed), True


def wants_usage(content: JSONContent) -> bool:
    """Whether the client asks for a stream's usage."""
    return bool((_stream_options(content) or {}).get("include_usage"))


def _stream_options(content: JSONContent) -> dict[str, Any] | None:
    """The stream's options; None if they are no such object, which vLLM refuses."""
    value = content.readable.get("stream_options", msgspec.Raw(b"{}"))
    if len(memoryview(value)) > MAX_OPTIONS_BYTES:
        return None
    try:
        return msgspec.json.decode(value, type=dict[str, Any] | None) or {}
    except (ValueError, RecursionError):
        return None
