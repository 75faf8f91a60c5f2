"""What holds for one call: settings, then the model's table, the key's, the client's header."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Final

from proxy.access.keys import Key
from proxy.backends.deadlines import Terms
from proxy.backends.fair_turns import Flow
from proxy.config.settings import Settings
from proxy.config.tables import ModelConfig
from proxy.errors import InvalidRequest

COLD_START_TIMEOUT_HEADER: Final = "x-cold-start-timeout"
"""A client's own limit, in seconds, for how long a worker may be waited for."""


def model_terms(config: ModelConfig, settings: Settings) -> Terms:
    """What a model's table says, and the settings where it says nothing."""
    names = {field.name for field in fields(Terms)}
    common = settings.model_dump(include=names)
    return Terms(**common | config.model_dump(include=names, exclude_none=True))


def call_terms(
    terms: Terms, key: Key, headers: Mapping[str, str], flow: Flow | None = None
) -> Terms:
    """A model's terms, with the key's own settings, its flow and the client's patience.

    Raises:
        InvalidRequest: the client's header is not a number of seconds.
    """
    if key.overrides:
        terms = replace(terms, **key.overrides)
    if flow is not None:
        terms = replace(terms, flow=flow)
    if (patience := headers.get(COLD_START_TIMEOUT_HEADER)) is None:
        return terms
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", patience) or float(patience) <= 0:
        raise InvalidRequest(f"The header {COLD_START_TIMEOUT_HEADER} is not a number of seconds.")
    if float(patience) >= terms.queue_timeout_seconds:
        return terms
    return replace(
        terms,
        queue_timeout_seconds=float(patience),
        queue_setting=COLD_START_TIMEOUT_HEADER,
    )
