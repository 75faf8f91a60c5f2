"""What is set up, what is left to the user, and what is served."""

import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import set_up
from scripts.models import find_models
from scripts.progress import SetUpError
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def fresh_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing was ever set up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("VLLM_VENV", "WORKER_VLLM_COMMAND"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_without_vllm_is_told_how_to_bring_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(
        SetUpError, match=r"(?s)x86_64 and aarch64.*ENGINE=scripted.*VLLM_VENV.*WORKER_VLLM_COMMAND"
    ):
        set_up.set_up_vllm()
    assert not (tmp_path / "cache").exists()


def test_with_a_command_of_ones_own_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_VLLM_COMMAND", "/opt/vllm/bin/vllm serve")
    set_up.set_up_vllm()
    assert not (tmp_path / "cache").exists()
    assert set_up.vllm_command() == "/opt/vllm/bin/vllm serve"


def test_an_environment_of_ones_own_must_have_vllm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own one"
    (own / "bin").mkdir(parents=True)
    (own / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (own / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("VLLM_VENV", str(own))
    with pytest.raises(SetUpError, match="own one, but there is no vLLM in it"):
        set_up.set_up_vllm()
    assert shlex.split(set_up.vllm_command())[0] == str(own / "bin" / "python")


def test_a_folder_is_served_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    (model,) = find_models("my-model")
    assert (model.path, model.name) == (str(tmp_path / "my-model"), "my-model")


def test_what_is_no_folder_is_a_name_on_the_hub() -> None:
    (model,) = find_models("Qwen/Qwen3-0.6B")
    assert (model.path, model.name) == ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert "HF_HUB_OFFLINE" not in model.settings


def test_the_built_in_models_have_an_endpoint_each_and_need_no_hub() -> None:
    models = find_models()
    assert [model.name for model in models] == ["tiny-chat", "tiny-embed"]
    assert [model.endpoint for model in models] == ["local", "local-embed"]
    assert [model.settings["HF_HUB_OFFLINE"] for model in models] == ["1", "1"]


def test_what_the_environment_says_of_the_worker_is_about_the_model_to_chat_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_MODEL_LEN", "1024")
    chat, embed = find_models()
    assert "MAX_MODEL_LEN" not in chat.settings
    assert embed.settings["MAX_MODEL_LEN"] == "512"


MAKE = ("-m", "scripts.set_up")


def test_a_port_that_is_taken_is_told_before_anything_is_installed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, *MAKE, "ports"],
            env={**os.environ, "PROXY_PORT": port, "EMULATOR_PORT": "0"},
            cwd=set_up.ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == f"\nport {port} is taken: stop what listens there, or set PROXY_PORT\n"


@pytest.mark.parametrize("value", ["eighty", "70000", "-1"])
def test_what_is_no_port_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("EMULATOR_PORT", value)
    with pytest.raises(SetUpError, match=f"EMULATOR_PORT is '{value}'"):
        set_up.check_ports()


def test_ctrl_c_ends_it_in_one_line(tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    waits.write_text(f"#!/bin/sh\ntouch {tmp_path}/waiting\nexec sleep 60\n")
    waits.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(waits)
    with subprocess.Popen(
        [sys.executable, *MAKE, "vllm"],
        env={**os.environ, "VLLM_VENV": str(tmp_path), "WORKER_VLLM_COMMAND": ""},
        cwd=set_up.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until((tmp_path / "waiting").exists)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.strip().splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in output


def test_a_full_disk_is_told_before_the_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(set_up, "VLLM_BYTES", 10**18)
    with pytest.raises(SetUpError, match=r"GB free, and vLLM needs .* XDG_CACHE_HOME"):
        set_up._check_space(tmp_path / "cache" / "vllm")
