"""Who may call, as dependencies of the routes; only health, welcome and OpenAPI are without."""

from fastapi import Request

from proxy.http.context import context_of, services_of
from proxy.http.origins import check_origin
from proxy.keys import ANYBODY, Key


async def require_key(request: Request) -> None:
    """Note the request's key; raises InvalidAPIKey."""
    context_of(request).key = services_of(request).keys.check(request.headers)


async def require_known_origin(request: Request) -> None:
    """For routes that may start a job, behind `require_key`; raises NotPermitted."""
    if key_of(request) is ANYBODY:
        check_origin(request, services_of(request).settings.cors_origins)


def key_of(request: Request) -> Key:
    """The key that `require_key` has found."""
    key = context_of(request).key
    assert key is not None, "the route has the dependency"
    return key
