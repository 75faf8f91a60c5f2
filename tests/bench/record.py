"""What one `make bench` found, as it is kept in `docs/performance.json`."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from scripts.bench import bench_lock
from scripts.processes import ROOT
from tests.bench.capacity import Capacity
from tests.bench.leaving import Leaving
from tests.bench.pick_up import PickUp
from tests.bench.profiles import Profile
from tests.bench.rounds import Result

PACKAGES = (
    "aiohttp",
    "fastapi",
    "httptools",
    "httpx",
    "runpod",
    "sse-starlette",
    "uvicorn",
    "uvloop",
)


class Machine(msgspec.Struct, frozen=True):
    """Where it ran."""

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            system=f"{platform.system()} {platform.release().partition('-')[0]}",
            python=platform.python_version(),
        )


class Named(msgspec.Struct, frozen=True):
    """A target's name in the figures, and its title in the tables."""

    name: str
    title: str


class Record(msgspec.Struct, kw_only=True):
    """All figures of a run."""

    day: str
    revision: str
    baseline: str = ""
    """The revision that stands for the build before, if one was measured."""
    machine: Machine
    packages: dict[str, str]
    rounds: int
    window_seconds: float
    load_average: float
    """Of the minute before the run: how quiet the machine was."""
    targets: list[Named]
    capacities: list[Capacity] = []
    pick_ups: list[PickUp] = []
    leavings: list[Leaving] = []
    profiles: list[Profile] = []
    results: list[Result] = []

    def save(self, path: Path) -> None:
        """Write it as JSON, a line for each run so that two records can be compared."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=0)
        lines = msgspec.json.decode(text)
        results = lines.pop("results")
        rows = ",\n".join(msgspec.json.encode(_rounded(row)).decode() for row in results)
        head = msgspec.json.encode(lines).decode().removesuffix("}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head},"results":[\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read one that was saved."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def revision_of(name: str = "HEAD") -> str:
    """A revision's short id; marked where HEAD has changes that are not committed."""
    short = _git("rev-parse", "--short", f"{name}^{{commit}}")
    is_changed = name == "HEAD" and _git("status", "--porcelain", "--untracked-files=no")
    return f"{short} with changes" if is_changed else short


def packages_here(targets: Sequence[Named]) -> dict[str, str]:
    """The versions of what matters to the figures of these targets."""
    found = {name: version(name) for name in PACKAGES}
    pinned = re.search(r"^litellm==(\S+)", bench_lock("litellm").read_text(), re.MULTILINE)
    if pinned and any(one.name == "litellm" for one in targets):
        found["litellm"] = pinned[1]
    return found


def today() -> str:
    """The date."""
    return time.strftime("%Y-%m-%d")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _rounded(value: object) -> object:
    """Numbers to six digits after the point, microseconds, which is finer than any clock here."""
    match value:
        case float():
            return round(value, 6)
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case list():
            return [_rounded(one) for one in value]
    return value
