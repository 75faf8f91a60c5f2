"""A job's input, checked and turned into a request to vLLM.

Three forms, told apart by their keys:

- `openai_route` + `openai_input`: what RunPod's own OpenAI route and our proxy send;
- `route` + `method` + `body`: any route vLLM serves; `body_base64` + `content_type` in place of
  `body` for one that is not JSON, such as an audio upload;
- `prompt` or `messages` + `sampling_params` + `stream`: RunPod's native shorthand. What belongs in
  `sampling_params` may stand beside it too, where RunPod's two packages for LangChain put it.

The body itself is vLLM's to judge and passes untouched.
"""

import base64
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import unquote

from worker.errors import InvalidInput

log = logging.getLogger(__name__)

PROTOCOL: Final = 1
METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
JSON: Final = "application/json"

_SAMPLING_NAMES: Final = """
add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template
chat_template_kwargs continue_final_message documents echo frequency_penalty ignore_eos
include_reasoning include_stop_str_in_output length_penalty logit_bias logprobs
max_completion_tokens max_tokens min_p min_tokens mm_processor_kwargs model n parallel_tool_calls
presence_penalty priority prompt_logprobs reasoning_effort repetition_penalty response_format
return_token_ids return_tokens_as_token_ids seed skip_special_tokens spaces_between_special_tokens
stop stop_token_ids stream_options structured_outputs suffix temperature thinking_token_budget
tool_choice tools top_k top_logprobs top_p truncate_prompt_tokens use_beam_search user vllm_xargs
"""
SAMPLING: Final = frozenset(_SAMPLING_NAMES.split())
"""Fields of vLLM's requests (0.32, 0.33) that are taken beside a prompt."""

_SHORTHAND_NAMES: Final = """
prompt messages sampling_params stream proxy method
max_batch_size min_batch_size batch_size_growth_factor apply_chat_template use_openai_format
"""
SHORTHAND: Final = frozenset(_SHORTHAND_NAMES.split())
"""The other fields of the shorthand. Those of the second line once steered how the official image
cut streams, and in which shape it answered."""

_ROUTE: Final = re.compile(r"/(?![/\\])[!-~]*")
_HEADER_VALUE: Final = re.compile(r"[!-~]{1,200}")
HEADERS: Final = frozenset({"traceparent", "x-session-id", "x-vllm-priority"})
"""Those that vLLM is sent, if our proxy names them."""

_TYPE_NAMES: Final = {dict: "an object", str: "a string", bool: "a boolean"}


@dataclass(frozen=True)
class VLLMRequest:
    """What to ask vLLM."""

    method: str
    route: str
    body: bytes | None
    content_type: str
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """What else our proxy hands on of its client's headers."""


def wants_frames(job: Mapping[str, Any]) -> bool:
    """Whether our proxy sent this job, so that it expects numbered frames."""
    job_input = job.get("input")
    return isinstance(job_input, dict) and isinstance(job_input.get("proxy"), dict)


def channel_of(job: Mapping[str, Any]) -> Any:
    """What our proxy says of its direct channel, unchecked; None if it has none."""
    return job["input"]["proxy"].get("channel") if wants_frames(job) else None


def parse(job: Mapping[str, Any], model: str | None) -> VLLMRequest:
    """The request a job asks for; `model` is filled in where the shorthand names none.

    Raises:
        InvalidInput: the input has none of the three forms, or a part of it is wrong.
    """
    job_input = job.get("input")
    if not isinstance(job_input, dict):
        raise InvalidInput("The job's input must be an object.", "input")
    request_id = _request_id(job_input, str(job.get("id", "")))
    if job_input.get("openai_route") is not None or job_input.get("openai_input") is not None:
        request = _openai_request(job_input, request_id)
    elif job_input.get("route") is not None:
        request = _any_request(job_input, request_id)
    else:
        request = _shorthand_request(job_input, request_id, model)
    headers = _headers(job_input)
    return replace(request, headers=headers) if headers else request


def _headers(job_input: dict[str, Any]) -> dict[str, str]:
    """The headers that vLLM is sent; others, and what is no header's value, are left out."""
    told = (job_input.get("proxy") or {}).get("headers")
    if not isinstance(told, dict):
        return {}
    return {
        name: value
        for name, value in told.items()
        if name in HEADERS and isinstance(value, str) and _HEADER_VALUE.fullmatch(value)
    }


