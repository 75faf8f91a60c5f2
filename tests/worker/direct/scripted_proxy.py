"""A copy of the proxy for tests: it speaks the channel's wire, and does what it is told.

It holds what came by nonce, and answers nothing by itself: a test says what is taken, acknowledged
and cancelled, and when.
"""

import asyncio
import base64
import datetime
import hashlib
import json
import secrets
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECONDS = 30.0
"""How long a test waits for what has to come."""


class ScriptedProxy:
    """A certificate of its own, and channels to workers."""

    def __init__(self, folder: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = _self_signed(key)
        self.chain = folder / f"{secrets.token_hex(4)}.pem"
        self.chain.write_bytes(
            self._certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def channel(self, **facts: Any) -> dict[str, Any]:
        """The `channel` of a job's input."""
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        return {
            "protocol": 1,
            "nonce": secrets.token_hex(16),
            "certificate": base64.b64encode(der).decode(),
            **facts,
        }

    def tls(self) -> ssl.SSLContext:
        """What it shows a worker."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self.chain)
        return context

    @asynccontextmanager
    async def dial(self, port: int, fingerprint: str | None = None) -> AsyncIterator["Channel"]:
        """A channel through the worker's door, after comparing its certificate."""
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"https://127.0.0.1:{port}/channel", ssl=self.tls()) as socket,
        ):
            ssl_object = socket.get_extra_info("ssl_object")
            shown = ssl_object.getpeercert(binary_form=True)
            assert fingerprint in (None, hashlib.sha256(shown).hexdigest())
            assert ssl_object.version() == "TLSv1.3"
            async with Channel(socket).reading() as channel:
                yield channel


class Channel:
    """One open channel: what came by it, and what to say."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.items: list[list[Any]] = []
        """Everything but frames."""
        self.frames: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.messages = 0
        self.closed = False
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["Channel"]:
        """Read while the block runs."""
        task = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def say(self, *items: list[Any]) -> None:
        """One message."""
        await self.socket.send_str(json.dumps(items))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until what has come fulfils the condition."""
        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(condition)

    async def end_of(self, nonce: str) -> list[dict[str, Any]]:
        """All frames of this job, when the last has come."""
        await self.until(lambda: any(frame.get("end") for frame in self.frames[nonce]))
        return self.frames[nonce]

    def size_of(self, nonce: str) -> int:
        """How much of this job has come, in bytes of JSON."""
        return sum(len(json.dumps(frame, separators=(",", ":"))) for frame in self.frames[nonce])

    async def _read(self) -> None:
        async for message in self.socket:
            async with self._news:
                self._take_in(json.loads(message.data))
                self._news.notify_all()
        async with self._news:
            self.closed = True
            self._news.notify_all()

    def _take_in(self, items: list[list[Any]]) -> None:
        self.messages += 1
        for item in items:
            if item[0] == "frame":
                self.frames[item[1]].append(item[2])
            else:
                self.items.append(item)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Valid in the past alone: a worker goes by the certificate, and by no clock."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(then)
        .not_valid_after(then + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
