"""`/admin/keys`: the keys there are, made, changed, rotated and revoked, as by `proxy keys`.

A key's secret is in the answer that makes it, and nowhere else. Keys of the environment and of the
file are shown, and changed where they stand.
"""

import logging
import time
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from proxy.access.key_terms import RIGHTS, KeyTerms, NewKey
from proxy.access.keys import Key, KeyMistake, KeyStore, NoSuchKey, StoredKey
from proxy.config.mistakes import reason
from proxy.errors import InvalidRequest, KeyNotFound
from proxy.http.administration import AdminRouter
from proxy.http.authentication import Handler, key_of
from proxy.http.body import read_body
from proxy.http.context import services_of

T = TypeVar("T", bound=KeyTerms)

log = logging.getLogger(__name__)


async def list_keys(request: Request) -> Response:
    """All keys, those included that were revoked."""
    keys = services_of(request).keys
    kept = [] if keys.store is None else await keys.store.listed()
    data = [_configured(key) for key in keys.configured] + [_kept(key) for key in kept]
    return JSONResponse({"object": "list", "data": data})


async def create_key(request: Request) -> Response:
    """A new key; its secret is told this once."""
    given = await _read(request, NewKey)
    if _is_configured(request, given.name):
        raise InvalidRequest(f"There is a configured key of the name {given.name}.", param="name")
    key = given.applied(StoredKey(given.name, created=int(time.time())))
    secret = await _store(request).create(key)
    _log(request, "made", key.name)
    return JSONResponse(_kept(key) | {"key": secret}, status_code=201)


async def get_key(request: Request) -> Response:
    """One key."""
    for key in services_of(request).keys.configured:
        if key.name == request.path_params["name"]:
            return JSONResponse(_configured(key))
    return JSONResponse(_kept(await _store(request).named(_name(request))))


async def change_key(request: Request) -> Response:
    """Let a key's holder do from now on what the body says; what it leaves out stays."""
    name, given = _name(request), await _read(request, KeyTerms)
    key = await _store(request).change(name, given.applied, keeps_admin=_keeps_admin(request))
    _log(request, "changed", name)
    return JSONResponse(_kept(key))


async def rotate_key(request: Request) -> Response:
    """Another secret, which is told this once; the former is refused from now on."""
    name, store = _name(request), _store(request)
    secret = await store.rotate(name)
    _log(request, "rotated", name)
    return JSONResponse(_kept(await store.named(name)) | {"key": secret})


async def revoke_key(request: Request) -> Response:
    """Let a key never be used again; its name stays taken."""
    name = _name(request)
    key = await _store(request).revoke(name, keeps_admin=_keeps_admin(request))
    _log(request, "revoked", name)
    return JSONResponse(_kept(key))


def _told(handler: Handler) -> Handler:
    """The handler, with what cannot be done of a key as an error."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except NoSuchKey:
            raise KeyNotFound("There is no key of this name.", param="name") from None
        except KeyMistake as exc:
            raise InvalidRequest(f"Not done: {exc}.", param="name") from None

    return told


async def _read(request: Request, form: type[T]) -> T:
    body = await read_body(request)
    try:
        return form.model_validate_json(body.raw)
    except ValidationError as exc:
        wrong = exc.errors(include_url=False, include_input=False)[0]
        field = str(wrong["loc"][0]) if wrong["loc"] else None
        if field is None:
            raise InvalidRequest("The body must be a JSON object that tells of a key.") from None
        if wrong["type"] == "extra_forbidden":
            raise InvalidRequest("There is no such field.", param=field[:100]) from None
        raise InvalidRequest(f"{field}: {reason(wrong)}.", param=field) from None


def _store(request: Request) -> KeyStore:
    if (store := services_of(request).keys.store) is None:
        raise InvalidRequest(
            "This proxy keeps no keys: everybody may call (PROXY_ALLOW_ANONYMOUS), or nobody could "
            "administer when it was started."
        )
    return store


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    if _is_configured(request, name):
        raise InvalidRequest(
            "This key is one of the environment or of the configuration file: change it there.",
            param="name",
        )
    return name


def _is_configured(request: Request, name: str) -> bool:
    return any(key.name == name for key in services_of(request).keys.configured)


def _keeps_admin(request: Request) -> bool:
    """Whether those that are kept alone can administer."""
    return not any(key.may_administer for key in services_of(request).keys.configured)


def _log(request: Request, did: str, name: str) -> None:
    log.info("%s has %s the key %s", key_of(request).name, did, name)


def _configured(key: Key) -> dict[str, Any]:
    kept = StoredKey(
        key.name,
        created=0,
        models=None if key.models is None else tuple(sorted(key.models)),
        limits=key.limits,
        **{right: getattr(key, right) for right in RIGHTS},
    )
    return _kept(kept) | {"source": "configuration", "created": None}


def _kept(key: StoredKey) -> dict[str, Any]:
    return {
        "object": "key",
        "name": key.name,
        "source": "database",
        "state": key.state,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "models": None if key.models is None else list(key.models),
        **{right: getattr(key, right) for right in RIGHTS},
        **asdict(key.limits),
    }


router = AdminRouter()
for path, handler, method in (
    ("/keys", list_keys, "GET"),
    ("/keys", create_key, "POST"),
    ("/keys/{name}", get_key, "GET"),
    ("/keys/{name}", change_key, "PATCH"),
    ("/keys/{name}", revoke_key, "DELETE"),
    ("/keys/{name}/rotate", rotate_key, "POST"),
):
    router.add(path, _told(handler), [method])
