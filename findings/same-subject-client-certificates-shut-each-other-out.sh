#!/usr/bin/env bash
# Python 3.11 to 3.13's ssl (OpenSSL 3), certificates made with cryptography 50.0.2.
#
# A server that asks for client certificates (CERT_REQUIRED) and trusts two self-signed ones of the
# same subject, both given to load_verify_locations, lets in the client whose certificate comes
# first in its store, and refuses the other with "self-signed certificate". With
# VERIFY_X509_PARTIAL_CHAIN, or with a subject for each, both get in. ssl.create_default_context
# sets that flag from Python 3.13 on; a plain SSLContext does not.
#
# Seen on 2026-11-29:
#   same subject: let in, refused (self-signed certificate)
#   same subject, partial chain: let in, let in
#   a subject each: let in, let in
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cryptography==50.0.2
cat > try.py <<'PY'
import datetime
import socket
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(subject: str, path: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with open(path, "wb") as pem:
        pem.write(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ))
        pem.write(made.public_bytes(serialization.Encoding.PEM))
    return made.public_bytes(serialization.Encoding.DER)


def outcome(server: ssl.SSLContext, client_pem: str) -> str:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.load_cert_chain(client_pem)
    near, far = socket.socketpair()

    def dial() -> None:
        try:
            with client.wrap_socket(far) as tls:
                tls.recv(1)
        except OSError:
            pass

    caller = threading.Thread(target=dial)
    caller.start()
    try:
        with server.wrap_socket(near, server_side=True) as tls:
            tls.send(b"x")
        return "let in"
    except ssl.SSLCertVerificationError as error:
        return f"refused ({error.verify_message})"
    finally:
        near.close()
        caller.join()


def pair(label: str, subjects: tuple[str, str], partial: bool) -> None:
    certificate("server", "server.pem")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain("server.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    if partial:
        server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for number, subject in enumerate(subjects):
        server.load_verify_locations(cadata=certificate(subject, f"{number}.pem"))
    outcomes = sorted(outcome(server, f"{number}.pem") for number in (0, 1))
    print(f"{label}: {', '.join(outcomes)}")


pair("same subject", ("proxy", "proxy"), False)
pair("same subject, partial chain", ("proxy", "proxy"), True)
pair("a subject each", ("proxy-1", "proxy-2"), False)
PY
venv/bin/python try.py | tee seen
diff seen - <<'SEEN'
same subject: let in, refused (self-signed certificate)
same subject, partial chain: let in, let in
a subject each: let in, let in
SEEN
