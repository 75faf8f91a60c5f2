"""`python -m proxy keys`: keys made, listed, changed and revoked, while proxies run or not."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from proxy.access.key_terms import RIGHTS, KeyTerms
from proxy.access.keys import KeyLimits, KeyMistake, Keys, StoredKey
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.config.mistakes import reason
from proxy.config.settings import DATABASE_FILE, DatabaseSettings, Settings
from proxy.config.tables import Config

if TYPE_CHECKING:  # SQLAlchemy, which only a command that runs needs
    from sqlalchemy import Connection

ABOUT = f"""\
Keys that clients may use, kept in the database of PROXY_DATABASE_URL, or in {DATABASE_FILE} in the
state folder. A proxy that runs with that database knows of a change within a second; one that was
started without a database has to be started again after the first key was made."""
RIGHTS_TOLD: Final = {
    "may_warm": "may it wake workers?",
    "may_name_tenants": "may its requests say for whom they are, as a gateway's do?",
    "may_administer": "may it make and revoke keys, and see what all of them do?",
}
UNBOUND: Final = ("all", "never", "none")
"""How the command line says null."""
SHOWN_DATE: Final = "%Y-%m-%d %H:%M UTC"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command line of `keys`."""
    raw = argparse.RawDescriptionHelpFormatter
    keys = commands.add_parser(
        "keys", help="make, list and revoke keys", description=ABOUT, formatter_class=raw
    )
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for action, says in (
        ("create", "make a key; it is shown this once"),
        ("change", "let a key's holder do something else; what is not named stays"),
    ):
        parser = actions.add_parser(action, help=says, argument_default=argparse.SUPPRESS)
        parser.add_argument("name", help="for people, the log and metrics")
        _add_terms(parser)
        parsers[action] = parser
    actions.add_parser("list", help="all keys there are and were")
    for action, says in (
        ("show", "what one key may do"),
        ("revoke", "let a key never be used again"),
        ("rotate", "give a key another secret; the former is refused from then on"),
    ):
        parsers[action] = actions.add_parser(action, help=says)
        parsers[action].add_argument("name")
    for action in ("change", "revoke"):
        says = "also if no key could administer then"
        parsers[action].add_argument("--force", action="store_true", default=False, help=says)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=_names, metavar="A,B", help="those it may use, or all")
    parser.add_argument("--expires", metavar="WHEN", help="a date, as in 2027-01-31; 90d; never")
    for right, says in RIGHTS_TOLD.items():
        parser.add_argument(f"--{_option(right)}", action=argparse.BooleanOptionalAction, help=says)
    for field in fields(KeyLimits):
        parser.add_argument(f"--{_option(field.name)}", metavar="N", help="a limit, or none")


def run(options: argparse.Namespace, settings: DatabaseSettings) -> int:
    """Do what the command line says; returns the exit code."""
    from proxy.storage.database import Database, DatabaseAway

    config = _config()
    database = Database(settings.database or settings.new_database)
    try:
        done = database.run_here(_work(options, config))
    except (DatabaseAway, KeyMistake) as exc:
        print(f"not done: {exc}", file=sys.stderr)  # noqa: T201 - what the command is for
        return 1
    finally:
        database.close_here()
    print(done)  # noqa: T201
    for doubt in _doubts(options, config):
        print(doubt, file=sys.stderr)  # noqa: T201
    if options.action in ("create", "rotate"):
        print("Keep it now: it is not shown again.", file=sys.stderr)  # noqa: T201
    return 0


def _config() -> tuple[Settings, Config] | None:
    """A proxy's configuration, which need not be here."""
    try:
        settings = Settings()
        return settings, load(settings)
    except (ValidationError, ConfigError):
        return None


def _doubts(options: argparse.Namespace, found: tuple[Settings, Config] | None) -> Iterator[str]:
    """What is to be known of a key's models, and of a budget in dollars, which takes prices."""
    if options.action not in ("create", "change"):
        return
    key = _terms(options).applied(StoredKey(options.name, created=0))
    if found is not None:
        _, config = found
        yield from (f"here {sentence}" for sentence in config.unknown(key.models))
        if said := key.uncounted(config):
            yield said
    elif key.limits.daily_budget is not None or key.limits.monthly_budget is not None:
        yield "Dollars are counted where the proxy knows an endpoint's price_per_second."


def _keeps_admin(options: argparse.Namespace, found: tuple[Settings, Config] | None) -> bool:
    """Whether the last key of the database that may administer must stay."""
    if options.force:
        return False
    if found is None:
        return not os.environ.get("PROXY_ADMIN_KEYS")
    settings, config = found
    return not any(key.may_administer for key in Keys(settings, config.keys).configured)


def _work(
    options: argparse.Namespace, found: tuple[Settings, Config] | None
) -> Callable[["Connection"], str]:
    """What is to be done in the database; it returns what is to be told."""
    from proxy.access.stored_keys import keeping_admin

    work = _change(options)
    changes = options.action in ("change", "revoke")
    return keeping_admin(work) if changes and _keeps_admin(options, found) else work


def _change(options: argparse.Namespace) -> Callable[["Connection"], str]:
    """The same, whoever may administer after it."""
    from proxy.access.stored_keys import change, create, find, listed, revoke, rotate

    match options.action:
        case "create":
            key = _terms(options).applied(StoredKey(options.name, created=int(time.time())))
            return lambda connection: create(connection, key)
        case "change":
            terms = _terms(options)
            return lambda connection: _described(change(connection, options.name, terms.applied))
        case "rotate":
            return lambda connection: rotate(connection, options.name)
        case "revoke":
            return lambda connection: _described(revoke(connection, options.name))
        case "show":
            return lambda connection: _described(find(connection, options.name))
    return lambda connection: _table(listed(connection))


def _terms(options: argparse.Namespace) -> KeyTerms:
    """What is said of the key; exits if something of it cannot be."""
    said = {name: getattr(options, name) for name in KeyTerms.model_fields if name in options}
    try:
        return KeyTerms.model_validate(
            {name: None if value in UNBOUND else value for name, value in said.items()}
        )
    except ValidationError as exc:
        wrong = exc.errors()[0]
        sys.exit(f"not done: --{_option(str(wrong['loc'][0]))}: {reason(wrong)}")


def _option(field: str) -> str:
    return field.replace("_", "-")


def _table(keys: Sequence[StoredKey]) -> str:
    if not keys:
        return "there are no keys"
    width = max(len(key.name) for key in keys)
    return "\n".join(f"{key.name:{width}}  {key.state:8}  {_told(key)}" for key in keys)


def _described(key: StoredKey) -> str:
    return f"{key.name}: {key.state}, {_told(key)}"


def _told(key: StoredKey) -> str:
    """What it may do, in a line."""
    parts = [f"made {_shown(key.created)}"]
    if key.revoked is not None:
        parts.append(f"revoked {_shown(key.revoked)}")
    elif key.expires is not None:
        parts.append(f"expires {_shown(key.expires)}")
    parts.append("all models" if key.models is None else f"models {', '.join(key.models)}")
    parts += [right.replace("_", " ") for right in RIGHTS if getattr(key, right)]
    bounds = {name: value for name, value in asdict(key.limits).items() if value is not None}
    parts += [f"{name.replace('_', ' ')} {value}" for name, value in bounds.items()]
    return ", ".join(parts)


def _shown(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime(SHOWN_DATE)


def _names(text: str) -> tuple[str, ...] | str:
    if text in UNBOUND:
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())
