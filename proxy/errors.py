"""Every error a client can see, and the one table from exception to HTTP answer.

ProxyError                          what the client sees
├── InvalidRequest                  400  invalid_request_error
│   ├── IdempotencyKeyReused        400  invalid_request_error  idempotency_key_reused
│   ├── InvalidAPIKey               401  invalid_request_error  invalid_api_key
│   ├── ModelNotFound               404  invalid_request_error  model_not_found
│   ├── ResponseNotFound            404  invalid_request_error  response_not_found
│   ├── KeyNotFound                 404  invalid_request_error  key_not_found
│   ├── UnknownRoute                404  invalid_request_error  unknown_url
│   ├── RouteNotServed              404  invalid_request_error  route_not_served
│   ├── NotPermitted                403  invalid_request_error  permission_denied
│   ├── MethodNotAllowed            405  invalid_request_error  method_not_allowed
│   ├── RequestTimeout              408  invalid_request_error  request_timeout
│   ├── RequestTooLarge             413  invalid_request_error  request_too_large
│   ├── UnsupportedMediaType        415  invalid_request_error  unsupported_media_type
│   ├── WebSocketsNotServed         426  invalid_request_error  websockets_not_served
│   └── HeadersTooLarge             431  invalid_request_error  headers_too_large
├── EndpointOverloaded              429  requests               endpoint_overloaded, Retry-After
├── RateLimitExceeded               429  requests               rate_limit_exceeded, Retry-After
│   ├── TokenLimitExceeded          429  tokens                 rate_limit_exceeded, Retry-After
│   └── PromptOverLimit             429  tokens                 rate_limit_exceeded
├── InsufficientQuota               429  insufficient_quota     insufficient_quota, Retry-After
├── InternalError                   500  server_error           internal_error
├── WorkerFailed                    502  server_error           worker_failed
│   └── StartCancelled              502  server_error           worker_failed
├── SealingFailed                   502  server_error           sealing_failed
├── UpstreamMisconfigured           502  server_error           upstream_misconfigured
├── UpstreamUnavailable             503  server_error           upstream_unavailable
│   ├── UpstreamBusy                503  server_error           upstream_unavailable, Retry-After
│   └── NotSent                     503  server_error           upstream_unavailable
│       └── ConnectTimeout          503  server_error           connect_timeout
├── KeysUnavailable                 503  server_error           keys_unavailable, Retry-After
├── LedgerUnavailable               503  server_error           ledger_unavailable, Retry-After
├── SharedStateAway                 503  server_error           shared_state_away, Retry-After
├── TooManyConnections              503  server_error           too_many_connections, Retry-After
├── MemoryLimitReached              503  server_error           memory_limit_reached, Retry-After
├── Stopping                        503  server_error           shutting_down
├── ColdStartTimeout                503  server_error           cold_start_timeout, Retry-After
├── ModelStartFailed                503  server_error           model_start_failed
├── ModelAsleep                     503  server_error           model_asleep
├── DeadlinePassed                  504  server_error           timeout
│   ├── FirstTokenTimeout           504  server_error           first_token_timeout
│   ├── IdleTimeout                 504  server_error           idle_timeout
│   └── TotalTimeout                504  server_error           total_timeout
└── VLLMError                       what vLLM itself answered, untouched

JobNotFound is raised by `Endpoint` and never reaches a client: `Jobs` turns it into
WorkerFailed. The shapes follow https://platform.openai.com/docs/guides/error-codes, so that the
SDKs raise their own classes. Messages never hold a key, a prompt or a traceback.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Final

import msgspec

from proxy.foreign_json import encode

MAX_MESSAGE_CHARS: Final = 2_000
"""How much is told of what a server says in place of an error."""


class ProxyError(Exception):
    """An error that leaves as `{"error": {"message", "type", "param", "code"}}`."""

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retry: ClassVar[bool] = False
    """Whether a client's SDK may repeat the request; if not, `x-should-retry: false` says so."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def envelope(self) -> bytes:
        """The error envelope, as one line of JSON."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    @property
    def body(self) -> bytes:
        """The error as a whole answer."""
        return self.envelope

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` where it is known, and whether an SDK should try again by itself."""
        headers = {} if self.retry else {"x-should-retry": "false"}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_seconds)))
        return headers


class InvalidRequest(ProxyError):
    """The request is wrong, and would be wrong again: no job was started."""

    status = 400
    type = "invalid_request_error"


class IdempotencyKeyReused(InvalidRequest):
    """The same `Idempotency-Key` came with another request."""

    code = "idempotency_key_reused"


