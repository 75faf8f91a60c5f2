"""`docs/clients.md` is of the clients, features and versions that the suite has now."""

import json
import re
from pathlib import Path

import pytest

from scripts.clients import NODE, NPM_FOLDERS, lock_of
from scripts.installer import ROOT
from tests.conformance.__main__ import DOCUMENT
from tests.conformance.clients import (
    CLIENTS,
    PYTHON,
    Client,
    node_version,
    vllm_version,
)
from tests.conformance.features import FEATURES
from tests.conformance.report import NOT_APPLICABLE

TEXT = DOCUMENT.read_text()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def matrix() -> dict[str, dict[str, str]]:
    """Feature -> client -> what the document says."""
    lines = TEXT.partition("\n\n|")[2].partition("\n\n")[0].splitlines()
    _, *clients = cells(f"|{lines[0]}")
    rows = [cells(line) for line in lines[2:]]
    return {title: dict(zip(clients, row, strict=True)) for title, *row in rows}


def test_the_table_has_every_feature_and_every_client() -> None:
    found = matrix()
    assert list(found) == list(FEATURES.values())
    assert all(list(row) == [client.name for client in CLIENTS] for row in found.values())


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_table_says_something_of_just_what_a_client_has_checks_for(client: Client) -> None:
    said = {title: row[client.name] for title, row in matrix().items()}
    told = {feature for feature, title in FEATURES.items() if said[title] != NOT_APPLICABLE}
    assert told == client.features()


def test_nothing_that_vllm_passes_fails_through_the_proxy() -> None:
    assert "**fail**" not in TEXT


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_versions_are_those_of_the_locks(client: Client) -> None:
    row = next(line for line in TEXT.splitlines() if f"/{client.checks.name}`" in line)
    told = ", ".join(f"{package} {version}" for package, version in client.versions().items())
    assert cells(row)[:2] == [client.name, told]


def test_the_versions_of_node_and_vllm_are_those_of_the_locks() -> None:
    assert f"Node {node_version()}." in TEXT
    assert f"vLLM {vllm_version()} " in TEXT


def test_the_readme_says_how_many_clients_there_are() -> None:
    assert f"each of {len(CLIENTS)} clients" in (ROOT / "README.md").read_text()


def test_every_file_of_checks_is_a_clients() -> None:
    shared = {
        "__init__.py",
        "ai_sdk_checks.mjs",
        "plugin.py",
        "programs.py",
        "target.py",
        "target.mjs",
    }
    files = {path for folder in (PYTHON, NODE) for path in folder.iterdir() if path.is_file()}
    checks = {path for path in files if path.suffix in (".py", ".mjs")}
    assert {path for path in checks if path.name not in shared} == {c.checks for c in CLIENTS}


def test_every_check_is_of_a_feature_that_is_listed() -> None:
    for client in CLIENTS:
        assert client.features()
        assert client.features() <= set(FEATURES), client.name


@pytest.mark.parametrize("folder", NPM_FOLDERS.values(), ids=lambda folder: folder.name)
def test_the_packages_of_npm_are_locked_and_come_from_any_registry(folder: Path) -> None:
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    assert packages.pop("")["dependencies"] == wanted
    for path, about in packages.items():
        assert re.match(r"sha512-", about["integrity"]), path
        assert "resolved" not in about, path


def test_no_client_brings_torch() -> None:
    for client in CLIENTS:
        lock = lock_of(client.environment).read_text()
        assert not re.search(r"^(torch|nvidia|triton)", lock, re.MULTILINE), client.name
