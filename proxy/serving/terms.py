"""The deadlines of one call: settings, then the model's table, the key's, the client's header."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from proxy.backends.deadlines import Terms
from proxy.config.settings import Settings
from proxy.config.tables import ModelConfig
from proxy.errors import InvalidRequest
from proxy.keys import Key

COLD_START_TIMEOUT_HEADER: Final = "x-cold-start-timeout"
"""A client's own limit, in seconds, for how long a worker may be waited for."""


def model_terms(config: ModelConfig, settings: Settings) -> Terms:
    """What a model's table says, and the settings where it says nothing."""
    return Terms(
        connect=config.connect_timeout_seconds or settings.connect_timeout_seconds,
        queue=config.queue_timeout_seconds or settings.queue_timeout_seconds,
        first_token=config.first_token_timeout_seconds or settings.first_token_timeout_seconds,
        idle=config.idle_timeout_seconds or settings.idle_timeout_seconds,
        total=config.total_timeout_seconds or settings.total_timeout_seconds,
        keep_alive=config.keep_alive_seconds or settings.keep_alive_seconds,
        low_priority=config.low_priority,
    )


def call_terms(terms: Terms, key: Key, headers: Mapping[str, str]) -> Terms:
    """A model's terms, with the key's keep-alives and the client's patience.

    Raises:
        InvalidRequest: the client's header is not a number of seconds.
    """
    if key.keep_alive_seconds is not None:
        terms = replace(terms, keep_alive=key.keep_alive_seconds)
    if (patience := headers.get(COLD_START_TIMEOUT_HEADER)) is None:
        return terms
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", patience) or float(patience) <= 0:
        raise InvalidRequest(f"The header {COLD_START_TIMEOUT_HEADER} is not a number of seconds.")
    if float(patience) >= terms.queue:
        return terms
    return replace(terms, queue=float(patience), queue_setting=COLD_START_TIMEOUT_HEADER)
