"""Who administers: a key that may, or a session that such a key began in a browser.

The cookie of a session means nothing but here: no other route looks at it.
"""

from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response

from proxy.access.keys import Key, has_key
from proxy.errors import InvalidAPIKey, NotPermitted
from proxy.http.authentication import Handler
from proxy.http.context import context_of, services_of
from proxy.http.origins import check_own_origin

PATH: Final = "/admin"
"""The cookie is sent to what is below it, and nowhere else."""
COOKIE: Final = "runpod_proxy_session"
HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class AdminRouter(APIRouter):
    """Routes below `/admin` that need a key which may administer, or its session."""

    def add(self, path: str, handler: Handler, methods: Sequence[str]) -> None:
        """Serve these methods of `/admin` and this path; `key_of` tells who asks."""

        async def endpoint(request: Request) -> Response:
            context_of(request).key = await admin_of(request)
            response = await handler(request)
            response.headers.update(HEADERS)
            return response

        self.add_route(PATH + path, endpoint, methods=list(methods))


async def admin_of(request: Request) -> Key:
    """The key of whoever administers by this request, as it is now.

    Raises:
        InvalidAPIKey: there is neither a good key nor a session that lasts.
        NotPermitted: the key may not, or another origin's page has sent the session.
        KeysUnavailable: it cannot be known now.
    """
    services = services_of(request)
    if has_key(request.headers):
        key = await services.keys.holder(request.headers)
    elif token := request.cookies.get(COOKIE):
        check_own_origin(request)
        key = await services.sessions.holder(token, services.keys)
    else:
        raise InvalidAPIKey(
            "You didn't provide an API key. Provide one that may administer, in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
    return check_right(key)


def check_right(key: Key) -> Key:
    """This key, if it may administer; else raises NotPermitted."""
    if not key.may_administer:
        raise NotPermitted("This API key may not administer this proxy.")
    return key
