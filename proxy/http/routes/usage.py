"""`GET /v1/usage`: what a key has used by the ledger; for admins, what all keys have."""

from typing import Final

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from proxy.access.keys import Key
from proxy.errors import InvalidRequest, NotPermitted, UnknownRoute
from proxy.http.authentication import KeyedRouter, key_of
from proxy.http.context import services_of
from proxy.ledger.sums import ESTIMATE, Total, added, as_csv, date_of, shown, today

USUAL_DAYS: Final = 30


async def usage(request: Request) -> Response:
    """The sums by day and model of the key that asks; with `keys=all`, by key as well."""
    services, key = services_of(request), key_of(request)
    if services.ledger is None:
        raise UnknownRoute("This proxy keeps no ledger. PROXY_LEDGER=true makes it keep one.")
    name = _name(request, key)
    days = _days(request, services.settings.ledger_days)
    first_day = today() - days + 1
    found = await services.ledger.totals(first_day, name)
    kept = ("day", "model") if name is not None else ("day", "key", "model")
    totals = added(found, *kept)
    if request.query_params.get("format") == "csv":
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(as_csv(totals, *kept), media_type="text/csv", headers=headers)
    return JSONResponse(
        {
            "object": "usage",
            "key": name,
            "since": date_of(first_day),
            "data": [shown(one, *kept) for one in totals],
            "total": _all(found),
            "today": _all([one for one in found if one.day == today()]),
            "estimate": ESTIMATE,
        }
        | services.ledger.troubles
    )


def _all(some: list[Total]) -> dict[str, object]:
    return shown(next(iter(added(some)), Total()))


def _name(request: Request, key: Key) -> str | None:
    """Whose usage is asked for; None for that of all.

    Raises:
        NotPermitted: it is another's, and this key may not administer.
        InvalidRequest: it is neither `all` nor a name.
    """
    keys, name = request.query_params.get("keys"), request.query_params.get("key")
    if keys not in (None, "all"):
        raise InvalidRequest("keys can be 'all', and nothing else.", param="keys")
    if (keys is None and name in (None, key.name)) or key.may_administer:
        return None if keys == "all" else name or key.name
    raise NotPermitted("This API key may see its own usage alone.")


def _days(request: Request, most: int) -> int:
    """How many days are asked for, today among them; raises InvalidRequest."""
    text = request.query_params.get("days")
    if text is None:
        return min(USUAL_DAYS, most)
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= most):
        raise InvalidRequest(f"days must be a number from 1 to {most}.", param="days")
    return int(text)


router = KeyedRouter(starts_jobs=False)
router.add("/v1/usage", usage, ["GET"])
