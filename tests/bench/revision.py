"""The build before: the files of a revision of this repository, in a folder of their own."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.processes import ROOT
from tests.bench.ground import Build


@contextmanager
def build_of(revision: str) -> Iterator[Build]:
    """That revision, to be run with the packages of this one's environment.

    Raises:
        subprocess.CalledProcessError: there is no such revision.
    """
    with tempfile.TemporaryDirectory(prefix="bench-before-") as name:
        folder = Path(name)
        files = subprocess.run(
            ["git", "archive", "--format=tar", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", name], input=files, check=True)
        yield Build(folder)
