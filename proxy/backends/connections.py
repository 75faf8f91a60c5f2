"""The connections to RunPod that all calls share: httpx's, in several pools in place of one.

At every call httpcore's pool looks at each of its connections, and for each idle one at all of them
again. A pool that once held 300 connections cost ten milliseconds of CPU a call, so that the proxy
could not make use of half of what RunPod's limits allow. In small pools this is not felt.
"""

import ssl
from collections.abc import AsyncIterator

import httpx

from proxy.backends.outbound import OutboundProxies, OutboundProxyError

MAX_CONNECTIONS = 1000
POOLS = 25
IDLE_SECONDS = 30
CANNOT_BE_SENT = (
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    ValueError,  # a header that is not ASCII is a UnicodeEncodeError
    ExceptionGroup,  # of anyio, for a port beyond 65535
)
"""What httpx 0.28 raises for a URL or a header that cannot be sent."""


def pooled_client(timeout: httpx.Timeout) -> httpx.AsyncClient:
    """The HTTP client that all calls share, through the proxies that the environment names."""
    return httpx.AsyncClient(
        timeout=timeout,
        transport=Ways(OutboundProxies.of_environment()),
        trust_env=False,  # read by Ways
        follow_redirects=False,
    )


def trusted_certificates() -> ssl.SSLContext:
    """Those of SSL_CERT_FILE or SSL_CERT_DIR if they are set, else certifi's.

    Raises:
        OSError: the file cannot be read, or holds none.
    """
    return httpx.create_ssl_context()


class Ways(httpx.AsyncBaseTransport):
    """Calls each URL directly, or through the proxy that the environment names for it."""

    def __init__(self, proxies: OutboundProxies) -> None:
        self._proxies = proxies
        self._trusted = trusted_certificates()
        self._direct = Pools(self._trusted)
        self._proxied: dict[str, Pools] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on its way."""
        return await self._way(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for pools in (self._direct, *self._proxied.values()):
            await pools.aclose()

    def _way(self, url: httpx.URL) -> "Pools":
        try:
            found = self._proxies.find(url)
        except OutboundProxyError as exc:  # start-up has refused it for all URLs known then
            raise httpx.ConnectError(str(exc)) from None
        if found is None:
            return self._direct
        variable, proxy = found
        if variable not in self._proxied:
            self._proxied[variable] = Pools(self._trusted, proxy)
        return self._proxied[variable]


class Pools(httpx.AsyncBaseTransport):
    """Gives each call to the first of the pools that have the fewest calls under way."""

    def __init__(self, trusted: ssl.SSLContext, proxy: httpx.Proxy | None = None) -> None:
        limits = _limits(MAX_CONNECTIONS // POOLS)
        self._pools = [
            httpx.AsyncHTTPTransport(verify=trusted, limits=limits, proxy=proxy)
            for _ in range(POOLS)
        ]
        self._calls = [0] * POOLS

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the call is under way until its answer is closed."""
        pool = self._calls.index(min(self._calls))
        self._calls[pool] += 1
        try:
            response = await self._pools[pool].handle_async_request(request)
        except BaseException:
            self._calls[pool] -= 1
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Answer(response.stream, self._calls, pool)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()


class _Answer(httpx.AsyncByteStream):
    """An answer's body, which says when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, calls: list[int], pool: int) -> None:
        self._stream = stream
        self._calls = calls
        self._pool = pool
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._calls[self._pool] -= 1
        await self._stream.aclose()


def _limits(connections: int) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=IDLE_SECONDS,
    )
