"""A film as an SVG that plays by itself, with neither a script nor anything from elsewhere.

Each different line is drawn once and used by every frame that shows it. The frames lie side by side
on a strip, which moves by a frame's width at a time. Who wants no motion sees the last one.
"""

import html
from collections.abc import Sequence

from rich.ansi import AnsiDecoder
from rich.cells import cell_len
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from scripts.recording.film import Frame

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE, MARGIN = 8.4, 18, 14, 14
FOREGROUND, BACKGROUND = "#d9d9d9", "#1c1e22"
END_SECONDS = 4.0
"""How long the last frame stays before it begins anew."""

STYLE = """\
text{{font:{size}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;\
fill:{foreground};white-space:pre}}
.b{{font-weight:bold}}.i{{font-style:italic}}.d{{opacity:.6}}
#film{{animation:film {seconds:.2f}s steps(1,end) infinite}}
@keyframes film{{{moves}}}
@media (prefers-reduced-motion:reduce){{#film{{animation:none;transform:translateX({last}px)}}}}"""


def drawn(frames: Sequence[Frame], *, columns: int, title: str) -> str:
    """The SVG of a film of at least one frame."""
    shown = [_rows(frame) for frame in frames]
    width = round(columns * CELL_WIDTH) + 2 * MARGIN
    height = max(map(len, shown)) * LINE_HEIGHT + 2 * MARGIN
    different = dict.fromkeys(row for rows in shown for row in rows if row)
    names = {row: f"l{number}" for number, row in enumerate(different)}
    drawn_once = [f'<g id="{name}">{row}</g>' for row, name in names.items()]
    strip = [_frame(rows, names, number * width) for number, rows in enumerate(shown)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_style(frames, width)}</style>",
            f"<defs>{''.join(drawn_once)}</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
            f'<g id="film">{"".join(strip)}</g>',
            "</svg>\n",
        ]
    )


def _rows(frame: Frame) -> list[str]:
    """Each line drawn, without the empty ones below them; a colour may go on into the next line."""
    rows = [_row(line) for line in AnsiDecoder().decode(frame.text)]
    while rows and not rows[-1]:
        rows.pop()
    return rows


def _frame(rows: Sequence[str], names: dict[str, str], x: int) -> str:
    used = [
        f'<use href="#{names[row]}" y="{number * LINE_HEIGHT}"/>'
        for number, row in enumerate(rows)
        if row
    ]
    return f'<g transform="translate({x + MARGIN} {MARGIN + FONT_SIZE})">{"".join(used)}</g>'


def _style(frames: Sequence[Frame], width: int) -> str:
    seconds = frames[-1].seconds + END_SECONDS
    moves = "".join(
        f"{frame.seconds / seconds:.3%}{{transform:translateX({-number * width}px)}}"
        for number, frame in enumerate(frames)
    )
    last = -(len(frames) - 1) * width
    facts = {"seconds": seconds, "moves": moves, "last": last}
    return STYLE.format(size=FONT_SIZE, foreground=FOREGROUND, **facts)


def _row(text: Text) -> str:
    """The runs of one line that look alike, each at its column."""
    found, column = [], 0
    for run in text.divide(sorted({edge for span in text.spans for edge in span[:2]})):
        style = Style.combine([Style.null(), *(Style.parse(str(span.style)) for span in run.spans)])
        found.append(_run(run.plain, style, column))
        column += cell_len(run.plain)
    return "".join(found)


def _run(text: str, style: Style, column: int) -> str:
    """A run, without the blanks that it begins and ends with."""
    bare = text.strip()
    if not bare:
        return ""
    column += cell_len(text) - cell_len(text.lstrip())
    shown = {"b": style.bold, "i": style.italic, "d": style.dim}
    classes = " ".join(name for name, is_so in shown.items() if is_so)
    look = f' class="{classes}"' if classes else ""
    if style.color and not style.color.is_default:
        look += f' style="fill:{_hex(style.color)}"'
    x = round(column * CELL_WIDTH, 1)
    return f'<text x="{x:g}"{look}>{html.escape(bare, quote=False)}</text>'


def _hex(color: Color) -> str:
    triplet: ColorTriplet = color.get_truecolor(DIMMED_MONOKAI)
    return triplet.hex
