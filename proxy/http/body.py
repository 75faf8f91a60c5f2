"""A request's body as bytes: read within bounds, unpacked, and counted in what all may hold.

Bodies are unpacked in pieces, between which the event loop does everything else.
"""

import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from proxy.api.call import COPIES, Body, Call, parse_content
from proxy.api.route_table import Route
from proxy.api.turns import Steps, Turns
from proxy.errors import InvalidRequest, ProxyError, RequestTooLarge, UnsupportedMediaType
from proxy.http.context import context_of
from proxy.memory import Memory, Reservation

DISCARDED_BYTES = 64 * 1024 * 1024
"""How much of a body that is refused is still read, so that the client gets to our answer."""
PIECE_BYTES = 64 * 1024
"""So much is unpacked at a time."""
PACKED_PIECE_BYTES = 4 * 1024
"""Out of so much; the rest of a piece is copied at each end of a gzip member."""


class BodyReader:
    """Reads the bodies of requests, of which none may be longer than `max_bytes`."""

    def __init__(self, *, max_bytes: int, memory: Memory) -> None:
        self.turns = Turns()
        self._max_bytes = max_bytes
        self._memory = memory

    async def read(self, request: Request) -> Body:
        """Read a body, and unpack it if it is packed.

        Raises:
            InvalidRequest: it is not the gzip that it says it is.
            RequestTooLarge: it is too long, as it came or unpacked.
            UnsupportedMediaType: it is packed in a way that we do not read.
            MemoryLimitReached: all bodies and buffers together hold as much as they may.
            ClientDisconnect: the client left before it was sent.
        """
        body = await self._read(request)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return body
        if encoding not in ("gzip", "x-gzip"):
            raise UnsupportedMediaType("The body's content encoding is neither gzip nor identity.")
        buffer = self._buffer()
        await self.turns.run(_unpack(body.raw, buffer))
        return buffer.body()

    async def _read(self, request: Request) -> Body:
        buffer = self._buffer()
        stream = request.stream()
        try:
            async for chunk in stream:
                buffer.add(chunk)
        except ProxyError:
            buffer.clear()
            await _discard(stream)
            raise
        return buffer.body()

    def _buffer(self) -> "_Buffer":
        return _Buffer(self._max_bytes, self._memory.reserve())


async def read_call(request: Request, route: Route) -> Call:
    """Read a request, and check it.

    Raises:
        InvalidRequest, UnsupportedMediaType: as `parse_content` and `BodyReader.read`.
        RequestTooLarge, MemoryLimitReached, ClientDisconnect: as `BodyReader.read`.
    """
    request_id = context_of(request).id
    if route.method == "GET":
        query = request.scope["query_string"].decode("latin-1")
        return Call(request_id, route, query if query.isprintable() else "", None)
    bodies = _bodies_of(request)
    body = await bodies.read(request)
    content_type = request.headers.get("content-type", "")
    content = await parse_content(body, content_type, route, bodies.turns)
    return Call(request_id, route, "", content)


async def read_body(request: Request) -> Body:
    """A body that is not for a worker; raises as `BodyReader.read` does."""
    return await _bodies_of(request).read(request)


def _bodies_of(request: Request) -> BodyReader:
    bodies = request.app.state.bodies
    assert isinstance(bodies, BodyReader)
    return bodies


class _Buffer:
    """Bytes as they come, never more than there may be."""

    def __init__(self, max_bytes: int, reservation: Reservation) -> None:
        self._max_bytes = max_bytes
        self._reservation = reservation
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        """Keep this piece; raises RequestTooLarge or MemoryLimitReached."""
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise RequestTooLarge(
                f"The request body is larger than {self._max_bytes:,} bytes, the most this service "
                "takes."
            )
        self._reservation.grow(COPIES * len(piece))
        self._pieces.append(piece)

    def clear(self) -> None:
        """Keep nothing of it."""
        self._pieces.clear()
        self._reservation.release()

    def body(self) -> Body:
        """All of it."""
        return Body(b"".join(self._pieces), self._reservation)


async def _discard(stream: AsyncIterator[bytes]) -> None:
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > DISCARDED_BYTES:
            break


def _unpack(packed: bytes, buffer: _Buffer) -> Steps[None]:
    """Unpack gzip, of one member or several, a piece with each step."""
    unpacker = _gzip()
    try:
        for start in range(0, len(packed), PACKED_PIECE_BYTES):
            piece, unpacked = packed[start : start + PACKED_PIECE_BYTES], b""
            while piece or len(unpacked) == PIECE_BYTES:
                if unpacker.eof:
                    if not (piece := piece.lstrip(b"\0")):  # padding
                        break
                    unpacker = _gzip()
                unpacked = unpacker.decompress(piece, PIECE_BYTES)
                piece = unpacker.unconsumed_tail or unpacker.unused_data
                buffer.add(unpacked)
                if len(unpacked) == PIECE_BYTES:
                    yield
            yield
    except zlib.error:
        raise InvalidRequest("The body of your request is not valid gzip.") from None
    if not unpacker.eof:
        raise InvalidRequest("The body of your request is not valid gzip.")


def _gzip() -> "zlib._Decompress":
    return zlib.decompressobj(zlib.MAX_WBITS | 16)
