"""What a worker tells of its door, in the first frame of an answer."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Final

PROTOCOL: Final = 1
CLOSED: Final = frozenset(
    {"no_public_port", "host_not_allowed", "no_door", "nonce_in_use", "failed"}
)
"""The reasons for a closed door that are told by their names; any other is `closed`."""
GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is assigned to hosts of the internet. What is beyond may stand for an address of
IPv4, and lead anywhere: NAT64 (64:ff9b::/96), ::127.0.0.1."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Offer:
    """A door that is open: where it is, and the SHA-256 of the certificate behind it."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    certificate: bytes

    @property
    def place(self) -> str:
        """Address and port, as in a URL."""
        host = str(self.address)
        return f"[{host}]:{self.port}" if self.address.version == 6 else f"{host}:{self.port}"

    @property
    def is_public(self) -> bool:
        """Whether the address is one of the internet, and nothing of the proxy's own network."""
        address = self.address
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is None:
                is_unicast = address in GLOBAL_UNICAST and address.sixtofour is None
                return address.is_global and is_unicast
            address = address.ipv4_mapped
        return address.is_global and not address.is_multicast


class NoOffer(Exception):
    """There is no door to knock at; the message is the reason, in a word."""


def offered(told: Any) -> Offer:
    """The worker's door, from the head's `channel`.

    Raises:
        NoOffer: it has none, or none that this proxy understands.
    """
    match told:
        case None:
            raise NoOffer("not_offered")
        case {"protocol": 1, "closed": reason}:
            raise NoOffer(reason if isinstance(reason, str) and reason in CLOSED else "closed")
        case {"protocol": 1, "dials": _}:
            raise NoOffer("connecting")
        case {"protocol": 1, "host": str(host), "port": int(port), "certificate": str(digest)}:
            if not 0 < port < 65536 or not _SHA256.fullmatch(digest):
                raise NoOffer("malformed")
            try:
                address = ipaddress.ip_address(host)
            except ValueError:
                raise NoOffer("malformed") from None
            if getattr(address, "scope_id", None) is not None:  # any text, and never the internet's
                raise NoOffer("malformed")
            return Offer(address, port, bytes.fromhex(digest))
    raise NoOffer("malformed")
