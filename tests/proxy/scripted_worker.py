"""A worker's end of the direct channel that says what a test tells it to.

It listens with TLS, trusts the proxies that jobs have named, and speaks the channel's messages. A
test sends items and looks at those that came.
"""

import asyncio
import base64
import datetime
import hashlib
import ssl
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

T = TypeVar("T")


class ScriptedWorker:
    """A worker's door on loopback, in a thread of its own, while it is entered."""

    def __init__(self) -> None:
        self.context, self.certificate = server_context()
        self.nonces: list[str] = []
        """Of the jobs that it was told of."""
        self.messages: list[list[Any]] = []
        """Every message that came, pings included."""
        self.running: list[str] = []
        """What it says that it has when a connection opens."""
        self.is_mute = False
        """It reads, and answers no ping."""
        self.dials = 0
        """How many WebSockets were opened to it."""
        self.bytes_received = 0
        """Behind the handshake of TLS, the request for the WebSocket included."""
        self.port = 0
        self._sockets: list[web.WebSocketResponse] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    @property
    def offer(self) -> dict[str, Any]:
        """What the head of an answer tells of its door."""
        digest = hashlib.sha256(self.certificate).hexdigest()
        return {"protocol": 1, "host": "127.0.0.1", "port": self.port, "certificate": digest}

    @property
    def items(self) -> list[list[Any]]:
        """All that came, but for pings."""
        return [item for message in list(self.messages) for item in message if item[0] != "ping"]

    @property
    def is_connected(self) -> bool:
        """Whether a connection to it is open."""
        return any(not socket.closed for socket in self._sockets)

    def take_job(self, job: dict[str, Any]) -> None:
        """Read a job's input as a worker does: trust its proxy, know its nonce."""
        channel = job["input"]["proxy"]["channel"]
        self.context.load_verify_locations(cadata=base64.b64decode(channel["certificate"]))
        self.nonces.append(channel["nonce"])

    def acknowledged(self, nonce: str) -> tuple[int, int]:
        """The last numbers that it was told of a job: received and consumed."""
        told = [(item[2], item[3]) for item in self.items if item[:2] == ["got", nonce]]
        return told[-1] if told else (0, 0)

    def send(self, *items: Any) -> None:
        """Send items in one message, on the connection that was opened last."""
        self.send_text(msgspec.json.encode(items).decode())

    def send_text(self, text: str) -> None:
        """Send a message as it is."""
        self._do(self._sockets[-1].send_str(text))

    def cut(self) -> None:
        """Break all connections, without a word."""
        self._do(self._cut())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Do nothing at all meanwhile, as in a container that is stopped; the kernel goes on."""
        awake = threading.Event()
        self._loop.call_soon_threadsafe(awake.wait)
        try:
            yield
        finally:
            awake.set()

    def close_door(self) -> None:
        """Listen no more; connections stay open."""
        self._do(self._site.stop())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_get("/channel", self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.1
        )
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.context)
        await self._site.start()
        self.port = self._runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.bytes_received += 1
        socket = web.WebSocketResponse(compress=False, max_msg_size=4 * 2**20)
        await socket.prepare(request)
        self._sockets.append(socket)
        self.dials += 1
        if self.running:
            await socket.send_str(msgspec.json.encode([["have", n] for n in self.running]).decode())
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await self._note(socket, msgspec.json.decode(message.data))
        return socket

    async def _note(self, socket: web.WebSocketResponse, items: list[list[Any]]) -> None:
        self.messages.append(items)
        pongs = [["pong", item[1]] for item in items if item[0] == "ping"]
        if pongs and not self.is_mute:
            with suppress(ConnectionError):
                await socket.send_str(msgspec.json.encode(pongs).decode())

    async def _cut(self) -> None:
        for socket in self._sockets:
            if (request := socket._req) is not None and request.transport is not None:
                request.transport.abort()

    async def _stop(self) -> None:
        await self._cut()
        await self._runner.cleanup()


def server_context() -> tuple[ssl.SSLContext, bytes]:
    """What a worker's door listens with, and its certificate as DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "worker")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worker.pem"
        path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
        context.load_cert_chain(path)
    return context, certificate.public_bytes(Encoding.DER)
