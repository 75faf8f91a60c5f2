"""Environment: a virtual environment that knows what it was made from, made once and then reused.

A half-made environment cannot be told from a whole one by looking, and it cannot be made elsewhere
and moved, since paths are baked into it. So a stamp is written last: no stamp, or another one, and
the environment is made anew.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.progress import only_one


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder`; `stamp` stands for all that it is made from."""

    name: str
    folder: Path
    stamp: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_ready(self) -> bool:
        """Whether it is whole, up to date, where it was made for, with its Python still there."""
        stamp = self._stamp_file
        return self.python.exists() and stamp.exists() and stamp.read_text() == self._stamp_text

    @property
    def _stamp_file(self) -> Path:
        return self.folder / "made-from"

    @property
    def _stamp_text(self) -> str:
        return f"{self.stamp} at {self.folder}\n"

    def ensure(self, make: Callable[[], None]) -> None:
        """Have it made, from nothing, if it is not ready.

        Two processes may call this at once: one makes it, the other waits. What `make` raises
        leaves an environment that is not ready.
        """
        if self.is_ready:
            return
        with only_one(self.folder.with_name(f"{self.folder.name}.lock"), f"making {self.name}"):
            if self.is_ready:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            make()
            self._stamp_file.write_text(self._stamp_text)


def stamp_of(*files: Path) -> str:
    """A stamp that changes with the contents of the files, the Python and the kind of machine."""
    digest = hashlib.sha256(f"{python_version()} {sys.platform} {platform.machine()}".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def python_version() -> str:
    """The running Python's version, as in 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def cache_folder() -> Path:
    """Where things are kept that all clones of the project on this machine share."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "runpod-openai-proxy"
