"""What the plots of the document show."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from scripts.bench import set_up_for_bench
from scripts.processes import ROOT
from scripts.progress import run
from tests.bench import figures
from tests.bench.figures import Figure, Figures, Measure
from tests.bench.record import Named, Record
from tests.bench.stacks import BEFORE

PREFIX: Final = "performance-"
"""What the names of the files begin with."""
MILLISECONDS: Final = 1000.0
MICROSECONDS: Final = 1_000_000.0
FEWEST_FOR_LINES: Final = 2
"""Numbers of streams without which there is no line to draw."""

Series = dict[str, Any]


def drawings(record: Record) -> list[dict[str, Any]]:
    """Each plot that has something to show, as `plots.py` reads it."""
    found = Figures(record)
    streams = found.streams()
    every = [target for target in record.targets if target.name != "direct"]
    wanted: list[dict[str, Any]] = []
    if len(streams) >= FEWEST_FOR_LINES:
        wanted += [
            {
                "name": "gaps",
                "title": "Added to the gap between two tokens, 99th percentile",
                "kind": "lines",
                "unit": "ms",
                "linear_below": 10,
                "series": _lines(found, every, figures.gap_p99),
            },
            {
                "name": "first-token",
                "title": "Added to the time to the first token, median",
                "kind": "lines",
                "unit": "ms",
                "linear_below": 10,
                "series": _lines(found, every, figures.first_token_p50),
            },
        ]
    compared = 20 if 20 in streams else max(streams, default=0)
    wanted.append(
        {
            "name": "cpu",
            "title": f"CPU time of the proxy for each chunk, at {compared} streams",
            "kind": "bars",
            "unit": "microseconds",
            "series": _bars(
                every,
                lambda target: found.of(target.name, figures.cpu_per_chunk, compared),
                MICROSECONDS,
            ),
        }
    )
    held = {one.target: Figure.of([one.streams]) for one in record.capacities}
    wanted.append(
        {
            "name": "capacity",
            "title": "Streams that one core holds",
            "kind": "bars",
            "unit": "streams of 20 tokens a second",
            "series": _bars(every, lambda target: held.get(target.name), 1.0),
        }
    )
    return [one for one in wanted if one["series"]]


def draw(record: Record, folder: Path) -> list[str]:
    """Draw them into that folder; the names of the files.

    Raises:
        SetUpError: matplotlib could not be installed, or failed.
    """
    wanted = drawings(record)
    folder.mkdir(parents=True, exist_ok=True)
    python = set_up_for_bench("plots").python
    for old in folder.glob(f"{PREFIX}*.svg"):
        old.unlink()
    run([python, ROOT / "tests" / "bench" / "plots.py", folder], text=json.dumps(wanted))
    return sorted(path.name for path in folder.glob(f"{PREFIX}*.svg"))


def _lines(found: Figures, targets: list[Named], measure: Measure) -> list[Series]:
    series = []
    for target in targets:
        points = [
            (count, figure)
            for count in found.streams()
            if (figure := found.added(target.name, measure, count)) is not None
        ]
        if len(points) >= FEWEST_FOR_LINES:
            counts, values = [count for count, _ in points], [figure for _, figure in points]
            series.append(_series(target, counts, values, MILLISECONDS))
    return series


def _bars(
    targets: list[Named], figure_of: Callable[[Named], Figure | None], scale: float
) -> list[Series]:
    return [
        _series(target, [0], [figure], scale)
        for target in targets
        if (figure := figure_of(target)) is not None
    ]


def _series(target: Named, x: list[int], values: list[Figure], scale: float) -> Series:
    return {
        "title": target.title,
        "is_before": target.name.startswith(BEFORE),
        "x": x,
        "y": [one.median * scale for one in values],
        "least": [one.least * scale for one in values],
        "most": [one.most * scale for one in values],
    }
