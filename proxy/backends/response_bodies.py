"""The bodies of servers' answers, read in pieces of bounded size however they were packed.

We ask for no packing. A server that packs all the same could send a piece that unpacks to a
thousand times its size, which httpx would do in one go.
"""

import zlib
from typing import Final

import httpx

from proxy.backends.transport import Reply
from proxy.errors import WorkerFailed
from proxy.memory import Reservation

MAX_PIECE_BYTES: Final = 2**20


class Body:
    """The body of a reply, unpacked."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._encoding = reply.header(b"content-encoding").strip().lower() or "identity"
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._packed = b""

    async def read(self, seconds: float | None = None) -> bytes | None:
        """The next piece; empty at the end, None if nothing came for so many seconds.

        Nothing is lost when it is cancelled. Raises httpx.HTTPError.
        """
        if self._encoding == "identity":
            return await self._reply.read(seconds)
        if self._encoding not in ("gzip", "x-gzip"):
            raise httpx.DecodingError(f"packed as {self._encoding[:20]!r}, which nobody asked for")
        while True:
            packed = self._packed or await self._reply.read(seconds)
            if packed is None:
                return None
            if not packed:
                if not self._unpacker.eof:
                    raise httpx.DecodingError("gzip that ends too early")
                return b""
            try:
                piece = self._unpacker.decompress(packed, MAX_PIECE_BYTES)
            except zlib.error as exc:
                raise httpx.DecodingError("not gzip") from exc
            self._packed = self._unpacker.unconsumed_tail
            if piece:
                return piece


async def whole_body(reply: Reply, max_bytes: int, reservation: Reservation | None) -> bytes:
    """The body in one.

    Raises:
        WorkerFailed: it is larger than `max_bytes`.
        MemoryLimitReached: there is no room for it.
        httpx.HTTPError: the connection broke.
    """
    body, pieces, size = Body(reply), [], 0
    while piece := await body.read():
        size += len(piece)
        if size > max_bytes:
            raise WorkerFailed(f"An answer of RunPod's is larger than {max_bytes:,} bytes.")
        if reservation is not None:
            reservation.grow(len(piece))
        pieces.append(piece)
    return b"".join(pieces)
