"""Values that others sent, as JSON again: they may hold what not every encoder can write."""

import json
from typing import Any

import msgspec


def encode(value: Any) -> bytes:
    """JSON on one line; raises ValueError for what cannot be written, or is nested too deep."""
    try:
        return msgspec.json.encode(value)
    except OverflowError:  # an integer beyond 64 bits, which JSON itself allows
        pass
    except (TypeError, RecursionError) as exc:
        raise ValueError("no JSON") from exc
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, RecursionError) as exc:
        raise ValueError("no JSON") from exc
