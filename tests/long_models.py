"""The models of `make run`, the one to chat with able to go on for minutes.

A test that stops an answer, or leaves it, asks that one for `TOKENS`: however quick the machine is
and however late the news gets to vLLM, it is not done by then.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

from scripts.models import Model, find_models

MAX_MODEL_LEN = 32_000
TOKENS = 30_000
"""Of one choice, so that a prompt has room beside them."""

SETTINGS = {
    "MAX_MODEL_LEN": str(MAX_MODEL_LEN),
    # The model itself must be long enough: beyond its last position vLLM reads memory that is not
    # its own, and what it leaves in its cache spoils later answers.
    "HF_OVERRIDES": json.dumps({"max_position_embeddings": MAX_MODEL_LEN}),
}


def long_models(settings: Mapping[str, str] | None = None) -> tuple[Model, ...]:
    """The built-in models; `settings` are the worker's of the one to chat with, beside its own."""
    chat, *others = find_models()
    return (replace(chat, settings={**chat.settings, **SETTINGS, **(settings or {})}), *others)
