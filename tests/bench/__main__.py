"""`make bench`: `python -m tests.bench --help`."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from scripts.processes import ROOT
from tests.bench.ground import Build, ground
from tests.bench.record import Machine, Named, Record, packages_here, revision_of, today
from tests.bench.report import DOCUMENT, FIGURES, document
from tests.bench.revision import build_of
from tests.bench.rounds import Rounds
from tests.bench.stacks import Target, targets

DRAFTS = ROOT / ".cache" / "bench"
"""Where a run goes that left something out; the documents are for whole ones."""
STREAMS = (1, 10, 100)
FULL_STREAMS = (1, 10, 20, 100, 400)


def main() -> int:
    """Measure, and write what was found."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _bench(arguments)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written")
        return 130
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        print(f"{' '.join(error.cmd)} failed: {said}", file=sys.stderr)
        return 1


def _bench(arguments: argparse.Namespace) -> int:
    with ExitStack() as stack:
        before: Build | None = None
        if arguments.baseline:
            before = stack.enter_context(build_of(arguments.baseline))
        wanted = _wanted(targets(before), arguments)
        streams = arguments.streams or (FULL_STREAMS if arguments.full else STREAMS)
        record = Record(
            day=today(),
            revision=revision_of(),
            baseline=revision_of(arguments.baseline) if arguments.baseline else "",
            machine=Machine.here(),
            packages=packages_here(),
            rounds=arguments.rounds,
            window_seconds=arguments.seconds,
            load_average=os.getloadavg()[0],
            targets=[Named(one.name, one.title) for one in wanted],
        )
        rounds = Rounds(
            stack.enter_context(ground()),
            wanted,
            streams=streams,
            seconds=arguments.seconds,
            say=lambda line: print(line, flush=True),
        )
        record.results = rounds.go(arguments.rounds)
    return _write(record, is_whole=not (arguments.only or arguments.streams))


def _wanted(every: Sequence[Target], arguments: argparse.Namespace) -> list[Target]:
    if not arguments.only:
        return [one for one in every if arguments.full or not one.is_extra]
    known = dict.fromkeys(one.name.removeprefix("before-") for one in every[1:])
    if unknown := [name for name in arguments.only if name not in known]:
        raise SystemExit(f"no such target: {', '.join(unknown)}; there are {', '.join(known)}")
    names = {"direct", *arguments.only}
    return [one for one in every if one.name.removeprefix("before-") in names]


def _write(record: Record, *, is_whole: bool) -> int:
    figures = FIGURES if is_whole else DRAFTS / FIGURES.name
    text = DOCUMENT if is_whole else DRAFTS / DOCUMENT.name
    record.save(figures)
    text.write_text(document(record))
    if not is_whole:
        print(document(record))
    print(f"\nwritten: {_shown(text)}, {_shown(figures)}")
    return 0 if any(one.seen for one in record.results if one.target != "direct") else 1


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--baseline", help="a revision to measure beside this one")
    parser.add_argument("--full", action="store_true", help="everything there is, for half an hour")
    parser.add_argument("--only", type=_names, help="these targets alone, beside the direct run")
    parser.add_argument("--streams", type=_numbers, help="these numbers of streams alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run's window")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(word) for word in _names(text)}))


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
