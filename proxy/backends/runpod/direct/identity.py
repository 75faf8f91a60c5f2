"""By what workers know this copy of the proxy: a certificate made when it is first needed."""

import base64
import datetime
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

LIFETIME = datetime.timedelta(days=3650)
"""Much longer than any process lives, both ways: a container's clock may be wrong."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A self-signed certificate and its key, for as long as the process lives."""

    certificate: str
    """Base64 of its DER, as jobs name it."""
    context: ssl.SSLContext
    """For dialling workers: presents it. Whom it reaches is to be checked by fingerprint."""


def new_identity() -> Identity:
    """Make a certificate of this process alone."""
    # Imported here: a proxy without direct endpoints has no use for it, and it is large.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "runpod-openai-proxy")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - LIFETIME)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(
        base64.b64encode(certificate.public_bytes(Encoding.DER)).decode(),
        _context(secret + certificate.public_bytes(Encoding.PEM)),
    )


def _context(key_and_certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # no authority vouches for a worker: its head frame does
    with tempfile.TemporaryDirectory() as folder:  # readable by us alone; ssl takes files only
        path = Path(folder) / "identity.pem"
        path.write_bytes(key_and_certificate)
        context.load_cert_chain(path)
    return context
