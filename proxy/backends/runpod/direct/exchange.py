"""Who is meant by what comes on a channel: the jobs of this proxy by their nonces."""

import secrets
from collections import OrderedDict
from typing import Final

from proxy.backends.runpod.direct.inbox import Inbox
from proxy.memory import Memory

MAX_LEFT: Final = 10_000
"""So many jobs that were left are remembered, in case their workers have not heard of it."""


class Exchange:
    """The jobs that are followed, by nonce, and those that were left before their end.

    A nonce is in no answer and no log: who knows it has the job's input, as the worker does.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._inboxes: dict[str, Inbox] = {}
        self._left: OrderedDict[str, None] = OrderedDict()

    def open(self) -> Inbox:
        """An inbox for a job that is about to be submitted: a frame can outrun RunPod's answer."""
        inbox = Inbox(secrets.token_hex(16), self._memory.reserve_for_answer())
        self._inboxes[inbox.nonce] = inbox
        return inbox

    def close(self, inbox: Inbox, *, was_left: bool) -> None:
        """Nobody follows the job any more."""
        self._inboxes.pop(inbox.nonce, None)
        inbox.clear()
        if was_left:
            self._left[inbox.nonce] = None
            if len(self._left) > MAX_LEFT:
                self._left.popitem(last=False)

    def find(self, nonce: str) -> Inbox | None:
        """The inbox of a job that is followed."""
        return self._inboxes.get(nonce)

    def was_left(self, nonce: str) -> bool:
        """Whether the job is one of ours that nobody wants any more."""
        return nonce in self._left
