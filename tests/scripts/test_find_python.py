"""The Python that environments are made with: one that really runs and has what it takes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "find_python.sh"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with nothing on it yet."""
    return tmp_path


def find(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", SCRIPT], env={"PATH": str(path), **environment}, capture_output=True, text=True
    )


def put(path: Path, name: str, script: str) -> None:
    (path / name).write_text(f"#!/bin/sh\n{script}\n")
    (path / name).chmod(0o755)


def put_real(path: Path, name: str) -> None:
    put(path, name, f'exec "{sys.executable}" "$@"')


def test_a_python_that_only_complains_is_passed_over(path: Path) -> None:
    put(path, "python3.11", "echo no such version >&2; exit 127")
    put_real(path, "python3.12")
    assert find(path).stdout.strip() == str(path / "python3.12")


def test_a_python_without_venv_or_of_another_version_is_passed_over(path: Path) -> None:
    put(path, "python3.11", "exit 1")
    put_real(path, "python3")
    assert find(path).stdout.strip() == str(path / "python3")


def test_the_one_that_is_asked_for_is_taken(path: Path) -> None:
    put_real(path, "python3.11")
    put_real(path, "mine")
    assert find(path, PYTHON=str(path / "mine")).stdout.strip() == str(path / "mine")


def test_without_any_it_says_what_to_do(path: Path) -> None:
    found = find(path)
    assert found.returncode == 1
    assert "No Python 3.11, 3.12 or 3.13" in found.stderr
    assert "PYTHON=" in found.stderr


def test_make_without_any_says_so_and_nothing_else(path: Path) -> None:
    for name in ("make", "sh", "awk"):
        found = shutil.which(name)
        assert found is not None
        (path / name).symlink_to(found)
    done = subprocess.run(
        ["make", "setup"],
        cwd=SCRIPT.parents[1],
        env={"PATH": str(path), "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Permission denied" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ")]
    assert [line.split()[0] for line in lines] == ["No", "Install"]
