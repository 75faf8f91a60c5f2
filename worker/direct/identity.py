"""The certificate that this worker shows at its door, made anew at each start."""

import datetime
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from worker.direct.invitation import identity_of

MAX_PROXIES: Final = 64
"""How many copies of the proxy may dial this worker; those named longest ago are forgotten."""

_ONE_DAY: Final = datetime.timedelta(days=1)
_YEARS: Final = datetime.timedelta(days=3650)
_VERIFY: Final = (
    # Without it OpenSSL looks a self-signed certificate up by its subject, and takes the first of
    # that name: of several proxies that call themselves the same only one would get in.
    ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    # X509_V_FLAG_NO_CHECK_TIME: the clock of a container that was frozen lies.
    | ssl.VerifyFlags(0x200000)
)
"""The certificates that are let in are pinned, each by itself."""


class Identity:
    """This worker's key and certificate, and the proxies it lets in."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key)
        self.fingerprint = identity_of(certificate.public_bytes(serialization.Encoding.DER))
        """The SHA-256 of the certificate."""
        self._chain = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._proxies: dict[bytes, None] = {}
        self._context: ssl.SSLContext | None = None

    def renewed(self) -> "Identity":
        """Another key and certificate, which lets in the same proxies."""
        identity = Identity()
        identity._proxies = dict(self._proxies)
        return identity

    def trust(self, certificate: bytes) -> None:
        """Let in whoever shows this certificate (DER)."""
        known = certificate in self._proxies
        self._proxies.pop(certificate, None)
        self._proxies[certificate] = None
        if len(self._proxies) > MAX_PROXIES:
            del self._proxies[next(iter(self._proxies))]
        if not known:
            self._context = None

    def server_context(self) -> ssl.SSLContext:
        """TLS for the door: nobody gets in without one of the proxies' certificates."""
        if self._context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= _VERIFY
            context.num_tickets = 0  # a resumed session would not show the certificate again
            self._load_chain(context)
            for certificate in self._proxies:
                with suppress(ssl.SSLError):  # one that OpenSSL cannot read lets nobody in
                    context.load_verify_locations(cadata=certificate)
            self._context = context
        return self._context

    def _load_chain(self, context: ssl.SSLContext) -> None:
        # Python's ssl reads keys from files alone.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chain.pem"
            path.touch(mode=0o600)
            path.write_bytes(self._chain)
            context.load_cert_chain(path)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "worker")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _ONE_DAY)
        .not_valid_after(now + _YEARS)
    )
    return builder.sign(key, hashes.SHA256())
