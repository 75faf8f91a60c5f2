"""`make bench`: `python -m tests.bench --help`."""

import argparse
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from scripts.processes import ROOT
from scripts.progress import SetUpError
from tests.bench.capacity import Search
from tests.bench.drawings import draw
from tests.bench.endpoint import measured
from tests.bench.ground import Build, Ground, bare_ground, ground
from tests.bench.leaving import leaving
from tests.bench.pick_up import pick_up, workers
from tests.bench.profiles import profile
from tests.bench.record import Machine, Named, Record, packages_here, revision_of, today
from tests.bench.report import DOCUMENT, FIGURES, IMAGES, document
from tests.bench.revision import build_of
from tests.bench.rounds import OpenTargets, Rounds
from tests.bench.stacks import BEFORE, Target, targets

DRAFTS = ROOT / ".cache" / "bench"
"""Where a run goes that left something out; the documents are for whole ones."""
STREAMS = (1, 10, 100)
FULL_STREAMS = (1, 10, 20, 100, 400)
ENDPOINT_STREAMS = (1, 4)
"""A real endpoint costs money."""
FILES = 65_536
"""One for each stream, on both sides of a proxy."""
ROUNDS, FULL_ROUNDS = 3, 2
SECONDS, FULL_SECONDS = 3.0, 4.0


def main() -> int:
    """Measure, and write what was found."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stop)
    _allow_files(FILES)
    try:
        return _measure_endpoint(arguments) if arguments.base_url else _bench(arguments)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written")
        return 130
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        print(f"{' '.join(error.cmd)} failed: {said}", file=sys.stderr)
        return 1


def _allow_files(count: int) -> None:
    """Let us, and all that we start, have so many files open, if we may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if most == resource.RLIM_INFINITY else min(count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


def _measure_endpoint(arguments: argparse.Namespace) -> int:
    key = os.environ.get("API_KEY", "")
    if not arguments.model or not key:
        raise SystemExit("a real endpoint needs MODEL= and API_KEY= as well")
    with bare_ground() as bare:
        streams = arguments.streams or ENDPOINT_STREAMS
        _say(measured(bare, arguments.base_url, arguments.model, key, streams))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    with ExitStack() as stack:
        before: Build | None = None
        if arguments.baseline:
            before = stack.enter_context(build_of(arguments.baseline))
        wanted = _wanted(targets(before), arguments)
        names = [Named(one.name, one.title) for one in wanted]
        record = Record(
            day=today(),
            revision=revision_of(),
            baseline=revision_of(arguments.baseline) if arguments.baseline else "",
            machine=Machine.here(),
            packages=packages_here(names),
            rounds=arguments.rounds,
            window_seconds=arguments.seconds,
            load_average=os.getloadavg()[0],
            targets=names,
        )
        there = OpenTargets(stack.enter_context(ground()), _say)
        for target in wanted:
            there.open(target, stack)
        _measure(record, there, arguments)
        if not arguments.only:
            _measure_workers(record, there.ground, before, arguments)
    return _write(record, is_whole=not (arguments.only or arguments.streams))


def _measure(record: Record, there: OpenTargets, arguments: argparse.Namespace) -> None:
    rounds = Rounds(
        there,
        streams=arguments.streams or (FULL_STREAMS if arguments.full else STREAMS),
        any_streams=bool(arguments.streams),
        seconds=arguments.seconds,
    )
    record.results = rounds.go(record.rounds)
    up = [one for one in there.targets if one.name in there.opened]
    for target in up:
        if there.opened[target.name].engine_url:
            _say(f"clients that leave: {target.title}")
            record.leavings.append(leaving(target.name, there.opened[target.name]))
    if arguments.full:
        search = Search(there.ground.see, there.opened["direct"], _say)
        for target in up:
            if target.has_capacity:
                _say(f"how many streams one core holds: {target.title}")
                record.capacities.append(search.of(target.name, there.opened[target.name]))
    if arguments.profile:
        for target in up:
            for kind in target.profiled:
                _say(f"profiling {target.title}, {kind}")
                found = profile(there.ground, target.name, there.opened[target.name], kind)
                record.profiles.append(found)


def _measure_workers(
    record: Record, ground: Ground, before: Build | None, arguments: argparse.Namespace
) -> None:
    for worker in workers(ground, before, is_full=arguments.full):
        _say(f"jobs for a worker: {worker.title}")
        record.pick_ups.append(pick_up(ground, worker))


def _say(line: str) -> None:
    print(line, flush=True)


def _wanted(every: Sequence[Target], arguments: argparse.Namespace) -> list[Target]:
    if not arguments.only:
        return [one for one in every if arguments.full or not one.is_extra]
    known = dict.fromkeys(one.name.removeprefix(BEFORE) for one in every[1:])
    if unknown := [name for name in arguments.only if name not in known]:
        raise SystemExit(f"no such target: {', '.join(unknown)}; there are {', '.join(known)}")
    names = {"direct", *arguments.only}
    return [one for one in every if one.name.removeprefix(BEFORE) in names]


def _write(record: Record, *, is_whole: bool) -> int:
    folder = DOCUMENT.parent if is_whole else DRAFTS
    figures, text = folder / FIGURES.name, folder / DOCUMENT.name
    record.save(figures)
    record = Record.load(figures)  # rounded as it is kept, so that the page is made of that alone
    text.write_text(document(record, _drawn(record, folder / IMAGES.name)))
    if not is_whole:
        _say(document(record))
    _say(f"\nwritten: {text.relative_to(ROOT)}, {figures.relative_to(ROOT)}")
    return 0 if any(one.seen for one in record.results if one.target != "direct") else 1


def _drawn(record: Record, folder: Path) -> list[str]:
    try:
        return draw(record, folder)
    except SetUpError as error:
        _say(f"no plots: {error}")
        return []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--baseline", help="a revision to measure beside this one")
    parser.add_argument("--full", action="store_true", help="everything there is, for half an hour")
    parser.add_argument("--only", type=_names, help="these targets alone, beside the direct run")
    parser.add_argument("--streams", type=_numbers, help="these numbers of streams alone")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--base-url", help="measure this endpoint alone; its key is in API_KEY")
    parser.add_argument("--model", help="the model to ask of it")
    parser.add_argument("--profile", action="store_true", help="tell where the time goes")
    parser.add_argument("--seconds", type=float, help="of each run's window")
    found = parser.parse_args()
    found.rounds = found.rounds or (FULL_ROUNDS if found.full else ROUNDS)
    found.seconds = found.seconds or (FULL_SECONDS if found.full else SECONDS)
    return found


def _names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in _names(text)}))


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
