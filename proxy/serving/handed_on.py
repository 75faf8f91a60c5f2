"""An answer on its way from one copy of the proxy to another: a list of pieces in Redis.

RunPod hands each output out once, so a second copy cannot read the job beside the first. Its owner
puts all of the answer there, from its beginning, for as long as it is wanted.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from proxy.api.answer import NO_COURSE, Answer, Course, Head
from proxy.errors import ProxyError, SharedStateAway, Stopping, VLLMError
from proxy.serving.several_readers import Place
from proxy.storage.shared_state import PREFIX, RedisAway, Script, SharedState

LEASE_SECONDS: Final = 10.0
"""How long a claim, and a wish for an answer, are kept for a copy that says nothing."""
LOOK_SECONDS: Final = 0.2
"""How often one looks what has come of an answer that another copy has."""
PIECES_AT_ONCE: Final = 200

LOOK: Final = Script("""
local claim, wanted, pieces = KEYS[1], KEYS[2], KEYS[3]
local owner, first, last, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
redis.call('SET', wanted, '1', 'PX', lease)
local is_owners = redis.call('HGET', claim, 'owner') == owner
return {is_owners and 1 or 0, redis.call('LRANGE', pieces, first, last)}
""")
"""What has come of an answer from a position on, and whether its owner still has it."""

END: Final = "e"
"""The last piece of an answer that is whole."""


class Gone(Exception):
    """Whoever had the answer has it no more, or cannot hand it on."""


@dataclass(frozen=True, slots=True)
class Names:
    """How an answer is named in Redis: by what it answers, as a digest, and by its owner."""

    claim: str
    """Whose it is."""
    wanted: str
    """There while another copy wants it."""
    pieces: str
    left: str
    """The list of the answers to the same request whose clients have left, or timed out."""

    @classmethod
    def of(cls, place: Place, owner: str, *, is_left: bool) -> Self:
        """An answer's; of those that were left there may be several to the same request."""
        key, name = place
        digest = hashlib.sha256(f"{key}\0{name!r}".encode()).hexdigest()
        request = f"{PREFIX}:answer:{{{digest}}}"
        one = f"{request}:{owner}" if is_left else request
        return cls(f"{one}:claim", f"{one}:wanted", f"{request}:{owner}", f"{request}:left")


class _Opened(msgspec.Struct):
    """The first of the pieces: an answer's head, and what came with it."""

    head: Head
    first: bytes
    job_id: str | None
    endpoint: str = ""
    work_id: str = ""
    """The name of the endpoint that has the work, and its id there: the ledger knows it by both."""


def lease() -> int:
    """How long Redis keeps what lapses, in milliseconds."""
    return round(LEASE_SECONDS * 1000)


def opening(answer: Answer, first: bytes) -> str:
    """The first piece, of an answer that has been opened."""
    assert answer.head is not None
    course = answer.course
    opened = _Opened(answer.head, first, answer.job_id, course.endpoint, course.work_id)
    return "o" + msgspec.json.encode(opened).decode()


def following(piece: bytes) -> str:
    """One that follows."""
    return "p" + base64.b64encode(piece).decode()


def failing(error: ProxyError | None) -> str:
    """The last one of an answer that failed by this error, unless that is well asked for again."""
    if error is None or error.retry:
        return "g"
    return f"x{error.status} {base64.b64encode(error.body).decode()}"


class RemoteAnswer:
    """An answer that another copy has, read from Redis."""

    def __init__(self, state: SharedState, names: Names, owner: str) -> None:
        self.head: Head | None = None
        self.job_id: str | None = None
        self.road = "copy"
        self.course: Course = NO_COURSE
        self.is_waiting = True
        self._state = state
        self._keys = (names.claim, names.wanted, names.pieces)
        self._owner = owner
        self._position = 0
        self._pieces: list[str] = []

    async def open(self) -> bytes:
        """Wait for its beginning; raises Gone if its owner has it no more."""
        while (said := await self._next()) is None:
            pass
        if said[0] != "o":
            raise self._error(said)
        opened = msgspec.json.decode(said[1:], type=_Opened)
        self.head, self.job_id, self.is_waiting = opened.head, opened.job_id, False
        self.course = Course(endpoint=opened.endpoint, work_id=opened.work_id)
        return opened.first

    async def pieces(self) -> AsyncIterator[bytes]:
        """What follows; nothing where nothing came for a while."""
        while (said := await self._next()) != END:
            if said is None:
                yield b""
            elif said[0] == "p":
                yield base64.b64decode(said[1:])
            else:
                try:
                    raise self._error(said)
                except Gone:
                    raise Stopping(
                        "The copy of the proxy that had this answer has ended. Please send the "
                        "request again."
                    ) from None

    def close(self) -> None:
        """Want it no more: the wish lapses."""

    async def _next(self) -> str | None:
        """What is next in the list; None if it has not come yet. Raises Gone as `open`."""
        if self._pieces:
            return self._pieces.pop(0)
        last = self._position + PIECES_AT_ONCE - 1
        arguments = (self._owner, self._position, last, lease())
        try:
            is_owners, self._pieces = await self._state.run(LOOK, self._keys, arguments)
        except RedisAway:
            raise SharedStateAway(
                "Another copy of the proxy has the answer to this request, and cannot be asked "
                "for it now. Try again in a moment.",
                retry_after_seconds=1,
            ) from None
        self._position += len(self._pieces)
        if self._pieces:
            return self._pieces.pop(0)
        if not is_owners:
            return "g"
        await asyncio.sleep(LOOK_SECONDS)
        return None

    def _error(self, said: str) -> Exception:
        if said[0] != "x":
            return Gone()
        status, _, body = said[1:].partition(" ")
        return VLLMError(int(status), base64.b64decode(body))
