"""Pages in a browser: which of them may send what nobody has signed with a key.

A browser sends simple requests of any page without asking first, and keeps only the answer from it.
Without keys, every page that is open would so wake a GPU of whoever looks at it; and with a cookie
it would administer.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

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


def check_own_origin(connection: HTTPConnection) -> None:
    """Refuse a request that a page of another origin than ours has sent, or may have.

    Browsers tell by `Sec-Fetch-Site` where a request came from, over HTTPS and on loopback; else
    by `Origin`, with all but plain reads.

    Raises:
        NotPermitted: it is of another, or changes something and does not say whence it came.
    """
    headers = connection.headers
    site, origins, host = (
        headers.get("sec-fetch-site"),
        headers.getlist("origin"),
        headers.get("host", ""),
    )
    if site is not None:
        is_own = site in ("same-origin", "none")
    elif origins:
        is_own = all(urlsplit(origin).netloc == host.lower() != "" for origin in origins)
    else:
        is_own = connection.scope["method"] in ("GET", "HEAD")
    if not is_own:
        raise NotPermitted("A session is for this proxy's own pages alone.")
