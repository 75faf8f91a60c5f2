"""The README's recording: what is filmed, how pauses are cut, and that the drawing plays alone."""

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.recording.__main__ import MAX_BYTES
from scripts.recording.drawing import drawn
from scripts.recording.film import Frame, film, shell, shortened, terminal
from tests.guides import ROOT

SVG = "{http://www.w3.org/2000/svg}"
RED = "\x1b[31mred\x1b[39m"
FRAMES = [
    Frame(0.0, ("$ make run", "")),
    Frame(1.0, ("$ make run", f"  a {RED} <b>", "")),
    Frame(3.0, ("$ make run", f"  a {RED} <b>", "done")),
]

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")


def texts(frame: ElementTree.Element, rows: dict[str, ElementTree.Element]) -> list[str]:
    """The lines that a frame of a drawing shows, from the top."""
    names = [use.attrib["href"].removeprefix("#") for use in frame.iter(f"{SVG}use")]
    return ["".join(rows[name].itertext()) for name in names]


def parsed(svg: str) -> tuple[ElementTree.Element, list[list[str]]]:
    """A drawing, and the lines of each of its frames."""
    root = ElementTree.fromstring(svg)
    rows = {row.attrib["id"]: row for row in root.findall(f"{SVG}defs/{SVG}g")}
    (strip,) = [group for group in root.findall(f"{SVG}g") if group.attrib["id"] == "film"]
    return root, [texts(frame, rows) for frame in strip]


def test_each_frame_shows_its_lines_and_each_line_is_drawn_once() -> None:
    root, frames = parsed(drawn(FRAMES, columns=40, title="A <run>"))
    assert frames == [["$ make run"], ["$ make run", "ared<b>"], ["$ make run", "ared<b>", "done"]]
    assert len(root.findall(f"{SVG}defs/{SVG}g")) == 3
    assert root.findtext(f"{SVG}title") == "A <run>"


def test_a_run_stands_at_its_column_in_its_colour() -> None:
    root, _ = parsed(drawn(FRAMES, columns=40, title=""))
    (red,) = [text for text in root.iter(f"{SVG}text") if text.text == "red"]
    (after,) = [text for text in root.iter(f"{SVG}text") if text.text == "<b>"]
    assert float(red.attrib["x"]) == pytest.approx(4 * 8.4)
    assert re.fullmatch(r"fill:#\w{6}", red.attrib["style"])
    assert float(after.attrib["x"]) == pytest.approx(8 * 8.4)
    assert "style" not in after.attrib


def test_a_colour_goes_on_into_the_next_line() -> None:
    frame = Frame(0.0, ("\x1b[31mred", "still red\x1b[39m and not"))
    root, _ = parsed(drawn([frame], columns=40, title=""))
    styles = {text.text: text.attrib.get("style") for text in root.iter(f"{SVG}text")}
    assert styles["red"] == styles["still red"]
    assert styles["red"] is not None
    assert styles["and not"] is None


def test_wide_characters_take_two_columns() -> None:
    wide = Frame(0.0, (f"漢{RED}",))
    root, _ = parsed(drawn([wide], columns=40, title=""))
    (red,) = [text for text in root.iter(f"{SVG}text") if text.text == "red"]
    assert float(red.attrib["x"]) == pytest.approx(2 * 8.4)


def test_the_frames_follow_one_another_and_who_wants_no_motion_sees_the_last() -> None:
    svg = drawn(FRAMES, columns=40, title="")
    moves = re.findall(r"([\d.]+)%\{transform:translateX\((-?\d+)px\)\}", svg)
    width = int(ElementTree.fromstring(svg).attrib["width"])
    assert [float(part) for part, _ in moves] == pytest.approx([0, 100 / 7, 300 / 7], abs=0.01)
    assert [int(x) for _, x in moves] == [0, -width, -2 * width]
    still = re.search(r"prefers-reduced-motion:reduce\)\{#film\{(.*?)\}", svg)
    assert still is not None
    assert still[1] == f"animation:none;transform:translateX({-2 * width}px)"


def test_long_pauses_are_cut_and_the_others_and_the_screens_stay() -> None:
    cut = shortened(FRAMES, longest_seconds=1.5, lapse=8)
    assert [frame.seconds for frame in cut] == [0.0, 1.0, 2.5]
    assert [frame.lines for frame in cut] == [frame.lines for frame in FRAMES]


def test_waiting_passes_quickly_and_what_is_new_at_its_own_pace() -> None:
    ticks = [Frame(float(n), (f"\x1b[1mwaiting\x1b[0m ⠋ {n}.5 s",)) for n in range(9)]
    film = [*ticks, Frame(8.5, ("waiting ⠙ 8.5 s", "Hello"))]
    quick = shortened(film, longest_seconds=2, lapse=16)
    # A second in a sixteenth of one: every other screen would be gone in less than a frame.
    assert [frame.seconds for frame in quick] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 1])
    assert [frame.lines for frame in quick] == [frame.lines for frame in [*film[:9:2], film[9]]]


@needs_tmux
def test_what_a_command_prints_is_filmed_in_its_colours(tmp_path: Path) -> None:
    command = shell("sh", "-c", f"printf 'one {RED}\\n'; read line; echo two")
    with terminal(tmp_path / "tmux") as window:
        window.start(command, columns=60, lines=5)
        frames = list(film(window, lambda frame: "\none" in frame.text, most_seconds=30))
        assert frames[-1].lines[0].startswith("$ sh -c ")
        assert RED in frames[-1].text
        window.press("Enter")
        assert list(film(window, lambda _: False, most_seconds=30)) is not None  # it ends


def test_a_make_that_is_filmed_tells_nothing_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("MAKEFLAGS", "w")
    (tmp_path / "Makefile").write_text("all:\n\t@echo done\n")
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(["sh", "-c", shell("make")], capture_output=True, text=True, check=True)
    assert done.stdout == "$ make\ndone\n"


@needs_tmux
def test_a_command_that_is_never_over_is_given_up_and_ended(tmp_path: Path) -> None:
    with terminal(tmp_path / "tmux") as window:
        window.start("sleep 600", columns=60, lines=5)
        with pytest.raises(TimeoutError, match="not over after 0 s"):
            list(film(window, lambda _: False, most_seconds=0.3))
    assert window.screen() is None


def test_the_recording_in_the_readme_is_small_and_needs_nothing_from_elsewhere() -> None:
    svg = (ROOT / "docs" / "images" / "run.svg").read_text()
    assert len(svg.encode()) < MAX_BYTES
    root, frames = parsed(svg)
    assert len(frames) > 10
    assert frames[0][0] == "$ make run"
    assert any("/v1" in line for line in frames[-1])
    hrefs = [node.attrib["href"] for node in root.iter() if "href" in node.attrib]
    assert all(href.startswith("#") for href in hrefs)
    assert not re.search(r"url\(|@import|<script", svg)
    assert (
        f"![{root.findtext(f'{SVG}title')}](docs/images/run.svg)"
        in (ROOT / "README.md").read_text()
    )
