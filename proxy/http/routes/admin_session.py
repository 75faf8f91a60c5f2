"""`/admin/session`: POST with a key that may administer logs a browser in, DELETE logs it out.

GET tells who administers. The browser keeps an opaque cookie, which no script of a page can read.
"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from proxy.access.keys import given_digest
from proxy.errors import KeysUnavailable
from proxy.http.administration import COOKIE, HEADERS, PATH, AdminRouter, check_right
from proxy.http.authentication import key_of
from proxy.http.context import context_of, services_of
from proxy.http.origins import check_own_origin


async def log_in(request: Request) -> Response:
    """Begin a session for the key in the request's headers."""
    services = services_of(request)
    if "origin" in request.headers:
        check_own_origin(request)
    digest = given_digest(request.headers)
    was_right = services.sessions.attempts.begin(request.client.host if request.client else "")
    try:
        key = check_right(await services.keys.find(digest))
    except KeysUnavailable:  # which tells nothing of the key
        was_right()
        raise
    was_right()
    context_of(request).key = key
    response = JSONResponse(_told(key.name), status_code=201, headers=HEADERS)
    response.set_cookie(
        COOKIE,
        await services.sessions.begin(digest),
        path=PATH,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


async def log_out(request: Request) -> Response:
    """End the session of the request's cookie."""
    if token := request.cookies.get(COOKIE):
        await services_of(request).sessions.end(token)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path=PATH, httponly=True, samesite="strict")
    return response


async def who(request: Request) -> Response:
    """The key by which this request administers."""
    return JSONResponse(_told(key_of(request).name))


def _told(name: str) -> dict[str, object]:
    return {"object": "admin.session", "key": name}


_before, _within = APIRouter(), AdminRouter()
_before.add_route(f"{PATH}/session", log_in, methods=["POST"])
_within.add("/session", log_out, ["DELETE"])
_within.add("/session", who, ["GET"])
routers = (_before, _within)
