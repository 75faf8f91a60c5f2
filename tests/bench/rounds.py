"""The runs: each target under each load, in rounds, beside a direct run in the same minutes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

import msgspec

from tests.bench.ground import Ground
from tests.bench.load import Kind, Load, Seen
from tests.bench.processes import memory_bytes
from tests.bench.stacks import Opened, Target

STARTS_A_SECOND: Final = 33
LONGEST_RAMP_SECONDS: Final = 8.0
MANY_STREAMS: Final = 200
"""From here on a window is twice as long: a stream that polls gets few turns."""
FEW_STREAMS: Final = 6
"""Up to here more streams are begun than are held, or there would be few first tokens."""

Calls = dict[str, dict[str, int]]


class Result(msgspec.Struct, kw_only=True):
    """One run of one target."""

    round: int
    target: str
    kind: Kind
    streams: int
    """Or of plain requests, how many a second."""
    seen: Seen | None = None
    calls: Calls = {}
    """Of RunPod's operations, during the run."""
    idle_memory_bytes: int = 0
    """What the target held when it had served a few requests and was idle."""
    error: str = ""
    """Why there is nothing seen."""


class OpenTargets:
    """Targets that are all up at once; one that is not asked anything costs next to nothing."""

    def __init__(self, ground: Ground, say: Callable[[str], None]) -> None:
        self.ground = ground
        self.say = say
        self.targets: list[Target] = []
        self.opened: dict[str, Opened] = {}
        self.idle_memory: dict[str, int] = {}
        """What each held when it had served a few requests."""
        self.failed: dict[str, str] = {}
        """Why a target is not up."""

    def open(self, target: Target, stack: ExitStack) -> None:
        """Open it; one that fails is left out, and told."""
        self.targets.append(target)
        self.say(f"starting {target.title}")
        try:
            opened = stack.enter_context(target.open(self.ground))
            self.ground.see(_warm_up(opened))
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            self.failed[target.name] = str(error) or repr(error)
            self.say(f"  failed: {self.failed[target.name]}")
            return
        self.opened[target.name] = opened
        self.idle_memory[target.name] = memory_bytes(opened.watched)


class Rounds:
    """The runs of all targets, in rounds."""

    def __init__(
        self,
        there: OpenTargets,
        *,
        streams: Sequence[int],
        any_streams: bool,
        seconds: float,
    ) -> None:
        self._there = there
        self._streams = streams
        self._any_streams = any_streams
        self._seconds = seconds

    def go(self, rounds: int) -> list[Result]:
        """Run them so many times."""
        return [
            self._run(number, target, kind, streams)
            for number in range(rounds)
            for target, kind, streams in self._order(number)
        ]

    def _order(self, number: int) -> Iterator[tuple[Target, Kind, int]]:
        """All runs of a round; who comes first after the direct run changes with the round."""
        direct, *others = self._there.targets
        turn = number % max(1, len(others))
        ordered = [direct, *others[turn:], *others[:turn]]
        for streams in self._streams:
            for target in ordered:
                if self._is_at(target, streams):
                    yield target, "streams", streams
        for target in ordered:
            for rate in target.plain_at:
                yield target, "plain", rate

    def _is_at(self, target: Target, streams: int) -> bool:
        if self._any_streams:
            return target.at[0] <= streams <= target.at[-1]
        return streams in target.at

    def _run(self, number: int, target: Target, kind: Kind, streams: int) -> Result:
        there = self._there
        result = Result(round=number, target=target.name, kind=kind, streams=streams)
        if (opened := there.opened.get(target.name)) is None:
            result.error = there.failed[target.name]
            return result
        began = time.monotonic()
        try:
            before = opened.calls()
            result.seen = there.ground.see(self._load(opened, kind, streams))
            result.calls = _more(before, opened.calls())
            result.idle_memory_bytes = there.idle_memory[target.name]
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            result.error = str(error) or repr(error)
        there.say(f"  {_line(result, target)}  [{time.monotonic() - began:.0f} s]")
        return result

    def _load(self, opened: Opened, kind: Kind, streams: int) -> Load:
        return Load(
            url=opened.url,
            key=opened.key,
            model=opened.model,
            kind=kind,
            streams=streams,
            starts=max(0, FEW_STREAMS - streams),
            ramp_seconds=min(max(0.5, streams / STARTS_A_SECOND), LONGEST_RAMP_SECONDS),
            window_seconds=self._seconds * (2 if streams >= MANY_STREAMS else 1),
            requests_a_second=streams,
            watched=opened.watched,
        )


def _warm_up(opened: Opened) -> Load:
    return Load(
        url=opened.url,
        key=opened.key,
        model=opened.model,
        kind="streams",
        starts=3,
        ramp_seconds=0.2,
        window_seconds=0.5,
        watched=opened.watched,
    )


def _more(before: Calls, after: Calls) -> Calls:
    """How many more there are after than before."""
    return {
        name: {key: count - before.get(name, {}).get(key, 0) for key, count in counts.items()}
        for name, counts in after.items()
    }


def _line(result: Result, target: Target) -> str:
    what = f"{result.streams:3} {'streams' if result.kind == 'streams' else 'a second'}"
    head = f"round {result.round + 1}, {what}, {target.title}: "
    if (seen := result.seen) is None:
        return head + f"failed: {result.error}"
    failed = (
        f", {sum(seen.failed.values())} failed: {next(iter(seen.failed))}" if seen.failed else ""
    )
    if seen.plain is not None:
        return head + f"{seen.plain.p50 * 1000:.1f} ms{failed}"
    if seen.first_token is None or seen.gap is None:
        return head + f"nothing came{failed}"
    return (
        head + f"first token {seen.first_token.p50 * 1000:.0f} ms, "
        f"gap {seen.gap.p50 * 1000:.0f} and {seen.gap.p99 * 1000:.0f} ms{failed}"
    )
