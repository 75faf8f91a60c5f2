"""What the status page asks for: how things are, and a chat as the admin who looks at it.

Nobody is asked and no worker woken for `GET /admin/status`, but that RunPod is asked for its
counters as long as somebody looks, as by the list of models.
"""

import re
import time
from typing import Any, Final

import msgspec
from fastapi import Request, Response

from proxy import __version__
from proxy.api.answer import JSON
from proxy.api.route_table import find_route
from proxy.errors import UnknownRoute
from proxy.http.administration import AdminRouter
from proxy.http.authentication import key_of
from proxy.http.context import RequestContext, live_requests, services_of
from proxy.http.routes import inference, usage
from proxy.serving.overview import endpoints_now, models_now

CHAT: Final = find_route("POST /v1/chat/completions")
MAX_LIVE: Final = 50
"""How many requests under way are told of, the oldest ones."""
_HAVE: Final = re.compile(r"([0-9a-f]{8}):(\d{1,9})", re.ASCII)


async def status(request: Request) -> Response:
    """How endpoints, requests and errors are, and the samples that the page does not have yet."""
    services = services_of(request)
    services.request_updates()
    history, key = services.history, key_of(request)
    had = dict(_HAVE.findall(request.query_params.get("have", "")))
    body = {
        "copy": history.id,
        "version": __version__,
        "time": int(time.time()),
        "key": key.name,
        "endpoints": endpoints_now(services.backends, services.models),
        "models": models_now(services.models, key),
        "live": _live(live_requests(request)),
        "errors": history.errors,
        "step_seconds": history.step_seconds,
        "samples": history.after(int(had.get(history.id, 0))),
    }
    return Response(msgspec.json.encode(body), media_type=JSON)


async def chat(request: Request) -> Response:
    """A chat with any model, the same as a client's with the admin's key.

    So the page needs no key to chat by, which a script could steal from it.
    """
    if str(CHAT) not in services_of(request).settings.routes:
        raise UnknownRoute("Chats are not among PROXY_ROUTES.")
    return await inference.serve(CHAT, request)


def _live(contexts: list[RequestContext]) -> dict[str, Any]:
    """Those that a worker is to answer, the oldest first."""
    asked = sorted((c for c in contexts if c.route), key=lambda context: context.began)
    return {"total": len(asked), "requests": [_told(context) for context in asked[:MAX_LIVE]]}


def _told(context: RequestContext) -> dict[str, Any]:
    is_answered = context.first_byte_seconds is not None
    return {
        "id": context.id,
        "route": context.route,
        "key": context.key.name if context.key else "",
        "model": context.model,
        "seconds": round(time.monotonic() - context.began, 1),
        "phase": "answering" if is_answered else "waiting",
    }


router = AdminRouter()
router.add("/status", status, ["GET"])
router.add("/chat", chat, ["POST"])
router.add("/usage", usage.usage, ["GET"])