class InvalidAPIKey(InvalidRequest):
    """No key, or one we do not know."""

    status = 401
    code = "invalid_api_key"


class ModelNotFound(InvalidRequest):
    """No endpoint of ours serves this model."""

    status = 404
    code = "model_not_found"


class ResponseNotFound(InvalidRequest):
    """We do not know which worker stored this response, if any did."""

    status = 404
    code = "response_not_found"


class KeyNotFound(InvalidRequest):
    """There is no API key of this name."""

    status = 404
    code = "key_not_found"


class UnknownRoute(InvalidRequest):
    """We serve no such path."""

    status = 404
    code = "unknown_url"


class RouteNotServed(InvalidRequest):
    """We serve the path, but the model's server does not."""

    status = 404
    code = "route_not_served"


class NotPermitted(InvalidRequest):
    """The key is a good one, but not for this."""

    status = 403
    code = "permission_denied"


class MethodNotAllowed(InvalidRequest):
    """We serve the path, but not with this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: Iterable[str]) -> None:
        super().__init__(message)
        self.allow = ", ".join(sorted(allow))

    @property
    def headers(self) -> dict[str, str]:
        """With the methods that are allowed."""
        return super().headers | {"allow": self.allow}


class RequestTimeout(InvalidRequest):
    """The body did not come in time."""

    status = 408
    code = "request_timeout"
    retry = True


class RequestTooLarge(InvalidRequest):
    """The body is larger than RunPod would take."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is in a form that we do not read."""

    status = 415
    code = "unsupported_media_type"


class WebSocketsNotServed(InvalidRequest):
    """The request was a WebSocket's handshake."""

    status = 426
    code = "websockets_not_served"

    def __init__(self) -> None:
        super().__init__(
            "WebSockets are not served. Send the request by POST over HTTP, "
            'with "stream": true to have its answer as Server-Sent Events.'
        )

    @property
    def headers(self) -> dict[str, str]:
        """With the protocol that is served, as RFC 9110 (15.5.22) asks, and closing."""
        return super().headers | {"upgrade": "HTTP/1.1", "connection": "upgrade, close"}


class HeadersTooLarge(InvalidRequest):
    """The headers, with the request line, are larger than any honest request's."""

    status = 431
    code = "headers_too_large"


class EndpointOverloaded(ProxyError):
    """So many requests are under way, or wait for a worker, that one more would be too many."""

    status = 429
    type = "requests"
    code = "endpoint_overloaded"
    retry = True


class RateLimitExceeded(ProxyError):
    """The API key has used up what it may use for now."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retry = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self._limits = dict(limits or {})

    @property
    def headers(self) -> dict[str, str]:
        """With what is left of the limit, and until when."""
        return super().headers | self._limits


class TokenLimitExceeded(RateLimitExceeded):
    """It has used up its tokens for now."""

    type = "tokens"


class PromptOverLimit(RateLimitExceeded):
    """The prompt alone is more tokens than the API key has in a minute."""

    type = "tokens"
    retry = False


class InsufficientQuota(ProxyError):
    """A budget is spent: the API key's of the day or the month, or the endpoint's of the day."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class InternalError(ProxyError):
    """A defect of ours; the log has the traceback, the client has the request id."""

    code = "internal_error"


class WorkerFailed(ProxyError):
    """The job ended without the answer it owed."""

    status = 502
    code = "worker_failed"


class StartCancelled(WorkerFailed):
    """The worker that held the job was shut down before it had started: no handler has seen it."""

    retry = True


class SealingFailed(ProxyError):
    """The endpoint's jobs are sealed, and the worker could not open this one or did not seal."""

    status = 502
    code = "sealing_failed"


class UpstreamMisconfigured(ProxyError):
    """RunPod refused our key, or knows no such endpoint."""

    status = 502
    code = "upstream_misconfigured"


class UpstreamUnavailable(ProxyError):
    """RunPod could not be reached, or answered with an error of its own."""

    status = 503
    code = "upstream_unavailable"


class UpstreamBusy(UpstreamUnavailable):
    """RunPod answered 429."""

    retry = True


class NotSent(UpstreamUnavailable):
    """The call never reached RunPod, so repeating it cannot start a job twice."""


class ConnectTimeout(NotSent):
    """No connection could be had in time."""

    code = "connect_timeout"


class KeysUnavailable(ProxyError):
    """The database of keys does not answer, so a key of it cannot be known to be good."""

    status = 503
    code = "keys_unavailable"
    retry = True


class LedgerUnavailable(ProxyError):
    """The database of the ledger does not answer."""

    status = 503
    code = "ledger_unavailable"
    retry = True


