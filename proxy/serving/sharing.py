"""One job for a request and its repetitions: a request that comes again joins the running answer.

A client repeats a request under the same `Idempotency-Key`; OpenAI's SDKs repeat one by themselves
when their timeout passes, often in the middle of a cold start. Both get the answer that is under
way, from its beginning. Streams without the header are not looked at, and cost nothing.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from proxy.access.keys import Key
from proxy.api.answer import Answer
from proxy.api.call import Call
from proxy.api.forms import FormContent
from proxy.api.retries import Sender
from proxy.errors import IdempotencyKeyReused, InvalidRequest
from proxy.memory import Memory
from proxy.serving.several_readers import Claim, Place, SharedAnswer

log = logging.getLogger(__name__)

IDEMPOTENCY_KEY = "idempotency-key"
MAX_ANSWERS = 1_000


class Claims(Protocol):
    """Which answers copies of the proxy have for requests that come again."""

    def claim(self, shared: SharedAnswer) -> Claim:
        """Let this be its answer, unless another copy has one when it is opened."""

    def take(self, shared: SharedAnswer) -> None:
        """Let it be one that was left at another copy, if there is any when it is opened."""

    def leave(self, shared: SharedAnswer) -> Claim:
        """Let another copy take it, since it was left here."""

    async def close(self) -> None:
        """Let all of them go."""


class Sharing:
    """The answers that may be joined.

    What is kept of them counts in `memory`, and gives way where others need the room. With `claims`
    requests join those of other copies as well.
    """

    def __init__(self, memory: Memory, claims: Claims | None = None) -> None:
        self._claims = claims
        self.memory = memory
        memory.on_shortage = self._give_way
        self.kept_bytes = 0
        self._answers: dict[Place, list[SharedAnswer]] = {}
        self._count = 0

    def share(
        self, headers: Mapping[str, str], began: float, key: Key, call: Call, answer: Answer
    ) -> Answer:
        """The answer to this request: a running one that it joins, or this one, still unopened.

        The request came with these headers, at `began` (monotonic clock, in seconds).

        Raises:
            InvalidRequest: the header Idempotency-Key is malformed.
            IdempotencyKeyReused: it came with another request.
        """
        name = headers.get(IDEMPOTENCY_KEY)
        sender = Sender.of(headers, began)
        is_repeatable = sender.attempt is not None and not call.wants_stream
        if call.route.method != "POST" or (name is None and not is_repeatable):
            return answer
        if name is not None and not re.fullmatch(r"[!-~]{1,255}", name):
            raise InvalidRequest("The header Idempotency-Key is not 1 to 255 visible characters.")
        fingerprint = _fingerprint(call)
        place = (key.name, fingerprint if name is None else name)
        if name is not None:
            found = self._under_key(place, fingerprint)
        else:
            found = self._left(place, sender)
        if found is not None:
            answer.close()
            log.info("%s joins job %s", call.request_id, found.answer.job_id or "-")
            if name is None:
                found.withdraw()
        elif self._make_room():
            found = SharedAnswer(self, place, answer, fingerprint, is_kept=name is not None)
            self._look_elsewhere(found, sender)
            self._answers.setdefault(place, []).append(found)
            self._count += 1
        else:
            return answer
        reader = found.reader(sender)
        if self._claims is not None and name is None:
            reader.tell_when_overdue()
        return reader

    def note_left(self, shared: SharedAnswer) -> None:
        """The clients of this one have left or timed out: a retry may take it at another copy."""
        if self._claims is not None and shared.claim is None:
            shared.claim = self._claims.leave(shared)

    def forget(self, shared: SharedAnswer) -> None:
        """It can be joined no more."""
        shared.withdraw()
        answers = self._answers[shared.place]
        answers.remove(shared)
        self._count -= 1
        if not answers:
            del self._answers[shared.place]

    async def close(self) -> None:
        """The proxy stops: what is held for a repetition is given up."""
        answers = self._every()
        for shared in answers:
            shared.close()
        await asyncio.gather(*(shared.settled() for shared in answers))
        if self._claims is not None:
            await self._claims.close()

    def _look_elsewhere(self, shared: SharedAnswer, sender: Sender) -> None:
        """Let it be another copy's answer, where there may be one."""
        if self._claims is None:
            return
        if shared.is_kept:
            shared.claim = self._claims.claim(shared)
        elif sender.may_be_retry:
            self._claims.take(shared)

    def _under_key(self, place: Place, fingerprint: bytes) -> SharedAnswer | None:
        for shared in self._answers.get(place, ()):
            if shared.fingerprint != fingerprint:
                raise reused()
            return shared
        return None

    def _left(self, place: Place, sender: Sender) -> SharedAnswer | None:
        """One whose clients have timed out, known to be gone or not yet.

        Others with the same body belong to clients that each want an answer of their own. What may
        be a first attempt joins only where all are gone: it gets what no client has got.
        """
        answers = self._answers.get(place, ())
        if sender.attempt:
            left = [shared for shared in answers if shared.is_left]
        elif sender.is_javascript:
            left = [shared for shared in answers if not shared.readers]
        else:
            return None
        return min(left, key=lambda shared: len(shared.readers), default=None)

    def _give_way(self, size: int) -> None:
        """Keep answers no longer, those that have ended first, until so many bytes have room."""
        for shared in sorted(self._every(), key=lambda shared: not shared.has_ended):
            if self.memory.has_room(size):
                return
            shared.give_up()

    def _every(self) -> list[SharedAnswer]:
        return [shared for found in self._answers.values() for shared in found]

    def _make_room(self) -> bool:
        if self._count >= MAX_ANSWERS:
            oldest = next((s for s in self._every() if s.has_ended and not s.readers), None)
            if oldest is None:
                return False
            oldest.close()
        return True


def reused() -> IdempotencyKeyReused:
    """The error for a key that came with another request."""
    return IdempotencyKeyReused(
        "This Idempotency-Key came with another request. Use a new key for each."
    )


def _fingerprint(call: Call) -> bytes:
    """What makes two requests the same: their route and body, but for the boundary of a form."""
    digest = hashlib.sha256(call.route.path.encode() + b"\0")
    if (content := call.content) is not None:
        parts: Sequence[bytes | memoryview]
        if isinstance(content, FormContent):
            parts = content.parts()
        else:
            parts = [content.naming(call.model)]
        digest.update(content.content_type.partition(";")[0].strip().lower().encode())
        for part in parts:
            digest.update(b"\0%d\0" % len(part))
            digest.update(part)
    return digest.digest()
