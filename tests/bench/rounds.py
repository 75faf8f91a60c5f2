"""The runs: each target under each load, in rounds, beside a direct run in the same minutes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final, Literal

import msgspec

from scripts.processes import ProcessDied
from tests.bench.ground import Ground
from tests.bench.load import Load, Seen
from tests.bench.processes import memory_bytes
from tests.bench.stacks import Opened, Target

STARTS_A_SECOND: Final = 33
LONGEST_RAMP_SECONDS: Final = 8.0
MANY_STREAMS: Final = 200
"""From here on a window is twice as long: a stream that polls gets few turns."""
FEW_STREAMS: Final = 10
"""Up to here more streams are begun than are held, or there would be few first tokens."""
PLAIN_A_SECOND: Final = 20

Calls = dict[str, dict[str, int]]


class Result(msgspec.Struct, kw_only=True):
    """One run of one target."""

    round: int
    target: str
    kind: Literal["streams", "plain"]
    streams: int
    seen: Seen | None = None
    calls: Calls = {}
    """Of RunPod's operations, during the run."""
    idle_memory_bytes: int = 0
    """What the target held when it had served a few requests and was idle."""
    error: str = ""
    """Why there is nothing seen."""


class Rounds:
    """Runs targets that are all open at once; what is not asked anything costs next to nothing."""

    def __init__(
        self,
        ground: Ground,
        targets: Sequence[Target],
        *,
        streams: Sequence[int],
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self.results: list[Result] = []
        self._ground = ground
        self._targets = targets
        self._streams = streams
        self._seconds = seconds
        self._say = say
        self._opened: dict[str, Opened] = {}
        self._idle: dict[str, int] = {}
        self._failed: dict[str, str] = {}

    def go(self, rounds: int) -> list[Result]:
        """Open all targets, run them, close them; a target that fails is left out, and told."""
        with ExitStack() as stack:
            for target in self._targets:
                self._open(target, stack)
            for number in range(rounds):
                for target, kind, streams in self._order(number):
                    self._run(number, target, kind, streams)
        return self.results

    def _open(self, target: Target, stack: ExitStack) -> None:
        self._say(f"starting {target.title}")
        try:
            opened = stack.enter_context(target.open(self._ground))
            self._ground.see(_warm_up(opened))
        except (ProcessDied, RuntimeError, AssertionError, OSError) as error:
            self._failed[target.name] = str(error) or repr(error)
            self._say(f"  failed: {self._failed[target.name]}")
            return
        self._opened[target.name] = opened
        self._idle[target.name] = memory_bytes(opened.watched)

    def _order(self, number: int) -> Iterator[tuple[Target, Literal["streams", "plain"], int]]:
        """All runs of a round; who comes first after the direct run changes with the round."""
        direct, others = self._targets[:1], list(self._targets[1:])
        turn = number % max(1, len(others))
        ordered = [*direct, *others[turn:], *others[:turn]]
        for streams in self._streams:
            for target in ordered:
                if target.fewest <= streams <= target.most:
                    yield target, "streams", streams
        for target in ordered:
            if target.has_plain:
                yield target, "plain", 1

    def _run(
        self, number: int, target: Target, kind: Literal["streams", "plain"], streams: int
    ) -> None:
        result = Result(round=number, target=target.name, kind=kind, streams=streams)
        self.results.append(result)
        if (opened := self._opened.get(target.name)) is None:
            result.error = self._failed[target.name]
            return
        began = time.monotonic()
        load = self._load(opened, kind, streams)
        try:
            before = opened.calls()
            result.seen = self._ground.see(load)
            result.calls = _more(before, opened.calls())
            result.idle_memory_bytes = self._idle[target.name]
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            result.error = str(error) or repr(error)
        self._say(f"  {_line(result, target)}  [{time.monotonic() - began:.0f} s]")

    def _load(self, opened: Opened, kind: Literal["streams", "plain"], streams: int) -> Load:
        seconds = self._seconds * (2 if streams >= MANY_STREAMS else 1)
        return Load(
            url=opened.url,
            key=opened.key,
            model=opened.model,
            kind=kind,
            streams=streams,
            starts=max(0, FEW_STREAMS - streams),
            ramp_seconds=min(max(1.0, streams / STARTS_A_SECOND), LONGEST_RAMP_SECONDS),
            window_seconds=seconds,
            requests_a_second=PLAIN_A_SECOND,
            watched=opened.watched,
        )


def _warm_up(opened: Opened) -> Load:
    return Load(
        url=opened.url,
        key=opened.key,
        model=opened.model,
        kind="streams",
        starts=10,
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
    what = f"{result.streams:3} streams" if result.kind == "streams" else "plain      "
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
