"""The connections to other servers that all calls share, through the proxies that may lie between.

Calls go through httpx's client. Those that are made all the time, such as polls, go to its
transport directly: the client's own work on a request and its response costs more than sending it.
"""

import asyncio
import ssl
from typing import Final

import httpx

from proxy.backends.dialing import Origin
from proxy.backends.outbound import SOCKS, OutboundProxies, OutboundProxyError
from proxy.backends.transport import IDLE_SECONDS, MAX_CONNECTIONS, REPLY, Reply, Transport

CANNOT_BE_SENT: Final = (
    httpx.InvalidURL,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    ValueError,  # a header that is not ASCII is a UnicodeEncodeError
)
"""What is raised for a URL or a header that cannot be sent."""


class Client(httpx.AsyncClient):
    """httpx's client, through the proxies that the environment names.

    It is made while the event loop runs.
    """

    def __init__(self, timeout: httpx.Timeout) -> None:
        self._ways = _Ways(OutboundProxies.of_environment())
        super().__init__(
            timeout=timeout,
            transport=self._ways,
            trust_env=False,  # read by _Ways
            follow_redirects=False,
        )

    def way(self, url: httpx.URL) -> "Transport | SocksTransport":
        """The transport to the server of this URL, for calls past the client.

        Raises:
            httpx.ConnectError: the proxy that the environment names for it cannot be used.
        """
        return self._ways.to(url)


def trusted_certificates() -> ssl.SSLContext:
    """Those of SSL_CERT_FILE or SSL_CERT_DIR if they are set, else certifi's.

    Raises:
        OSError: the file cannot be read, or holds none.
    """
    trusted = httpx.create_ssl_context()
    trusted.set_alpn_protocols(["http/1.1"])
    return trusted


class _Ways(httpx.AsyncBaseTransport):
    """Calls each URL directly, or through the proxy that the environment names for it."""

    def __init__(self, proxies: OutboundProxies) -> None:
        self._proxies = proxies
        self._trusted = trusted_certificates()
        self._direct = Transport(self._trusted)
        self._proxied: dict[str, Transport | SocksTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on its way."""
        return await self.to(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for way in (self._direct, *self._proxied.values()):
            await way.aclose()

    def to(self, url: httpx.URL) -> "Transport | SocksTransport":
        """The way to this URL; raises httpx.ConnectError if its proxy cannot be used."""
        try:
            found = self._proxies.find(url)
        except OutboundProxyError as exc:  # start-up has refused it for all URLs known then
            raise httpx.ConnectError(str(exc)) from None
        if found is None:
            return self._direct
        variable, proxy = found
        if variable not in self._proxied:
            kind = SocksTransport if proxy.url.scheme in SOCKS else Transport
            self._proxied[variable] = kind(self._trusted, proxy)
        return self._proxied[variable]


class SocksTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport, which knows SOCKS proxies."""

    def __init__(self, trusted: ssl.SSLContext, proxy: httpx.Proxy) -> None:
        limits = httpx.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
        )
        super().__init__(verify=trusted, limits=limits, proxy=proxy)

    async def send(
        self,
        method: str,
        origin: Origin,
        path: bytes,
        headers: bytes,
        content: bytes = b"",
        *,
        connect_seconds: float | None,
        read_seconds: float | None,
    ) -> Reply:
        """Send a request, as `Transport.send` does."""
        timeout = httpx.Timeout(None, connect=connect_seconds, read=read_seconds)
        request = httpx.Request(
            method,
            (origin.scheme + b"://" + origin.netloc + path).decode("ascii"),
            headers=[line.partition(b": ")[::2] for line in headers.splitlines()],
            content=content,
            extensions={"timeout": timeout.as_dict()},
        )
        return _SocksReply(await super().handle_async_request(request))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, as `Transport.handle_async_request` does."""
        response = await super().handle_async_request(request)
        response.extensions[REPLY] = _SocksReply(response)
        return response


class _SocksReply(Reply):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code, response.headers.raw)
        self._response = response
        self._pieces = response.aiter_raw()
        self._reading: asyncio.Task[bytes] | None = None

    async def read(self) -> bytes:
        if self._reading is None:
            self._reading = asyncio.create_task(self._next())
        await asyncio.wait({self._reading})
        reading, self._reading = self._reading, None
        return reading.result()

    async def aclose(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        await self._response.aclose()

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")
