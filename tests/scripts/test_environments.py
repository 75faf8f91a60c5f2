"""Environments are made once, whole, by one process at a time, and again when that is needed."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.environments import Environment, stamp_of
from scripts.progress import SetUpError

Make = Callable[[], None]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment("an environment", tmp_path / "env", "stamp")


@pytest.fixture
def make(environment: Environment) -> Callable[[], None]:
    """Makes it, as empty as can be."""

    def make() -> None:
        venv = [sys.executable, "-m", "venv", "--without-pip", str(environment.folder)]
        subprocess.run(venv, check=True)

    return make


def never() -> None:
    pytest.fail("it was made again")


def test_it_is_made_with_a_python_of_its_own(environment: Environment, make: Make) -> None:
    assert not environment.is_ready
    environment.ensure(make)
    assert environment.is_ready
    code = "import sys; print(sys.prefix)"
    prefix = subprocess.run([environment.python, "-c", code], capture_output=True, text=True)
    assert prefix.stdout.strip() == str(environment.folder)


def test_what_is_ready_is_left_alone(environment: Environment, make: Make) -> None:
    environment.ensure(make)
    environment.ensure(never)


def test_one_whose_making_was_cut_off_is_made_anew(environment: Environment, make: Make) -> None:
    def fail() -> None:
        make()
        (environment.folder / "half").touch()
        raise SetUpError("no network")

    with pytest.raises(SetUpError, match="no network"):
        environment.ensure(fail)
    assert not environment.is_ready
    environment.ensure(make)
    assert environment.is_ready
    assert not (environment.folder / "half").exists()


def test_another_stamp_makes_it_anew(environment: Environment, make: Make) -> None:
    environment.ensure(make)
    (environment.folder / "old").touch()
    newer = Environment(environment.name, environment.folder, "another stamp")
    assert not newer.is_ready
    newer.ensure(make)
    assert newer.is_ready
    assert not (environment.folder / "old").exists()


def test_one_that_was_moved_is_not_ready(
    environment: Environment, make: Make, tmp_path: Path
) -> None:
    environment.ensure(make)
    moved = Environment(environment.name, tmp_path / "elsewhere", environment.stamp)
    environment.folder.rename(moved.folder)
    assert not moved.is_ready


def test_one_whose_python_has_gone_is_not_ready(environment: Environment, make: Make) -> None:
    environment.ensure(make)
    environment.python.unlink()
    environment.python.symlink_to("/nowhere/python3")
    assert not environment.is_ready


def test_of_two_at_once_one_makes_it_and_the_other_waits(
    environment: Environment, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    is_making, may_end = threading.Event(), threading.Event()

    def slowly() -> None:
        make()
        is_making.set()
        assert may_end.wait(60)

    first = threading.Thread(target=environment.ensure, args=(slowly,))
    first.start()
    assert is_making.wait(60)
    second = threading.Thread(target=environment.ensure, args=(never,))
    second.start()
    while "waiting" not in capsys.readouterr().err:
        assert second.is_alive()
    may_end.set()
    first.join()
    second.join()
    assert environment.is_ready


def test_a_stamp_follows_the_contents(tmp_path: Path) -> None:
    file = tmp_path / "lock.txt"
    file.write_text("a==1")
    before = stamp_of(file)
    assert stamp_of(file) == before
    file.write_text("a==2")
    assert stamp_of(file) != before
