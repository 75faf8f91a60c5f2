"""What pages in a browser may read: for the application, and for what the server itself refuses."""

from collections.abc import Iterable

READABLE_HEADERS = [
    *("x-request-id", "x-runpod-job-id", "retry-after", "metadata", "x-should-retry"),
    *(f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")),
    *(f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")),
]
"""What a page may read of an answer. Without the last, its SDK would repeat what it must not."""


def cors_headers(
    allowed: tuple[str, ...], headers: Iterable[tuple[bytes, bytes]]
) -> dict[str, str]:
    """Those that let the page which sent these request headers read the answer.

    None if its origin is not allowed, or did not come; a list of one needs no origin.
    """
    if not allowed:
        return {}
    sent = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    origin = allowed[0] if len(allowed) == 1 else next(iter(sent), "")
    if "*" in allowed:
        origin = "*"
    elif origin not in allowed:
        return {}
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": ", ".join(READABLE_HEADERS),
        "vary": "Origin",
    }
