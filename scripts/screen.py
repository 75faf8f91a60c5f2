"""What `make run` shows until its first token: numbered steps, and the three processes' states.

On a terminal all of it is drawn, and drawn again as it changes, with clocks that move. Anywhere
else each change is a plain line, with no escape codes.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

REDRAWS_PER_SECOND = 5


@dataclass
class Step:
    """One step, and how far it is; `size` is what it costs, as people say it."""

    title: str
    size: str = ""
    note: str = ""
    """What is being done now."""
    began: float | None = None
    seconds: float | None = None
    """How long it took; None until it is done."""
    failed: bool = False

    def clock(self) -> str:
        """Its seconds so far; nothing before it begins."""
        if self.began is None:
            return ""
        seconds = time.monotonic() - self.began if self.seconds is None else self.seconds
        return f"{seconds:.1f} s" if self.seconds is not None else f"{seconds:.0f} s"


@dataclass
class Part:
    """One of the processes: its state, and where to find it."""

    name: str
    where: str
    state: str = "not started"


class Screen:
    """The steps and the parts, each change of them a line."""

    def __init__(self, steps: Sequence[Step], parts: Sequence[Part]) -> None:
        self.steps = list(steps)
        self.parts = {part.name: part for part in parts}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def doing(self, step: Step) -> Iterator[Step]:
        """The step's clock runs meanwhile."""
        step.began = time.monotonic()
        self._told(step, f"{step.title}{f' ({step.size})' if step.size else ''} ...")
        try:
            yield step
        except BaseException:
            step.failed = True
            self._told(step, f"{step.title}: not done")
            raise
        step.seconds = time.monotonic() - step.began
        step.note = ""
        self._told(step, f"{step.title}: {step.clock()}")

    def note(self, step: Step, note: str) -> None:
        """What is being done now in that step."""
        if note != step.note:
            step.note = note
            self._told(step, f"{step.title}: {note}")

    def state(self, name: str, state: str) -> None:
        """The part's state from now on."""
        if state != self.parts[name].state:
            self.parts[name].state = state
            self._changed(self.parts[name])

    def _told(self, step: Step, text: str) -> None:
        self._print(f"[{self.steps.index(step) + 1}/{len(self.steps)}] {text}")

    def _changed(self, part: Part) -> None:
        self._print(f"      {part.name}: {part.state}")

    def _print(self, line: str) -> None:
        print(line, flush=True)


class LiveScreen(Screen):
    """The same, drawn on a terminal; what it showed last stays there."""

    def __init__(self, steps: Sequence[Step], parts: Sequence[Part], console: Console) -> None:
        super().__init__(steps, parts)
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            console=console,
            get_renderable=self.drawn,
            refresh_per_second=REDRAWS_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def drawn(self) -> RenderableType:
        """Steps above, parts below."""
        steps = Table.grid(padding=(0, 1))
        steps.add_column(width=1)
        steps.add_column(justify="right", style="dim")
        steps.add_column(ratio=1)
        steps.add_column(justify="right", style="dim", no_wrap=True)
        steps.add_column(justify="right", no_wrap=True, min_width=7)
        for number, step in enumerate(self.steps, 1):
            steps.add_row(
                self._mark(step), str(number), _title(step), step.size, Text(step.clock())
            )
        parts = Table.grid(padding=(0, 1))
        for least in (1, 8, 0, 0):
            # The last is what gives way where there is no room.
            parts.add_column(no_wrap=True, min_width=least, overflow="ellipsis")
        for part in self.parts.values():
            parts.add_row(_DOTS.get(part.state.split(":")[0], _BUSY), *_row(part))
        return Group(steps, Text(), parts)

    def _mark(self, step: Step) -> RenderableType:
        if step.failed:
            return Text("✗", "red")
        if step.seconds is not None:
            return Text("✓", "green")
        return self._spinner if step.began is not None else Text("·", "dim")

    def _print(self, line: str) -> None:
        """Nothing: it is drawn as it is."""


_BUSY = Text("●", "yellow")
_DOTS = {"not started": Text("○", "dim"), "up": Text("●", "green")}


def _title(step: Step) -> Text:
    title = Text(step.title)
    if step.note:
        title.append(f"\n{step.note}", "dim")
    return title


def _row(part: Part) -> tuple[Text, Text, Text]:
    return Text(part.name, "bold"), Text(part.state), Text(part.where, "dim")


def is_terminal(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether standard output is one that can be drawn on."""
    return sys.stdout.isatty() and environment.get("TERM") not in ("dumb", "unknown", "")


def open_screen(steps: Sequence[Step], parts: Sequence[Part], *, live: bool) -> Screen:
    """A screen for where we print to; `live` for a terminal."""
    return LiveScreen(steps, parts, console()) if live else Screen(steps, parts)


def console() -> Console:
    """The terminal; `NO_COLOR` takes its colours away."""
    return Console(highlight=False)


class Paint:
    """Colours for single lines; none where nothing is drawn."""

    def __init__(self, *, live: bool) -> None:
        self._console = console() if live else None
        self._lock = threading.Lock()

    def __call__(self, text: str, style: str) -> str:
        """The text in that style of rich."""
        if self._console is None:
            return text
        with self._lock, self._console.capture() as captured:
            self._console.print(Text(text, style), end="", soft_wrap=True)
        return captured.get()
