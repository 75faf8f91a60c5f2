"""Where the proxy's time goes: py-spy looks at it a few hundred times a second under load."""

import subprocess
import time
from collections import Counter
from typing import Final

import msgspec

from scripts.bench import set_up_for_bench
from tests.bench.ground import Ground
from tests.bench.load import Kind, Load
from tests.bench.stacks import Opened

STREAMS: Final = 100
PLAIN_A_SECOND: Final = 200
SECONDS: Final = 10
RATE: Final = 250
SHOWN: Final = 15
"""The functions with the most time of their own that are kept."""
START_SECONDS: Final = 8.0
"""How long all streams take to be up and py-spy to be ready, generously."""


class Profile(msgspec.Struct, kw_only=True):
    """What was seen of one target."""

    target: str
    kind: Kind = "streams"
    """What it served: a hundred streams, or plain requests."""
    samples: int = 0
    functions: list[tuple[str, float]] = []
    """`name (file)` and its share of the busy time, without what it called."""
    error: str = ""


def profile(ground: Ground, name: str, opened: Opened, kind: Kind) -> Profile:
    """Look at this target while it serves a hundred streams, or two hundred requests a second."""
    found = Profile(target=name, kind=kind)
    program = set_up_for_bench("profile").folder / "bin" / "py-spy"
    stacks = ground.folder / f"profile-{name}.txt"
    load = Load(
        url=opened.url,
        key=opened.key,
        model=opened.model,
        kind=kind,
        streams=STREAMS,
        ramp_seconds=START_SECONDS / 2,
        window_seconds=START_SECONDS / 2 + SECONDS,
        requests_a_second=PLAIN_A_SECOND,
    )
    command = [
        *(str(program), "record", "--pid", str(opened.watched[0]), "--format", "raw"),
        "--gil",  # or a thread that only waits may count as busy
        *("--rate", str(RATE), "--duration", str(SECONDS), "--output", str(stacks)),
    ]
    try:
        with ground.seeing(load):
            time.sleep(START_SECONDS / 2)
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS + 60)
        found.samples, found.functions = own_time(stacks.read_text())
    except subprocess.CalledProcessError as error:
        found.error = error.stderr.decode(errors="replace").strip()[-300:]
    except Exception as error:  # noqa: BLE001  # a profile is a bonus
        found.error = str(error) or repr(error)
    return found


def own_time(text: str) -> tuple[int, list[tuple[str, float]]]:
    """How many samples there are in py-spy's raw stacks, and whose time it was.

    A line is `outermost;...;innermost COUNT`; each entry is `function (file:line)`.
    """
    own: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        function = stack.rpartition(";")[2]
        name, _, place = function.partition(" (")
        own[f"{name} ({place.partition(':')[0]})" if place else name] += int(count)
    total = own.total()
    return total, [(name, count / total) for name, count in own.most_common(SHOWN)]
