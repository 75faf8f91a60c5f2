"""`python -m proxy usage`: what keys have used, and what RunPod bills beside the estimate."""

import argparse
import asyncio
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from proxy.backends.runpod.billing import Bill, BillUnavailable, bill
from proxy.backends.runpod.endpoint import create_client
from proxy.config.settings import DatabaseSettings, Settings
from proxy.config.tables import Config, secret
from proxy.ledger.sums import ESTIMATE, PLACE, Total, added, as_csv, date_of, harmless, shown, today

ABOUT = """\
What keys have used, by the ledger in the database of PROXY_DATABASE_URL, or in that of the state
folder. With --reconcile RunPod's own bill stands beside the estimate, by endpoint and day; it is
asked for with RUNPOD_REST_API_KEY, or else with the endpoint's own key."""
BILL: Final = (
    "Billed is all that RunPod charges for the endpoint: cold starts, idle time, storage, and what "
    "others sent to it past this proxy. Days are those of UTC, and today is not over."
)
USUAL_DAYS: Final = 30
MAX_DAYS: Final = 36_500


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command line of `usage`."""
    raw = argparse.RawDescriptionHelpFormatter
    usage = commands.add_parser(
        "usage", help="what keys have used", description=ABOUT, formatter_class=raw
    )
    usage.add_argument(
        "--days", type=_days, default=USUAL_DAYS, metavar="N", help="how many, today among them"
    )
    usage.add_argument(
        "--by",
        type=_places,
        default=("key", "model"),
        metavar="A,B",
        help=f"what is summed for each: any of {', '.join(PLACE)}; key,model without it",
    )
    usage.add_argument("--key", metavar="NAME", help="one key's usage alone")
    usage.add_argument("--csv", action="store_true", help="a table for a spreadsheet")
    usage.add_argument(
        "--reconcile", action="store_true", help="RunPod's bill beside it, by endpoint and day"
    )


def run(options: argparse.Namespace, settings: DatabaseSettings) -> int:
    """Tell what was used; returns the exit code."""
    try:
        found = _totals(options, settings)
    except _NotDone as exc:
        return _refused(exc)
    kept: Sequence[str] = options.by
    totals = added(found, *kept)
    if options.csv:
        sys.stdout.write(as_csv(totals, *kept))
        return 0
    lines = [shown(one, *kept) for one in totals]
    lines += [dict.fromkeys(kept, "") | shown(one) for one in added(found)]
    _tell(_table(lines) if found else "nothing has been used", ESTIMATE)
    return 0


def reconcile(options: argparse.Namespace, settings: Settings, config: Config) -> int:
    """Tell what was used and what RunPod bills; returns the exit code."""
    try:
        found = added(_totals(options, settings), "endpoint", "day")
        billed = asyncio.run(_bill(settings, config, date_of(today() - options.days + 1)))
    except (_NotDone, BillUnavailable) as exc:
        return _refused(exc)
    lines = _beside(found, billed, config)
    if options.csv:
        table = csv.DictWriter(sys.stdout, fieldnames=list(_LINE), lineterminator="\r\n")
        table.writeheader()
        table.writerows({name: harmless(line[name]) for name in _LINE} for line in lines)
        return 0
    _tell(_table(lines) if lines else "nothing has been used or billed", ESTIMATE, BILL)
    return 0


class _NotDone(Exception):
    """It cannot be done; the message says why."""


def _totals(options: argparse.Namespace, settings: DatabaseSettings) -> list[Total]:
    """The sums of all days that are asked for; raises _NotDone."""
    from proxy.ledger.rows import totals
    from proxy.storage.database import Database, DatabaseAway

    if settings.database is None:
        raise _NotDone("there is no database, and so no ledger: see PROXY_LEDGER")
    database, first_day = Database(settings.database), today() - options.days + 1
    try:
        return database.read_here(lambda one: totals(one, first_day, options.key))
    except DatabaseAway as exc:
        raise _NotDone(str(exc)) from exc
    finally:
        database.close_here()


async def _bill(settings: Settings, config: Config, since: str) -> Bill:
    """Each account is asked once for all of its endpoints."""
    accounts: dict[str, list[str]] = defaultdict(list)
    for name, endpoint in config.endpoints.items():
        variable = endpoint.rest_api_key_env
        key = secret(variable) if variable else settings.rest_api_key
        if key is None:
            usual = settings.runpod_api_key if endpoint.api_key_env == "RUNPOD_API_KEY" else None
            key = usual or secret(endpoint.api_key_env)
        accounts[key.get_secret_value()].append(endpoint.id or name)
    found: dict[tuple[str, str], float] = {}
    async with create_client(connect_timeout_seconds=settings.connect_timeout_seconds) as client:
        for api_key, endpoints in accounts.items():
            found |= await bill(client, settings.rest_base_url, api_key, since, endpoints)
    return found


_LINE: Final = ("endpoint", "day", "requests", "estimated", "billed", "billed/estimated")


def _beside(found: Sequence[Total], billed: Bill, config: Config) -> list[dict[str, Any]]:
    """A line for each endpoint and day of which either tells, and one for all of them."""
    names = {(endpoint.id or name): name for name, endpoint in config.endpoints.items()}
    used = {
        (one.endpoint, date_of(one.day)): one for one in found if one.endpoint in names.values()
    }
    costs = {(names[endpoint], day): dollars for (endpoint, day), dollars in billed.items()}
    lines = [
        _line(*place, used.get(place, Total()), costs.get(place, 0.0))
        for place in sorted({*used, *costs})
    ]
    whole = next(iter(added(used.values())), Total())
    return [*lines, _line("", "", whole, sum(costs.values()))] if lines else []


def _line(endpoint: str, day: str, used: Total, billed: float) -> dict[str, Any]:
    ratio = round(billed / used.dollars, 2) if used.dollars else ""
    values = (endpoint, day, used.requests, round(used.dollars, 4), round(billed, 4), ratio)
    return dict(zip(_LINE, values, strict=True))


def _table(lines: Sequence[dict[str, Any]]) -> str:
    """In columns: names to the left, numbers to the right."""
    names = list(lines[0])
    rows = [names] + [[_cell(line[name]) for name in names] for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    is_text = [name in PLACE for name in names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"


def _tell(*texts: str) -> None:
    print("\n\n".join(texts))  # noqa: T201 - what the command is for


def _refused(exc: Exception) -> int:
    print(f"not done: {exc}", file=sys.stderr)  # noqa: T201
    return 1


def _days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= MAX_DAYS):
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_DAYS} is needed")
    return int(text)


def _places(text: str) -> tuple[str, ...]:
    places = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not places or not set(places) <= set(PLACE):
        raise argparse.ArgumentTypeError(f"some of {', '.join(PLACE)} are needed")
    return places
