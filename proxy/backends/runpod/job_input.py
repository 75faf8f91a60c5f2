"""What a job is given: the client's request, in the form that workers read."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.api.call import Call
from proxy.backends.runpod.wire import PROTOCOL


def job_input(call: Call, served_as: str | None) -> dict[str, Any]:
    """A job's input: what RunPod's own OpenAI route sends, and what our own worker reads.

    A JSON body is the bytes that the client sent. A request without one, or with a form, has no
    place in RunPod's shape; `route` and `body` are what RunPod's worker takes for it, `body_base64`
    what ours does.
    """
    told: dict[str, Any] = {"protocol": PROTOCOL, "request_id": call.request_id}
    if call.headers:
        told["headers"] = call.headers
    ours = {"proxy": told}
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


def inviting(job_input: Mapping[str, Any], channel: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a job whose frames may come by a channel, which is described so."""
    return {**job_input, "proxy": {**job_input["proxy"], "channel": channel}}
