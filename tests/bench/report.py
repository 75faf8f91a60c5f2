"""`docs/performance.md` from the figures: `python -m tests.bench.report` writes it anew.

The words are in `template.md`, a section for each table; a section whose table is empty is left
out.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Final

from scripts.processes import ROOT
from tests.bench import figures
from tests.bench.drawings import draw
from tests.bench.figures import Figure, Figures
from tests.bench.load import Kind
from tests.bench.profiles import Profile
from tests.bench.record import Machine, Named, Record
from tests.bench.rounds import Result
from tests.bench.stacks import BEFORE, POSTS

FIGURES: Final = ROOT / "docs" / "performance.json"
DOCUMENT: Final = ROOT / "docs" / "performance.md"
IMAGES: Final = ROOT / "docs" / "images"
TEMPLATE: Final = Path(__file__).with_name("template.md")
PLOTS: Final = {
    "gaps": "What is added to the gap between two tokens, over the number of streams",
    "first_token": "What is added to the time to the first token, over the number of streams",
    "cpu": "CPU time of the proxy for each chunk",
    "capacity": "How many streams one core holds",
}
"""What each plot shows, by the name of its file with an underscore."""
GLANCE_STREAMS: Final = 100
GLANCE_PLAIN: Final = 20
WHOLE_FROM: Final = 20
MILLISECONDS: Final = 1000.0
MICROSECONDS: Final = 1_000_000.0
KIBIBYTES: Final = 1 / 1024

Row = tuple[str, ...]


def document(record: Record, plots: Sequence[str] = ()) -> str:
    """The whole document, with those of the plots that there are, in the folder `images`."""
    found = Figures(record)
    values = {
        "glance": _glance(found),
        "streams": _streams(found),
        "plain": _plain(found),
        "cpu": _cpu(found),
        "capacity": _capacity(record),
        "calls": _calls(found),
        "leaving": _leaving(record),
        "workers": _workers(record),
        "profiles": _profiles(record),
        "before": _before(found),
        "day": record.day,
        "revision": record.revision,
        "baseline": record.baseline,
        "rounds": str(record.rounds),
        "window": f"{record.window_seconds:g}",
        "machine": _machine(record.machine),
        "cores": _cores(record.machine),
        "load": f"{record.load_average:.1f}",
        "packages": ", ".join(f"{name} {number}" for name, number in record.packages.items()),
    }
    values |= {f"plot_{name}": _plot(name, plots) for name in PLOTS}
    sections = re.split(r"\n(?=## )", TEMPLATE.read_text())
    filled = [_filled(section, values) for section in sections]
    return "\n".join(section for section in filled if section)


def _filled(section: str, values: dict[str, str]) -> str:
    template = Template(section)
    names = template.get_identifiers()
    if any(not values[name] for name in names if not name.startswith("plot_")):
        return ""
    return re.sub(r"\n{3,}", "\n\n", template.substitute(values))


def _plot(name: str, plots: Sequence[str]) -> str:
    file = f"performance-{name.replace('_', '-')}.svg"
    return f"![{PLOTS[name]}](images/{file})" if file in plots else ""


def _machine(machine: Machine) -> str:
    memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    return (
        f"The machine: {machine.processor}, {machine.cores} cores, {memory}, {machine.system}, "
        f"Python {machine.python}."
    )


def _cores(machine: Machine) -> str:
    if machine.cores == 1:
        return "There is one core, which everything shares, so figures are too high."
    return (
        "What is measured is bound to one core, and everything else (load, engine, queue,\n"
        "  emulator, worker) to the others."
    )


def _table(head: Row, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(figure: Figure | None, scale: float = 1.0, digits: int = 1) -> str:
    return figure.text(scale, digits) if figure is not None else "-"


def _glance(found: Figures) -> str:
    """The medians that matter most, a row for each target, at up to a hundred streams."""
    held = {one.target: f"{one.streams:,}" for one in found.record.capacities}
    rows: list[Row] = []
    for target in _but_direct(found):
        measured = [
            count
            for count in found.streams()
            if count <= GLANCE_STREAMS and found.of(target.name, figures.gap_p99, count)
        ]
        if not measured:
            continue
        most = measured[-1]
        first = found.added(target.name, figures.first_token_p50, most)
        gap = found.added(target.name, figures.gap_p99, most)
        chunk = found.of(target.name, figures.cpu_per_chunk, most)
        request = found.of(target.name, figures.cpu_per_request, GLANCE_PLAIN, "plain")
        cells = (
            f"{most}",
            _median(first, MILLISECONDS),
            _median(gap, MILLISECONDS),
            _median(chunk, MICROSECONDS),
            _median(request, MICROSECONDS),
            held.get(target.name, "-"),
        )
        rows.append((target.title, *cells))
    head = (
        *("", "streams", "first token, ms more", "gap p99, ms more"),
        *("CPU of a chunk, us", "CPU of a plain request, us", "streams a core holds"),
    )
    return _table(head, rows)


def _streams(found: Figures) -> str:
    """A table for each number of streams."""
    return "\n\n".join(
        f"**{_streams_text(streams)}**, in ms\n\n{table}"
        for streams in found.streams()
        if (table := _streams_table(found, streams))
    )


def _streams_table(found: Figures, streams: int) -> str:
    head = (
        *("", "added to the first token, p50", "p99", "added to the gap, p50", "p99"),
        *("stalls", "lost, repeated, failed"),
    )
    measures = (
        figures.first_token_p50,
        figures.first_token_p99,
        figures.gap_p50,
        figures.gap_p99,
    )
    rows: list[Row] = []
    for target in _but_direct(found):
        if not found.results(target.name, "streams", streams):
            continue
        if error := found.error(target.name, "streams", streams):
            rows.append((target.title, f"failed: {_one_line(error)}", *([""] * 5)))
            continue
        added = [_text(found.added(target.name, one, streams), MILLISECONDS) for one in measures]
        counts = [
            str(found.total(target.name, streams, one)) for one in (_lost, _repeated, _failed)
        ]
        stalls = str(found.total(target.name, streams, _stalls))
        rows.append((target.title, *added, stalls, ", ".join(counts)))
    return _table(head, rows)


def _plain(found: Figures) -> str:
    """Times at the lowest rate, where none waits for another; CPU time at each."""
    if not (rates := found.loads("plain")):
        return ""
    costs = [f"CPU at {rate} a second, us" for rate in rates]
    head = ("", "added, p50, ms", "p99, ms", *costs)
    rows: list[Row] = []
    for target in _but_direct(found):
        if not found.results(target.name, "plain", rates[0]):
            continue
        if error := found.error(target.name, "plain", rates[0]):
            rows.append((target.title, f"failed: {_one_line(error)}", "", *("" for _ in rates)))
            continue
        added = [
            _text(found.added(target.name, one, rates[0], "plain"), MILLISECONDS)
            for one in (figures.plain_p50, figures.plain_p99)
        ]
        cpu = [
            _text(found.of(target.name, figures.cpu_per_request, rate, "plain"), MICROSECONDS, 0)
            for rate in rates
        ]
        rows.append((target.title, *added, *cpu))
    return _table(head, rows)


def _cpu(found: Figures) -> str:
    streams = found.streams()
    most = max(streams, default=0)
    memory_at = 100 if 100 in streams else most
    columns = [_streams_text(count) for count in streams]
    head = ("", *columns, f"KiB a stream, {_streams_text(memory_at)}")
    rows: list[Row] = []
    for target in _but_direct(found):
        cells = [
            _text(found.of(target.name, figures.cpu_per_chunk, count), MICROSECONDS, 0)
            for count in streams
        ]
        memory = _text(found.memory_per_stream(target.name, memory_at), KIBIBYTES, 0)
        if any(cell != "-" for cell in cells):
            rows.append((target.title, *cells, memory))
    return _table(head, rows)


def _calls(found: Figures) -> str:
    streams = found.streams()
    head = ("", *map(_streams_text, streams), "refused", "posts of the worker")
    rows: list[Row] = []
    for target in _but_direct(found):
        every = [one for count in streams for one in found.results(target.name, "streams", count)]
        if not any(one.calls for one in every):
            continue
        results = [found.results(target.name, "streams", count) for count in streams]
        cells = [_calls_per_1000_tokens("stream", some) for some in results]
        refused = sum(call["refused"] for one in every for call in one.calls.values())
        posts = _calls_per_1000_tokens(POSTS, every)
        rows.append((target.title, *cells, str(refused), posts))
    return _table(head, rows)


def _capacity(record: Record) -> str:
    titles = {one.name: one.title for one in record.targets}
    rows = [
        (
            titles[one.target],
            f"{one.streams:,}",
            "-" if one.refuted is None else f"{one.refuted:,}",
            f"{one.chunks_a_second:,.0f}",
            f"{one.core_share:.0%}",
        )
        for one in record.capacities
    ]
    head = ("", "streams held", "too many", "chunks a second", "of the core")
    return _table(head, rows)


def _workers(record: Record) -> str:
    rows: list[Row] = []
    for one in record.pick_ups:
        if one.first_output is None:
            rows.append((one.worker, f"failed: {_one_line(one.error)}", "", ""))
            continue
        times = (one.first_output.p50 * MILLISECONDS, one.first_output.p95 * MILLISECONDS)
        posts = f"{one.posts_per_1000_tokens:,.0f}"
        rows.append((one.worker, *(f"{time:.0f}" for time in times), posts))
    return _table(("", "first output, p50, ms", "p95, ms", "posts for 1,000 tokens"), rows)


def _leaving(record: Record) -> str:
    titles = {one.name: one.title for one in record.targets}
    rows: list[Row] = []
    for one in record.leavings:
        if one.seconds is None:
            rows.append((titles[one.target], f"failed: {_one_line(one.error)}", ""))
            continue
        times = (one.seconds.p50 * MILLISECONDS, one.seconds.largest * MILLISECONDS)
        rows.append((titles[one.target], *(f"{time:,.0f}" for time in times)))
    return _table(("", "median, ms", "longest, ms"), rows)


def _profiles(record: Record) -> str:
    titles = {one.name: one.title for one in record.targets}
    kinds = {"streams": "", "plain": ", plain requests"}
    return "\n\n".join(
        f"**{titles[one.target]}{kinds[one.kind]}**\n\n{_profile(one)}" for one in record.profiles
    )


def _profile(profile: Profile) -> str:
    if profile.error:
        return f"failed: {_one_line(profile.error)}"
    rows = [(f"{share:.1%}", f"`{name}`") for name, share in profile.functions]
    return _table(("own time", "function"), rows)


def _calls_per_1000_tokens(operation: str, results: list[Result]) -> str:
    """All the tokens of a run are counted: the ramp's and the window's."""
    values = [
        1000 * one.calls[operation]["admitted"] / tokens
        for one in results
        if one.seen is not None and operation in one.calls and (tokens := one.seen.tokens)
    ]
    return _text(Figure.of(values), digits=0)


COMPARED: Final[tuple[tuple[str, figures.Measure, Kind], ...]] = (
    ("CPU of a chunk", figures.cpu_per_chunk, "streams"),
    ("gap, p99", figures.gap_p99, "streams"),
    ("time to first token, p50", figures.first_token_p50, "streams"),
    ("CPU of a plain request", figures.cpu_per_request, "plain"),
    ("time of a plain request, p50", figures.plain_p50, "plain"),
)


def _before(found: Figures) -> str:
    """Each target that has a twin of the build before."""
    names = {target.name for target in found.record.targets}
    rows: list[Row] = []
    for target in _but_direct(found):
        twin = f"{BEFORE}{target.name}"
        if twin not in names:
            continue
        for title, measure, kind in COMPARED:
            for count in found.loads(kind):
                if (figure := found.ratio(target.name, twin, measure, count, kind)) is not None:
                    where = _streams_text(count) if kind == "streams" else f"{count} a second"
                    then = found.of(twin, measure, count, kind)
                    now = found.of(target.name, measure, count, kind)
                    scale, unit = (MICROSECONDS, "us") if "CPU" in title else (MILLISECONDS, "ms")
                    cells = (f"{_median(then, scale)} {unit}", f"{_median(now, scale)} {unit}")
                    rows.append(
                        (target.title, f"{title}, {where}", *cells, _text(figure, digits=2))
                    )
    return _table(("", "", "before", "now", "ratio"), rows)


def _median(figure: Figure | None, scale: float) -> str:
    """To three digits or so, as nothing here is known better."""
    if figure is None:
        return "-"
    value = figure.median * scale
    return f"{value:,.0f}" if abs(value) >= WHOLE_FROM else f"{value:.1f}"


def _but_direct(found: Figures) -> list[Named]:
    return [target for target in found.record.targets if target.name != "direct"]


def _stalls(one: Result) -> int:
    return one.seen.stalls if one.seen else 0


def _lost(one: Result) -> int:
    return one.seen.lost if one.seen else 0


def _repeated(one: Result) -> int:
    return one.seen.repeated if one.seen else 0


def _failed(one: Result) -> int:
    return sum(one.seen.failed.values()) if one.seen else 0


def _streams_text(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def _one_line(error: str) -> str:
    return error.strip().splitlines()[-1][:120].replace("|", "/")


def main() -> int:
    """Write the document again, from the figures that are there."""
    record = Record.load(FIGURES)
    DOCUMENT.write_text(document(record, draw(record, IMAGES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
