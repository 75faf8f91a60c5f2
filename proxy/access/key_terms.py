"""What may be said of a key of the database, by the command and by an admin's request alike."""

import re
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from proxy.access.keys import KeyLimits, StoredKey
from proxy.config.tables import Limits, Name

RIGHTS: Final = ("may_warm", "may_name_tenants", "may_administer")
_LAST_MOMENT: Final = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())
_DAYS: Final = re.compile(r"[0-9]{1,6}d")


def _moment(value: object) -> object:
    if not isinstance(value, str):
        return value
    if _DAYS.fullmatch(value):
        return int(time.time()) + int(value[:-1]) * 86_400
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            "a date is needed, as in 2027-01-31, or a number of days, as in 90d"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _to_come(moment: int) -> int:
    if not time.time() < moment < _LAST_MOMENT:
        raise ValueError("a moment that is still to come is needed")
    return moment


class KeyTerms(Limits):
    """What its holder may do; what is left out stays as it was, of a new key at its default."""

    models: tuple[Name, ...] | None = None
    """The models it may use; all if None."""
    may_warm: bool = False
    may_name_tenants: bool = False
    may_administer: bool = False
    expires: Annotated[int, BeforeValidator(_moment), AfterValidator(_to_come)] | None = None
    """A Unix time; it may be given as a date, or as `90d`."""

    def applied(self, key: StoredKey) -> StoredKey:
        """The key with what is given here in place of what it had."""
        given = self.model_dump(include=self.model_fields_set & KeyTerms.model_fields.keys())
        limits = {name: given.pop(name) for name in Limits.model_fields if name in given}
        bounds = asdict(key.limits) | limits
        kept = KeyLimits(**{name: bound for name, bound in bounds.items() if bound is not None})
        return replace(key, limits=kept, **given)


class NewKey(KeyTerms):
    """The same of a key that is to be made."""

    name: str
