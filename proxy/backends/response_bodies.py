"""The bodies of servers' answers, read in pieces of bounded size however they were packed.

We ask for no packing. A server that packs all the same could send a piece that unpacks to a
thousand times its size, which httpx would do in one go.
"""

import zlib
from collections.abc import AsyncIterator
from typing import Final

import httpx

from proxy.errors import WorkerFailed
from proxy.memory import Reservation

MAX_PIECE_BYTES: Final = 2**20


async def pieces_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body of a response that is still to be read; raises httpx.HTTPError."""
    parts = response.stream
    assert isinstance(parts, httpx.AsyncByteStream)
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        async for piece in parts:
            yield piece
        return
    if encoding not in ("gzip", "x-gzip"):
        raise httpx.DecodingError(f"packed as {encoding[:20]!r}, which was not asked for")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    async for packed in parts:
        while packed:
            try:
                piece = unpacker.decompress(packed, MAX_PIECE_BYTES)
            except zlib.error as exc:
                raise httpx.DecodingError("not gzip") from exc
            packed = unpacker.unconsumed_tail
            if piece:
                yield piece
    if not unpacker.eof:
        raise httpx.DecodingError("gzip that ends too early")


async def whole_body(
    response: httpx.Response, max_bytes: int, reservation: Reservation | None
) -> bytes:
    """The body in one.

    Raises:
        WorkerFailed: it is larger than `max_bytes`.
        MemoryLimitReached: there is no room for it.
        httpx.HTTPError: the connection broke.
    """
    pieces, size = [], 0
    async for piece in pieces_of(response):
        size += len(piece)
        if size > max_bytes:
            raise WorkerFailed(f"An answer of RunPod's is larger than {max_bytes:,} bytes.")
        if reservation is not None:
            reservation.grow(len(piece))
        pieces.append(piece)
    return b"".join(pieces)
