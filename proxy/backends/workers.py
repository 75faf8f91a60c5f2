"""Which workers of an endpoint are known to be up: those that have answered.

A worker that has a job need not be ready for it: with runpod 2's prestart hooks it takes jobs while
it still loads its model. RunPod says IN_PROGRESS all the same; only /status names the worker, so it
is asked where a job is in progress without an output, and now and then after an output.
"""

import time
from collections import OrderedDict
from typing import Final

MAX_WORKERS: Final = 1000
"""Of so many it is known that they have answered; the oldest are forgotten first."""
LEARN_SECONDS: Final = 1.0
"""Between two questions which worker has answered."""


class Workers:
    """The workers of one endpoint, by RunPod's ids."""

    def __init__(self) -> None:
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._asked = -LEARN_SECONDS

    def has_answered(self, worker_id: str) -> bool:
        """Whether this worker is known to have been up."""
        return worker_id in self._answered

    def note_answered(self, worker_id: str) -> None:
        """This worker has put something out."""
        self._answered[worker_id] = None
        self._answered.move_to_end(worker_id)
        if len(self._answered) > MAX_WORKERS:
            self._answered.popitem(last=False)

    def may_ask(self) -> bool:
        """Whether it is time to ask which worker has just answered; if so, the caller does."""
        now = time.monotonic()
        if now - self._asked < LEARN_SECONDS:
            return False
        self._asked = now
        return True