def _request_id(job_input: dict[str, Any], job_id: str) -> str:
    proxy = job_input.get("proxy")
    if proxy is None:
        return job_id
    if not isinstance(proxy, dict) or proxy.get("protocol") != PROTOCOL:
        raise InvalidInput(f"This worker speaks protocol {PROTOCOL}.", "proxy.protocol")
    request_id = proxy.get("request_id", job_id)
    if not isinstance(request_id, str) or not _HEADER_VALUE.fullmatch(request_id):
        raise InvalidInput("A request id is up to 200 visible characters.", "proxy.request_id")
    return request_id


def _openai_request(job_input: dict[str, Any], request_id: str) -> VLLMRequest:
    route = _route(_typed(job_input, "openai_route", str, CHAT), "openai_route")
    body = _typed(job_input, "openai_input", dict, None)
    # RunPod's own route asks for the models with an input that is absent or empty.
    reads = body is None or (not body and route.startswith("/v1/models"))
    method = _method(job_input, "GET" if reads else "POST")
    content = None if method == "GET" or body is None else _json(body)
    return VLLMRequest(method, route, content, JSON, request_id)


def _any_request(job_input: dict[str, Any], request_id: str) -> VLLMRequest:
    route = _route(_typed(job_input, "route", str, ""), "route")
    content, content_type = _content(job_input)
    method = _method(job_input, "GET" if content is None else "POST")
    return VLLMRequest(method, route, content, content_type, request_id)


def _content(job_input: dict[str, Any]) -> tuple[bytes | None, str]:
    encoded = _typed(job_input, "body_base64", str, None)
    if encoded is None:
        body = job_input.get("body")
        return (None if body is None else _json(body)), JSON
    content_type = _typed(job_input, "content_type", str, "application/octet-stream")
    if not content_type.isprintable() or not content_type.isascii():
        raise InvalidInput("The content type is not one.", "content_type")
    try:
        return base64.b64decode(encoded, validate=True), content_type
    except ValueError:
        raise InvalidInput("The body is not base64.", "body_base64") from None


def _shorthand_request(
    job_input: dict[str, Any], request_id: str, model: str | None
) -> VLLMRequest:
    body: dict[str, Any] = {"model": model} if model else {}
    body |= _beside(job_input)
    body |= _typed(job_input, "sampling_params", dict, {})
    body["stream"] = _typed(job_input, "stream", bool, False)
    if job_input.get("messages") is not None:
        route, body["messages"] = CHAT, job_input["messages"]
    elif job_input.get("prompt") is not None:
        route, body["prompt"] = COMPLETIONS, job_input["prompt"]
    else:
        raise InvalidInput(
            "The input needs openai_route and openai_input, or route and body, or messages, "
            "or prompt.",
            "input",
        )
    return VLLMRequest("POST", route, _json(body), JSON, request_id)


def _beside(job_input: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the prompt and belongs in a request; the log names what does not."""
    if unknown := sorted(set(job_input) - SAMPLING - SHORTHAND):
        log.warning("a job's input has fields that mean nothing: %s", ", ".join(map(repr, unknown)))
    taken = SAMPLING & set(job_input)
    return {name: job_input[name] for name in sorted(taken) if job_input[name] is not None}


def _typed(job_input: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = job_input.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise InvalidInput(f"{key} must be {_TYPE_NAMES[kind]}.", key)
    return value


def _route(route: str, param: str) -> str:
    """The route if it is a plain absolute path on vLLM, perhaps with a query."""
    path = unquote(route.partition("?")[0])
    segments = re.split(r"[/\\]", path)
    if not _ROUTE.fullmatch(route) or "#" in route or ".." in segments or "." in segments:
        raise InvalidInput(f"{param} must be an absolute path such as {CHAT}.", param)
    return route


def _method(job_input: dict[str, Any], default: str) -> str:
    method: str = _typed(job_input, "method", str, default)
    if method.upper() not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(sorted(METHODS))}.", "method")
    return method.upper()


def _json(value: Any) -> bytes:
    # ASCII only: a lone surrogate in a prompt, which JSON allows, has no UTF-8.
    return json.dumps(value, separators=(",", ":")).encode()