class SharedStateAway(ProxyError):
    """Another copy of the proxy may know, and Redis does not answer."""

    status = 503
    code = "shared_state_away"
    retry = True


class TooManyConnections(ProxyError):
    """So many connections are open that one more would be too many."""

    status = 503
    code = "too_many_connections"
    retry = True


class MemoryLimitReached(ProxyError):
    """The bodies and buffers of all requests hold as much memory as they may."""

    status = 503
    code = "memory_limit_reached"
    retry = True


class Stopping(ProxyError):
    """The proxy was told to stop, and the request did not end in time."""

    status = 503
    code = "shutting_down"
    retry = True


class ColdStartTimeout(ProxyError):
    """No worker took the call in time. The GPU may be up when the client tries again."""

    status = 503
    code = "cold_start_timeout"

    def __init__(
        self, seconds: float, setting: str, reason: str, *, retry_after_seconds: float
    ) -> None:
        super().__init__(
            f"No worker took the request for {seconds:g} s ({setting}): {reason}. "
            "Try again in a while.",
            retry_after_seconds=retry_after_seconds,
        )


class ModelStartFailed(ProxyError):
    """The endpoint's worker could not start. The message has the cause, where it is known."""

    status = 503
    code = "model_start_failed"


class ModelAsleep(ProxyError):
    """No worker is up, and the request is not worth waking one. Nothing was started."""

    status = 503
    code = "model_asleep"


class DeadlinePassed(ProxyError):
    """The answer, or the next piece of it, did not come in time; as such, by RunPod's limits."""

    status = 504
    code = "timeout"


class FirstTokenTimeout(DeadlinePassed):
    """A worker took the job, but did not begin to answer in time."""

    code = "first_token_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"No first output from the worker for {seconds:g} s (first_token_timeout_seconds)."
        )


class IdleTimeout(DeadlinePassed):
    """The answer began, and nothing more of it came in time."""

    code = "idle_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"No output from the worker for {seconds:g} s (idle_timeout_seconds).")


class TotalTimeout(DeadlinePassed):
    """The whole of it took too long."""

    code = "total_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request took longer than {seconds:g} s (total_timeout_seconds).")


class VLLMError(ProxyError):
    """An error that vLLM itself answered: its status and its body are handed on as they are.

    A body that no client would read as an error (FastAPI's `detail`, a plain text, a page of HTML
    of a server on the way, nothing at all) is put in the envelope.
    """

    code = "vllm_error"  # for the log and the metrics: the body has vLLM's own

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"vLLM answered {status}")
        self.status = status
        self._body = body
        self._error, self.is_told = _error_object(status, body)
        """Whether the body has a form that clients read as an error."""

    @property
    def body(self) -> bytes:
        """vLLM's own body, or its envelope."""
        return self._body if self.is_told else self.envelope

    @property
    def envelope(self) -> bytes:
        """vLLM's error on one line, in the envelope that the SDKs look for."""
        return encode({"error": self._error})

    @property
    def headers(self) -> dict[str, str]:
        """A server that is too busy may be asked again."""
        return {} if self.status == 429 else super().headers


class JobNotFound(Exception):
    """RunPod knows no such job, or has forgotten it."""


def _error_object(status: int, body: bytes) -> tuple[Mapping[str, Any], bool]:
    """The error that a body tells, and whether it has a form that clients read as one.

    Clients read an object with a `message`, alone (Cohere's, and vLLM's older ones) or as the
    `error` of another.
    """
    parsed: Any = None
    with suppress(ValueError, RecursionError):
        parsed = msgspec.json.decode(body)
    inner = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if isinstance(inner, dict) and isinstance(inner.get("message"), str):
        return inner, True
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = _message(parsed, inner) if parsed is not None else _text(body)
    message = message or f"The model's server answered HTTP {status} and no reason."
    return {"message": message, "type": kind, "param": None, "code": None}, False


def _message(parsed: Any, inner: Any) -> str:
    """What JSON that is no error says: FastAPI's `detail`, an `error` that is a text."""
    details = (
        parsed.get("detail", parsed.get("title", inner)) if isinstance(parsed, dict) else parsed
    )
    items = details if isinstance(details, list) else [details]
    texts = [item.get("msg") if isinstance(item, dict) else item for item in items]
    return "; ".join(text for text in texts if isinstance(text, str))[:MAX_MESSAGE_CHARS]


def _text(body: bytes) -> str:
    """A plain text; a page of HTML says nothing to a program."""
    text = body[: 4 * MAX_MESSAGE_CHARS].decode(errors="replace").strip()
    return "" if text.startswith("<") else text[:MAX_MESSAGE_CHARS]
