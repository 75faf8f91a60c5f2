"""What a job's input says of its channel, checked; anything not understood is no invitation."""

import base64
import binascii
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from yarl import URL

PROTOCOL: Final = 1
NONCE: Final = re.compile(r"[0-9a-f]{32}")
MAX_CERTIFICATE_BYTES: Final = 8192

_TOKEN: Final = re.compile(r"[!-~]{16,200}")
_MAX_URL_LENGTH: Final = 2048


@dataclass(frozen=True)
class Invitation:
    """How one job may be reached past the queue."""

    nonce: str
    """How the job is known on the channel."""
    certificate: bytes
    """The certificate (DER) of the copy of the proxy that sent the job."""
    port: int | None
    """The container's port that the worker may listen on."""
    url: URL | None
    """Where the proxy listens."""
    token: str
    """What opens the proxy's door, once."""

    @property
    def identity(self) -> str:
        """Which copy of the proxy sent the job."""
        return identity_of(self.certificate)


def identity_of(certificate: bytes) -> str:
    """The SHA-256 of a certificate (DER), by which either side knows the other."""
    return hashlib.sha256(certificate).hexdigest()


def read_invitation(channel: Any) -> Invitation | None:
    """The invitation in a job's input, or None if it is none that this worker understands."""
    if not isinstance(channel, Mapping) or not _is_number(channel.get("protocol"), PROTOCOL):
        return None
    try:
        url, token = _url_and_token(channel)
        return Invitation(
            nonce=_text(channel, "nonce", NONCE),
            certificate=_certificate(channel.get("certificate")),
            port=_port(channel.get("port")),
            url=url,
            token=token,
        )
    except ValueError:
        return None


def _is_number(value: Any, wanted: int) -> bool:
    return type(value) is int and value == wanted


def _text(channel: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
    value = channel.get(key)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(key)
    return value


def _certificate(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > MAX_CERTIFICATE_BYTES:
        raise ValueError("certificate")
    try:
        der = base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError("certificate") from None
    x509.load_der_x509_certificate(der)
    return der


def _port(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value < 65536:
        raise ValueError("port")
    return value


def _url_and_token(channel: Mapping[str, Any]) -> tuple[URL | None, str]:
    address = channel.get("url")
    if address is None:
        return None, ""
    if not isinstance(address, str) or len(address) > _MAX_URL_LENGTH:
        raise ValueError("url")
    url = URL(address)
    if not (url.scheme == "wss" or (url.scheme == "ws" and _is_loopback(url.host))) or not url.host:
        raise ValueError("url")
    if url.user is not None or url.password is not None:  # the token is what opens the door
        raise ValueError("url")
    return url, _text(channel, "token", _TOKEN)


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
