"""The routes by which a client may reach a worker: an allow-list, and what we know of each.

A route that is not on the list is refused; nothing else ever becomes a job. What reaches the
worker is the path that the list has, never the client's own spelling of it.
"""

import re
from dataclasses import dataclass

from starlette.requests import Request

from proxy.api.dialects import CHAT, COMPLETIONS, MESSAGES, OPENAI, RESPONSES, Dialect
from proxy.errors import UnknownRoute

ROUTES = (
    "POST /v1/chat/completions",
    "POST /v1/chat/completions/batch",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v2/embed",
    "POST /v1/responses",
    "GET /v1/responses/{id}",
    "POST /v1/responses/{id}/cancel",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/decisions",
    "POST /v1/systemone",
    "POST /generative_scoring",
    "POST /v1/audio/transcriptions",
    "POST /v1/audio/translations",
    "POST /v1/audio/speech",
    "POST /v1/rerank",
    "POST /v2/rerank",
    "POST /rerank",
    "POST /v1/score",
    "POST /score",
    "POST /classify",
    "POST /pooling",
    "POST /tokenize",
    "POST /detokenize",
)
"""What vLLM serves to clients by default, 0.32 and 0.33 (`/v1/decisions` is new there).

Its routes for operators (sleep, LoRA loading, ...) are not here, nor those that it refuses unless
it was started with `--enable-scale-out` (`*/render`, `*/derender`, `/inference/v1/generate`), nor
`/v1/realtime`, which is a WebSocket.
"""

OWN_PATHS = ("/health", "/ready", "/metrics", "/openapi.json", "/v1/models")
"""What the proxy answers itself."""
_PATTERN = re.compile(
    r"(GET|POST|PUT|PATCH|DELETE) ((?:/(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\{[a-z][a-z0-9_]*\}))+)"
)
_PARAMETER = re.compile(r"\{(\w+)\}")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,199}")

_DIALECTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/responses/{id}": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
}
PROMPTS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt", "prompt_embeds"),
    "/v1/embeddings": ("input", "messages"),
    "/v1/messages": ("messages",),
}
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
"""What takes a multipart form. A route that an operator has added may take one as well."""
_NEVER_STREAMED = {
    "/v1/embeddings",
    "/v2/embed",
    "/v1/messages/count_tokens",
    "/v1/responses/{id}/cancel",
    "/v1/audio/speech",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/classify",
    "/pooling",
    "/tokenize",
    "/detokenize",
}
"""Routes whose answer is never a stream of events, whatever the request says (vLLM 0.32)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a worker, as a request named it."""

    method: str
    path: str
    response_id: str | None = None
    """Of the stored response that the path names."""
    prompts: tuple[str, ...] = ()
    """The fields of which one must be there; the first names what is missing."""
    dialect: Dialect = OPENAI
    takes_form: bool = False
    """Its body may be a multipart form."""
    may_stream: bool = True
    """Does vLLM stream here? Where it does not, it takes no notice of `stream`."""

    @property
    def needs_model(self) -> bool:
        """Do clients of this route always name a model?"""
        return bool(self.prompts)


def check_route(pattern: str) -> None:
    """Raises ValueError for what no list of routes can hold."""
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise ValueError(f"'{pattern}' is not a method and a path, as in POST /v1/embeddings")
    names = _PARAMETER.findall(match[2])
    if len(set(names)) < len(names):
        raise ValueError(f"'{pattern}' has two parameters of one name")
    if any(match[2] == own or match[2].startswith(f"{own}/") for own in OWN_PATHS):
        raise ValueError(f"'{pattern}' is answered by the proxy itself; leave it out")


def route_of(request: Request, pattern: str) -> Route:
    """The route of a request that matched this path of the list.

    Raises:
        UnknownRoute: the path is spelt with tricks.
    """
    values: dict[str, str] = request.path_params
    is_plain = b"%" not in request.scope["raw_path"]
    if not is_plain or not all(_SEGMENT.fullmatch(value) for value in values.values()):
        raise UnknownRoute(f"Unknown request URL: {request.method} {request.url.path}.")
    return Route(
        request.method,
        _PARAMETER.sub(lambda found: values[found[1]], pattern),
        values.get("id") if pattern.startswith("/v1/responses/") else None,
        PROMPTS.get(pattern, ()),
        _DIALECTS.get(pattern, OPENAI),
        pattern in FORMS or f"{request.method} {pattern}" not in ROUTES,
        may_stream=pattern not in _NEVER_STREAMED,
    )
