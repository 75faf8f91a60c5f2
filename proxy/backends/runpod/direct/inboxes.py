"""Whose a frame is that comes by a channel: the inboxes of this proxy's jobs, by nonce."""

import secrets
from collections import OrderedDict
from typing import Final

from proxy.backends.runpod.direct.inbox import Inbox
from proxy.memory import Memory

MAX_PAST: Final = 10_000
"""So many jobs that are followed no more are remembered: their workers may not have heard of it."""


class Inboxes:
    """The jobs that are followed, and those that were until lately.

    A nonce is in no answer and no log: who knows it has the job's input, as the worker does.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._inboxes: dict[str, Inbox] = {}
        self._past: OrderedDict[str, bool] = OrderedDict()
        """Whether they were left before their end."""

    def open(self) -> Inbox:
        """An inbox for a job that is about to be submitted: a frame can outrun RunPod's answer."""
        inbox = Inbox(secrets.token_hex(16), self._memory.reserve_for_answer())
        self._inboxes[inbox.nonce] = inbox
        return inbox

    def close(self, inbox: Inbox, *, was_left: bool) -> None:
        """Nobody follows the job any more."""
        self._inboxes.pop(inbox.nonce, None)
        inbox.clear()
        self._past[inbox.nonce] = was_left
        if len(self._past) > MAX_PAST:
            self._past.popitem(last=False)

    def find(self, nonce: str) -> Inbox | None:
        """The inbox of a job that is followed."""
        return self._inboxes.get(nonce)

    def is_past(self, nonce: str) -> bool:
        """Whether the job is one that was followed until lately."""
        return nonce in self._past

    def was_left(self, nonce: str) -> bool:
        """Whether it was left before its end, so that its worker should stop."""
        return self._past.get(nonce, False)
