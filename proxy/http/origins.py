"""Pages in a browser, where everybody may call: they start jobs only from origins that are allowed.

A browser sends simple requests of any page without asking first, and keeps only the answer from it.
Without keys, every page that is open would so wake a GPU of whoever looks at it.
"""

from collections.abc import Collection

from starlette.requests import HTTPConnection

from proxy.errors import NotPermitted


def check_origin(connection: HTTPConnection, allowed: Collection[str]) -> None:
    """Refuse a request that a page of another origin has sent.

    Browsers name the origin of each request but a plain GET, whose `Sec-Fetch-Site` tells as much.

    Raises:
        NotPermitted: the origin is not one of these.
    """
    headers = connection.headers
    origins = headers.getlist("origin")
    is_from_a_page = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
    if "*" in allowed or (not origins and not is_from_a_page):
        return
    if not origins or not set(origins) <= set(allowed):
        raise NotPermitted(
            "Pages of this origin may not use the service. It is open to everybody, so its "
            "operator lists the origins that may, in PROXY_CORS_ORIGINS."
        )
