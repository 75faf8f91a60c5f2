"""`make recording`: films `make run` with one request of somebody else's, and draws the film.

It needs tmux, which is the terminal. `COMMAND` is filmed in place of `make run`, and `RECORDING` is
the file in place of `docs/images/run.svg`. Pauses are cut to `LONGEST_PAUSE_SECONDS`, and waiting
is `LAPSE` times as quick; whatever counts seconds on the screen counts the real ones. What was
filmed is kept in `.cache/recording.json`, and `DRAW=1` draws that anew without another run.
"""

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import httpx

from scripts.installer import ROOT
from scripts.local_stack import API_KEY
from scripts.progress import SetUpError
from scripts.recording.drawing import drawn
from scripts.recording.film import Frame, film, shell, shortened, terminal
from scripts.set_up import PORTS, check_ports, port_of

TITLE = (
    "make run: the emulator, the proxy and a worker start, a question waits for the cold start,"
    " and its answer streams in"
)
COLUMNS, LINES = 100, 34
LONGEST_PAUSE_SECONDS = 0.7
LAPSE = 10.0
MOST_SECONDS = 900.0
AFTER_SECONDS = 3.0
"""How long what others ask for is watched."""

MAX_BYTES = 300_000
FILM = ROOT / ".cache" / "recording.json"


def main() -> int:
    """Film, draw, and say what came of it."""
    if shutil.which("tmux") is None:
        print("no tmux: on Debian `apt-get install tmux`", file=sys.stderr)
        return 1
    picture = Path(os.environ.get("RECORDING") or ROOT / "docs" / "images" / "run.svg")
    words = shlex.split(os.environ.get("COMMAND") or "make run")
    try:
        frames = kept() if os.environ.get("DRAW") else keep(recorded(words))
    except (SetUpError, TimeoutError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    shown = shortened(frames, longest_seconds=LONGEST_PAUSE_SECONDS, lapse=LAPSE)
    text = drawn(shown, columns=COLUMNS, title=TITLE)
    if len(text) > MAX_BYTES:
        print(f"{len(text):,} bytes are more than {MAX_BYTES:,}", file=sys.stderr)
        return 1
    picture.write_text(text)
    seconds = f"{frames[-1].seconds:.0f} s in {shown[-1].seconds:.0f}"
    print(f"{picture}: {seconds}, {len(shown)} frames, {len(text):,} bytes")
    return 0


def keep(frames: list[Frame]) -> list[Frame]:
    """The frames, which are in the file from now on as well."""
    FILM.parent.mkdir(exist_ok=True)
    FILM.write_text(json.dumps([asdict(frame) for frame in frames]))
    return frames


def kept() -> list[Frame]:
    """The frames that were filmed last.

    Raises:
        OSError: there are none.
    """
    found = json.loads(FILM.read_text())
    return [Frame(one["seconds"], tuple(one["lines"])) for one in found]


def recorded(words: list[str]) -> list[Frame]:
    """The film of a command that is `make run` in the end, until it is up and has been asked.

    Raises:
        SetUpError: a port is taken, or tmux could not start it.
        TimeoutError: it did not come up.
    """
    check_ports()
    url = f"http://127.0.0.1:{port_of('PROXY_PORT', PORTS['PROXY_PORT'])}"
    with tempfile.TemporaryDirectory() as folder, terminal(Path(folder) / "tmux") as window:
        window.start(shell(*words), columns=COLUMNS, lines=LINES)
        frames = list(film(window, _is_up, most_seconds=MOST_SECONDS))
        began = time.monotonic()
        ask(url)
        offset = frames[-1].seconds
        later = film(window, lambda frame: frame.seconds > AFTER_SECONDS, most_seconds=60)
        asked = offset + time.monotonic() - began
        frames += [Frame(asked + frame.seconds, frame.lines) for frame in later]
        window.press("C-c")
        for _ in film(window, lambda _: False, most_seconds=60):
            pass
    return frames


def _is_up(frame: Frame) -> bool:
    """Whether the last of what to copy is on the screen."""
    return "/runsync" in frame.text


def ask(url: str) -> None:
    """What others do: the list of models, and a chat.

    Raises:
        HTTPError: the proxy did not answer.
    """
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(
        base_url=f"{url}/v1", headers=headers, timeout=120, trust_env=False
    ) as client:
        (model, *_) = client.get("/models").raise_for_status().json()["data"]
        question = [{"role": "user", "content": "Good morning!"}]
        body = {"model": model["id"], "messages": question, "max_tokens": 60}
        client.post("/chat/completions", json=body).raise_for_status()


if __name__ == "__main__":
    sys.exit(main())
