"""Text of vLLM made fit for a client: without secrets, and without paths that only we know."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Final

MAX_LENGTH: Final = 400
MIN_SECRET_LENGTH: Final = 6

_SECRET_NAME: Final = re.compile(r"TOKEN(?!IZER)|_KEY|APIKEY|SECRET|PASSWORD|CREDENTIAL")
_SECRET: Final = re.compile(r"\b(?:hf_|sk-|rpa_|rps_)[\w-]{6,}|\beyJ[\w-]+\.[\w-]+\.[\w-]*")
_SECRET_FLAG: Final = re.compile(r"(--(?:api-key|hf-token)[= ])\S+")
_PATH: Final = re.compile(r"(?<![\w.:/<-])/(?:[\w.@+~-]+/)*[\w.@+~-]+/?")


def redact(text: str, kept: Iterable[str], environment: Mapping[str, str] | None = None) -> str:
    """The text in one line of at most 400 characters, without secrets and paths.

    Secrets are the environment's values whose names say so, and what looks like a key. A path
    stays where it is a part of one of the values in `kept`, which the user chose.
    """
    environment = os.environ if environment is None else environment
    for name, value in environment.items():
        if len(value) >= MIN_SECRET_LENGTH and _SECRET_NAME.search(name.upper()):
            text = text.replace(value, "***")
    text = _SECRET_FLAG.sub(r"\1***", _SECRET.sub("***", text))
    chosen = list(kept)

    def path(found: re.Match[str]) -> str:
        return found[0] if any(found[0] in value for value in chosen) else "<path>"

    text = " ".join(_PATH.sub(path, text).split())
    return text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "..."
