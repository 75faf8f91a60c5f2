"""Draws the plots of `docs/performance.md`, in an environment that has matplotlib and little else.

Told on standard input, as JSON, by `drawings.py`; the argument is the folder for the SVG files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {
    "svg.hashsalt": "performance",  # the same figures make the same file
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
}

from matplotlib import pyplot as plt  # noqa: E402  # after the backend is chosen
from matplotlib.ticker import FuncFormatter  # noqa: E402

WIDTH, HEIGHT, ROW = 7.5, 4.2, 0.42


def lines(drawing: dict[str, Any], axes: Any) -> None:
    """One line for each series, with its spread, over the number of streams."""
    for series in drawing["series"]:
        low = [y - least for y, least in zip(series["y"], series["least"], strict=True)]
        high = [most - y for y, most in zip(series["y"], series["most"], strict=True)]
        dashes = "--" if series["is_before"] else "-"
        axes.errorbar(
            *(series["x"], series["y"]),
            yerr=[low, high],
            label=series["title"],
            linestyle=dashes,
            marker="o",
            markersize=3.5,
            capsize=2,
            linewidth=1.3,
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=drawing["linear_below"])
    ticks = sorted({x for series in drawing["series"] for x in series["x"]})
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("streams")
    axes.set_ylabel(drawing["unit"])
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def bars(drawing: dict[str, Any], axes: Any) -> None:
    """One bar for each series, the first one on top."""
    series = drawing["series"][::-1]
    values = [one["y"][0] for one in series]
    errors = [
        [one["y"][0] - one["least"][0] for one in series],
        [one["most"][0] - one["y"][0] for one in series],
    ]
    colors = ["#9db4cc" if one["is_before"] else "#2f6ea5" for one in series]
    titles = [one["title"] for one in series]
    drawn = axes.barh(titles, values, xerr=errors, color=colors, capsize=2, height=0.6)
    axes.bar_label(drawn, labels=[f"{value:,.0f}" for value in values], padding=6, fontsize=9)
    axes.margins(x=0.15)
    axes.set_xlabel(drawing["unit"])


def draw(drawing: dict[str, Any], folder: Path) -> None:
    """One file."""
    is_bars = drawing["kind"] == "bars"
    height = 1.1 + ROW * len(drawing["series"]) if is_bars else HEIGHT
    figure, axes = plt.subplots(figsize=(WIDTH, height))
    (bars if is_bars else lines)(drawing, axes)
    axes.set_title(drawing["title"], loc="left", fontsize=11)
    path = folder / f"performance-{drawing['name']}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    plt.close(figure)


if __name__ == "__main__":
    for wanted in json.load(sys.stdin):
        draw(wanted, Path(sys.argv[1]))
