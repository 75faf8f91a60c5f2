"""Who may call: routers whose every route needs a key. Only health, welcome and OpenAPI have none.

FastAPI's own dependencies would do the same for half a millisecond of CPU per request.
"""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, Request, Response

from proxy.access.keys import ANYBODY, Key
from proxy.http.context import context_of, services_of
from proxy.http.origins import check_origin

Handler = Callable[[Request], Awaitable[Response]]


class KeyedRouter(APIRouter):
    """Routes that need a key; with `starts_jobs`, and no keys, a known origin as well."""

    def __init__(self, *, starts_jobs: bool) -> None:
        super().__init__()
        self._starts_jobs = starts_jobs

    def add(self, path: str, handler: Handler, methods: Sequence[str]) -> None:
        """Serve these methods of a path; the handler finds the key by `key_of`."""

        async def endpoint(request: Request) -> Response:
            services, context = services_of(request), context_of(request)
            context.key = await services.keys.check(request.headers)
            if self._starts_jobs and context.key is ANYBODY:
                check_origin(request, services.settings.cors_origins)
            return await handler(request)

        self.add_route(path, endpoint, methods=list(methods))


def key_of(request: Request) -> Key:
    """The key that the request came with."""
    key = context_of(request).key
    assert key is not None, "a KeyedRouter has noted it"
    return key
