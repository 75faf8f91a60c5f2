"""The connections to other servers that all calls share, through the proxies that may lie between.

Calls go through httpx's client. Those that are made all the time, such as polls, go to its
transport directly: the client's own work on a request and its response costs more than sending it.
"""

import ssl
from typing import Final

import httpx

from proxy.backends.outbound import OutboundProxies, OutboundProxyError
from proxy.backends.transport import Transport

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

    def way(self, url: httpx.URL) -> Transport:
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
        self._proxied: dict[str, Transport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on its way."""
        return await self.to(request.url).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for way in (self._direct, *self._proxied.values()):
            await way.aclose()

    def to(self, url: httpx.URL) -> Transport:
        """The way to this URL; raises httpx.ConnectError if its proxy cannot be used."""
        try:
            found = self._proxies.find(url)
        except OutboundProxyError as exc:  # start-up has refused it for all URLs known then
            raise httpx.ConnectError(str(exc)) from None
        if found is None:
            return self._direct
        variable, proxy = found
        if variable not in self._proxied:
            self._proxied[variable] = Transport(self._trusted, proxy)
        return self._proxied[variable]
