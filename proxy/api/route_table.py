"""The routes by which a client may reach a worker: an allow-list, and what is known of each.

A route that is not on the list is refused; nothing else ever becomes a job. What reaches the
worker is the path that the list has, never the client's own spelling of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from proxy.api.dialects import CHAT, COMPLETIONS, MESSAGES, OPENAI, RESPONSES, Dialect


@dataclass(frozen=True, slots=True)
class Route:
    """One route of a worker: a row of the table, or what a request named by it."""

    method: str
    path: str
    """With its parameters in braces, or filled in."""
    dialect: Dialect = OPENAI
    prompts: tuple[str, ...] = ()
    """The fields of which one must be there; the first names what is missing."""
    takes_form: bool = False
    """Its body may be a multipart form."""
    may_stream: bool = True
    """Whether vLLM streams here; where not, it takes no notice of `stream` (vLLM 0.32)."""
    has_usage_option: bool = False
    """A stream tells its usage only where `stream_options` asks for it."""
    stores_response: bool = False
    """What it answers can be asked for later, by its id."""
    counts_tokens: bool = False
    """It generates nothing: it tells tokens, or how many there are."""
    response_id: str | None = None
    """Of the stored response that the path names."""

    def __str__(self) -> str:
        """As the settings have it."""
        return f"{self.method} {self.path}"

    @property
    def needs_model(self) -> bool:
        """Whether clients of this route always name a model."""
        return bool(self.prompts)

    @property
    def is_chat(self) -> bool:
        """Whether it is OpenAI's chat."""
        return self.dialect is CHAT


def _post(path: str, *, may_stream: bool = False, counts_tokens: bool = False) -> Route:
    return Route("POST", path, may_stream=may_stream, counts_tokens=counts_tokens)


TABLE = (
    Route("POST", "/v1/chat/completions", CHAT, ("messages",), has_usage_option=True),
    _post("/v1/chat/completions/batch", may_stream=True),
    Route(
        "POST",
        "/v1/completions",
        COMPLETIONS,
        ("prompt", "prompt_embeds"),
        has_usage_option=True,
    ),
    Route("POST", "/v1/embeddings", prompts=("input", "messages"), may_stream=False),
    _post("/v2/embed"),
    Route("POST", "/v1/responses", RESPONSES, stores_response=True),
    Route("GET", "/v1/responses/{id}", RESPONSES),
    _post("/v1/responses/{id}/cancel"),
    Route("POST", "/v1/messages", MESSAGES, ("messages",)),
    Route("POST", "/v1/messages/count_tokens", MESSAGES, may_stream=False, counts_tokens=True),
    _post("/v1/decisions", may_stream=True),
    _post("/v1/systemone", may_stream=True),
    _post("/generative_scoring", may_stream=True),
    Route("POST", "/v1/audio/transcriptions", takes_form=True),
    Route("POST", "/v1/audio/translations", takes_form=True),
    _post("/v1/audio/speech"),
    _post("/v1/rerank"),
    _post("/v2/rerank"),
    _post("/rerank"),
    _post("/v1/score"),
    _post("/score"),
    _post("/classify"),
    _post("/pooling"),
    _post("/tokenize", counts_tokens=True),
    _post("/detokenize", counts_tokens=True),
)
"""What vLLM serves to clients by default, 0.32 and 0.33 (`/v1/decisions` is new there).

Its routes for operators (sleep, LoRA loading, ...) are not here, nor those that it refuses unless
it was started with `--enable-scale-out` (`*/render`, `*/derender`, `/inference/v1/generate`), nor
`/v1/realtime`, which is a WebSocket.
"""
ROUTES = tuple(map(str, TABLE))

OWN_PATHS = (
    *("/health", "/ready", "/metrics", "/openapi.json", "/channel", "/v1/models", "/v1/usage"),
    *("/admin", "/page"),
)
"""What the proxy answers itself."""
_PATTERN = re.compile(
    r"(GET|POST|PUT|PATCH|DELETE) ((?:/(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\{[a-z][a-z0-9_]*\}))+)"
)
_PARAMETER = re.compile(r"\{(\w+)\}")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,199}")

_BY_NAME = {str(route): route for route in TABLE}


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


def find_route(pattern: str) -> Route:
    """The table's row for `METHOD /path`, or a new one for a route that an operator has added."""
    method, _, path = pattern.partition(" ")
    return _BY_NAME.get(pattern) or Route(method, path, takes_form=True)


def named_by(route: Route, parameters: Mapping[str, str], *, is_plain: bool) -> Route | None:
    """The route with the values of its path's parameters; None if the path is spelt with tricks.

    `is_plain`: nothing in the path was escaped.
    """
    if not is_plain or not all(_SEGMENT.fullmatch(value) for value in parameters.values()):
        return None
    if not parameters:
        return route
    is_response = route.path.startswith("/v1/responses/")
    return replace(
        route,
        path=_PARAMETER.sub(lambda found: parameters[found[1]], route.path),
        response_id=parameters.get("id") if is_response else None,
    )
