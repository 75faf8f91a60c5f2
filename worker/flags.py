"""The list of vLLM's flags, asked from the vLLM that will run: `python -m worker.flags`.

vLLM renames, adds and drops flags with every release, so the list is not kept by hand. An image
makes it once, when it is built, and names the file in `WORKER_VLLM_FLAGS`; asking vLLM at each
start would add the seconds that importing it takes to every cold start. For the pinned build for
the CPU, whose list is the same on every machine, it is in the repository.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from worker.errors import SettingsError, StartError
from worker.settings import WorkerSettings

PROBE: Final = Path(__file__).with_name("probe.py")
PROBE_SECONDS: Final = 300


@dataclass(frozen=True)
class Flag:
    """One flag of vLLM's command line."""

    name: str
    kind: Literal["bool", "value", "list"]
    off: str | None = None
    """The form that turns a boolean off, where there is one."""

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return self.name.lstrip("-").replace("-", "_").upper()


@dataclass(frozen=True)
class VLLMFlags:
    """All flags of one release of vLLM."""

    version: str
    flags: Mapping[str, Flag]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the JSON that `python -m worker.flags` writes.

        Raises:
            SettingsError: it is not that.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            flags = {name: Flag(name, **facts) for name, facts in found["flags"].items()}
            return cls(found["vllm"], flags)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(f"not a list of vLLM's flags: {error!r}") from error


def load(settings: WorkerSettings) -> VLLMFlags:
    """The flags from the file in `WORKER_VLLM_FLAGS`, which is made if it is missing.

    Raises:
        StartError: vLLM cannot be asked, or the file is not a list of flags.
    """
    path = settings.vllm_flags
    if path is not None and path.is_file():
        return VLLMFlags.parse(path.read_text())
    text = ask(settings.command)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return VLLMFlags.parse(text)


def ask(command: Sequence[str]) -> str:
    """Ask the vLLM that `command` starts for its flags, as JSON text.

    Raises:
        StartError: vLLM cannot be imported there, or its parser has moved.
    """
    probe = [interpreter(command), str(PROBE)]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"cannot ask vLLM for its flags: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise StartError(
            f"cannot ask vLLM for its flags with {probe[0]}: {said[-1]} "
            "(WORKER_VLLM_FLAGS can name a file made elsewhere)"
        )
    return done.stdout.strip().splitlines()[-1] + "\n"


def interpreter(command: Sequence[str]) -> str:
    """The Python that has vLLM: the command's own, or the one beside its console script."""
    program = command[0]
    if Path(program).name.startswith("python"):
        return program
    beside = Path(shutil.which(program) or program).with_name("python3")
    return str(beside) if beside.is_file() else "python3"


def main() -> None:
    """Write the list to the file named as the only argument, or to standard output."""
    try:
        text = ask(WorkerSettings.from_environment().command)
    except StartError as error:
        sys.exit(f"worker.flags: {error}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
