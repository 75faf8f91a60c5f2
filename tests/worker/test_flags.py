"""The list of vLLM's flags is asked from vLLM. A small package stands for vLLM here."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from worker.errors import SettingsError, StartError
from worker.flags import Flag, VLLMFlags, ask, interpreter, load
from worker.settings import WorkerSettings

PARSER = """
    from argparse import BooleanOptionalAction

    def make_arg_parser(parser):
        parser.add_argument("model_tag", nargs="?")
        parser.add_argument("--seed", type=int)
        parser.add_argument("--headless", action="store_true")
        parser.add_argument("--enable-x", "-ex", action=BooleanOptionalAction)
        parser.add_argument("--enable-y", "--disable-y", action="store_true")
        parser.add_argument("--disable-z", "--enable-z", "-z", action="store_true")
        parser.add_argument("--names", nargs="+")
        parser.add_argument("--token", nargs="?")
        parser.add_argument("--middleware", action="append")
        return parser
"""
FILES = {
    "vllm/__init__.py": "print('chatter'); __version__ = '9.9'",
    "vllm/platforms/__init__.py": """
        class Unspecified:
            def is_unspecified(self):
                return True

        current_platform = Unspecified()
    """,
    "vllm/platforms/cpu.py": "class CpuPlatform: pass",
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": """
        from argparse import ArgumentParser
        from vllm import platforms

        class FlexibleArgumentParser(ArgumentParser):
            def __init__(self):
                super().__init__()
                assert type(platforms.current_platform).__name__ == "CpuPlatform"
    """,
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/cli_args.py": PARSER,
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command whose Python has a vLLM of release 9.9, on a machine without a GPU."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]


def test_every_kind_of_flag_is_told_apart(command: list[str]) -> None:
    found = VLLMFlags.parse(ask(command))
    assert found.version == "9.9"
    assert set(found.flags.values()) == {
        Flag("--seed", "value"),
        Flag("--headless", "bool"),
        Flag("--enable-x", "bool", "--no-enable-x"),
        Flag("--enable-y", "bool", "--disable-y"),
        Flag("--disable-z", "bool", "--enable-z"),
        Flag("--names", "list"),
        Flag("--token", "value"),
        Flag("--middleware", "value"),
    }


def test_the_list_is_made_once_and_kept_in_the_file(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "made" / "flags.json"
    settings = WorkerSettings(vllm_command=" ".join(command), vllm_flags=path)
    made = load(settings)
    path.write_text(path.read_text().replace("9.9", "9.8"))
    assert (made.version, load(settings).version) == ("9.9", "9.8")


def test_without_a_file_vllm_is_asked(command: list[str]) -> None:
    assert load(WorkerSettings(vllm_command=" ".join(command))).version == "9.9"


def test_a_python_without_vllm_is_named() -> None:
    with pytest.raises(StartError, match=r"cannot ask vLLM .* No module named 'vllm'"):
        ask([sys.executable])


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(StartError, match="cannot ask vLLM"):
        ask(["/nowhere/python3"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vllm": "1", "flags": {"--x": {"odd": 1}}}'])
def test_a_file_that_is_no_list_of_flags_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "flags.json"
    path.write_text(text)
    with pytest.raises(SettingsError):
        load(WorkerSettings(vllm_flags=path))


def test_a_console_script_has_its_python_beside_it(tmp_path: Path) -> None:
    (tmp_path / "python3").touch()
    (tmp_path / "vllm").touch(mode=0o755)
    assert interpreter([f"{tmp_path}/vllm", "serve"]) == f"{tmp_path}/python3"
    assert interpreter(["python3.12", "-m", "vllm"]) == "python3.12"
    assert interpreter(["/nowhere/vllm"]) == "python3"


@pytest.mark.slow
def test_the_module_writes_the_list_to_a_file(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_VLLM_COMMAND", " ".join(command))
    path = tmp_path / "flags.json"
    subprocess.run(
        [sys.executable, "-m", "worker.flags", str(path)],
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert json.loads(path.read_text())["vllm"] == "9.9"
