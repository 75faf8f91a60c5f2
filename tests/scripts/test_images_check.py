"""`make images-check` where something fails that its stand-ins for the base images need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "images_check.sh"
PROGRAMS = {
    "id": "echo 0",
    "apt-get": "true",
    "curl": "true",
    "buildah": 'case "$*" in *" add "*) touch "$HOME/added";; esac',
    "debootstrap": 'mkdir -p "$4"; touch "$4/half"; exit 1',
}


@pytest.mark.slow
def test_half_a_debian_is_neither_used_nor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "VLLM_VENV": sys.prefix, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [SCRIPT], env={**os.environ, **own}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "FAILED  debootstrap failed" in ended.stderr
    assert not list(tmp_path.glob("cache/*/*.tar*"))
    assert not (tmp_path / "added").exists()
