"""What is missing for `make ui-check` is named, and what is there is used."""

import sys
from pathlib import Path

import pytest

from scripts import ui_tools
from scripts.progress import SetUpError


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing set up and no programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)


def add_program(folder: Path, name: str, text: str = "") -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def test_without_a_browser_it_says_how_to_install_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ui_tools.main() == 1
    assert "apt-get install chromium" in capsys.readouterr().err


def test_the_browser_on_the_path_is_used_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = add_program(tmp_path, "chromium")
    assert ui_tools.chromium() == program
    other = add_program(tmp_path, "another")
    monkeypatch.setenv("CHROMIUM", str(other))
    assert ui_tools.chromium() == other
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "missing"))
    with pytest.raises(SetUpError, match="missing"):
        ui_tools.chromium()


def test_a_python_too_new_for_open_webui_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    monkeypatch.setattr(ui_tools, "python_version", lambda: "3.13")
    monkeypatch.setattr(ui_tools, "stamp_of", lambda *_: "stamp")
    with pytest.raises(SetUpError, match=r"3\.11 or 3\.12"):
        ui_tools.set_up_open_webui()
    assert not ui_tools.open_webui_environment().folder.exists()


def test_without_node_it_says_so() -> None:
    with pytest.raises(SetUpError, match=r"Node\.js"):
        ui_tools.set_up_node_packages()


def test_packages_of_node_are_installed_once_and_whole(tmp_path: Path) -> None:
    add_program(tmp_path, "node")
    npm = "[ -f package-lock.json ] && /bin/mkdir node_modules && echo x >>../installed"
    add_program(tmp_path, "npm", f"{npm} || exit 1")
    ui_tools.set_up_node_packages()
    ui_tools.set_up_node_packages()
    assert ui_tools.node_packages().is_dir()
    assert (tmp_path / "cache" / "runpod-openai-proxy" / "installed").read_text() == "x\n"


def test_a_failed_installation_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    add_program(tmp_path, "node")
    add_program(tmp_path, "npm", "/bin/mkdir node_modules; echo no network; exit 1")
    with pytest.raises(SetUpError, match="no network"):
        ui_tools.set_up_node_packages()
    assert not ui_tools.node_packages().parent.exists()
