"""The proxies that the environment names for the way out: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY.

httpx reads them as well, but ends in a traceback for what it cannot use, and does not look at
ALL_PROXY beside a transport of our own. Lower-case names go before upper-case ones, as in curl.
Their values may hold passwords: only their names are ever shown.
"""

import functools
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import httpx

from proxy.backends.socks import SOCKS
from proxy.config.values import BLANKS, is_host, odd_character

_ENTRY = re.compile(r"(\[[0-9a-f:.]+\]|\*?\.?[\w-]+(?:\.[\w-]+)*\.?)(?::(\d{1,5}))?", re.IGNORECASE)
"""A host, a domain or an address, perhaps with a port."""

_Matches = Callable[[str, int], bool]


class OutboundProxyError(Exception):
    """A proxy of the environment cannot be used; the message names its variable."""


class OutboundProxies:
    """Which proxy a call goes through."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        entries = re.split(r"[,\s]+", _value(environment, "NO_PROXY")[1])
        matches = {entry: _exception(entry) for entry in entries if entry}
        self.unreadable = [number for number, m in enumerate(matches.values(), 1) if m is None]
        """The entries of NO_PROXY that mean nothing and are left out, counted from 1."""
        self._exceptions = [match for match in matches.values() if match is not None]
        self._find = functools.lru_cache(maxsize=1024)(self._found)

    @classmethod
    def of_environment(cls) -> "OutboundProxies":
        """Those of this process."""
        return cls(os.environ)

    def find(self, url: httpx.URL) -> tuple[str, httpx.Proxy] | None:
        """The variable and the proxy for a URL; None if it is called directly.

        Raises:
            OutboundProxyError: the one that is named cannot be used.
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        return self._find(url.scheme, url.host, port)

    def _found(self, scheme: str, host: str, port: int) -> tuple[str, httpx.Proxy] | None:
        variable, value = _value(self._environment, f"{scheme.upper()}_PROXY")
        if not value:
            variable, value = _value(self._environment, "ALL_PROXY")
        if not value or any(matches(host.lower(), port) for matches in self._exceptions):
            return None
        return variable, _proxy(variable, value)


def _value(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """The name as it is written in the environment, and the value; empty if there is none."""
    for written in (name.lower(), name):
        if written in environment:
            return written, environment[written].strip(BLANKS)
    return name, ""


def _proxy(variable: str, value: str) -> httpx.Proxy:
    url = value if "://" in value else f"http://{value}"
    try:
        if odd_character(url) is not None:
            raise ValueError
        parts = urlsplit(url)
        if not parts.hostname or not is_host(parts.hostname) or parts.port == 0:
            raise ValueError
        if parts.scheme not in ("http", "https", *SOCKS):
            raise OutboundProxyError(
                f"{variable}: a proxy of the kind {parts.scheme}:// cannot be used; "
                "name one that begins with http:// or socks5://, or take the variable away"
            )
        return httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        raise OutboundProxyError(
            f"{variable}: not a URL, as in http://proxy.example:3128"
        ) from None


def _exception(entry: str) -> _Matches | None:
    """What an entry of NO_PROXY excepts: a host and all below it, an address, a network, or all."""
    if entry == "*":
        return lambda host, port: True
    entry = entry.rpartition("://")[2].rstrip("/") if "://" in entry else entry
    if (network := _network(entry)) is not None:
        return _inside(network, 0)
    match = re.fullmatch(
        r"(\[[0-9a-f:.]+\]|\*?\.?[\w-]+(?:\.[\w-]+)*\.?)(?::(\d{1,5}))?", entry, re.I
    )
    if match is None:
        return None
    name, wanted = match[1].lower(), int(match[2] or 0)
    if (network := _network(name.strip("[]"))) is not None:
        return _inside(network, wanted)
    if name.startswith("["):
        return None
    name = name.removeprefix("*").strip(".")
    return lambda host, port: (
        wanted in (0, port) and (host.rstrip(".") == name or host.rstrip(".").endswith(f".{name}"))
    )


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _inside(network: ipaddress.IPv4Network | ipaddress.IPv6Network, wanted_port: int) -> _Matches:
    def matches(host: str, port: int) -> bool:
        try:
            return wanted_port in (0, port) and ipaddress.ip_address(host) in network
        except ValueError:
            return False

    return matches
