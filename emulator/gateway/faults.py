"""Faults: calls that are delayed, refused, or dropped on purpose.

A rule names an operation and what goes wrong with it; rules come from `[[faults]]` in the TOML
file and from the control API. They imitate a network and a platform at their worst, so they know
nothing of jobs: a lost chunk is a `job-stream` answered 200 without having been looked at.
"""

import random
from typing import Any

from emulator.settings import Fault, OperationName


class Faults:
    """The rules in force and how often each was met."""

    def __init__(self, initial: tuple[Fault, ...] = ()) -> None:
        self._initial = initial
        self.reset()

    def reset(self) -> None:
        """Back to the rules of the settings, as if nothing had been called."""
        self._rules: list[Fault] = list(self._initial)
        self._met: list[int] = [0] * len(self._initial)
        self._dice = random.Random(0)  # noqa: S311  # repeatable on purpose

    def add(self, fault: Fault) -> None:
        """Put one more rule in force, after those there are."""
        self._rules.append(fault)
        self._met.append(0)

    def clear(self) -> None:
        """Let everything go well."""
        self._rules.clear()
        self._met.clear()

    def view(self) -> list[dict[str, Any]]:
        """Each rule, with how many calls it has hit."""
        return [
            {**rule.model_dump(), "hits": max(0, met - rule.skip)}
            for rule, met in zip(self._rules, self._met, strict=True)
        ]

    def meet(self, operation: OperationName, endpoint_id: str) -> list[Fault]:
        """The faults this call meets; counts the call."""
        met = []
        for index, rule in enumerate(self._rules):
            if rule.operation == operation and rule.endpoint in ("", endpoint_id):
                met += [rule] * self._meets(index, rule)
        return met

    def _meets(self, index: int, rule: Fault) -> bool:
        is_used_up = rule.times and self._met[index] >= rule.skip + rule.times
        if is_used_up or (rule.chance < 1 and self._dice.random() >= rule.chance):
            return False
        self._met[index] += 1
        return self._met[index] > rule.skip
