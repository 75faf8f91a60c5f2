"""Locked packages get into an environment whether uv can or only pip."""

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts import installer
from scripts.environments import Environment
from scripts.progress import SetUpError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An empty environment; tests install different packages into it."""
    environment = Environment("env", tmp_path_factory.mktemp("environments") / "env", "stamp")
    environment.ensure(lambda: installer.create(environment))
    return environment


@pytest.fixture(scope="module")
def real_uv() -> Environment:
    """uv itself, from the cache of this machine."""
    return installer.uv()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip looks into, and nowhere else; uv knows nothing of it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def write_wheel(folder: Path, name: str) -> str:
    """A wheel with one empty module of that name; its hash."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_lock(folder: Path, name: str, digest: str) -> Path:
    lock = folder / "lock.txt"
    lock.write_text(f"{name}==1.0 --hash=sha256:{digest}\n")
    return lock


def imports(environment: Environment, name: str) -> bool:
    return subprocess.run([environment.python, "-c", f"import {name}"]).returncode == 0


def test_pip_installs_where_there_is_no_uv_to_be_had(
    environment: Environment, wheels: Path, tmp_path: Path
) -> None:
    lock = write_lock(tmp_path, "only_for_pip", write_wheel(wheels, "only_for_pip"))
    installer.install(environment, lock)
    assert imports(environment, "only_for_pip")


def test_a_wheel_with_another_hash_is_refused(
    environment: Environment, wheels: Path, tmp_path: Path
) -> None:
    write_wheel(wheels, "tampered_with")
    lock = write_lock(tmp_path, "tampered_with", "0" * 64)
    with pytest.raises(SetUpError, match="(?s)HASHES.*" + "0" * 64):
        installer.install(environment, lock)
    assert not imports(environment, "tampered_with")


def test_an_index_of_pips_own_is_noticed(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert not installer.has_its_own_index(environment)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///nowhere")
    assert not installer.has_its_own_index(environment)
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    assert installer.has_its_own_index(environment)


def test_one_package_comes_from_where_pip_looks_and_by_uv_where_there_is_one(
    environment: Environment,
    wheels: Path,
    real_uv: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setattr(installer, "uv", lambda: real_uv)
    monkeypatch.setattr(installer, "PIP_INSTALL", ("-c", "raise SystemExit('pip was asked')"))
    write_wheel(wheels, "linked_by_pip")
    installer.install_one(environment, "linked_by_pip==1.0", "http://127.0.0.1:9/simple")
    assert imports(environment, "linked_by_pip")
    with pytest.raises(SetUpError, match="pip was asked"):
        installer.install_one(environment, "linked_by_nobody==1.0", "http://127.0.0.1:9/simple")


def test_one_package_comes_by_pip_where_there_is_no_uv(
    environment: Environment, wheels: Path
) -> None:
    write_wheel(wheels, "linked_without_uv")
    installer.install_one(environment, "linked_without_uv==1.0", "http://127.0.0.1:9/simple")
    assert imports(environment, "linked_without_uv")
