"""What is set up, what is left to the user, and what is served."""

import platform
import shlex
import sys
from pathlib import Path

import pytest

from scripts import set_up
from scripts.models import find_models
from scripts.progress import SetUpError


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
    with pytest.raises(SetUpError, match=r"(?s)x86_64 and aarch64.*VLLM_VENV.*WORKER_VLLM_COMMAND"):
        set_up.set_up_vllm()
    assert not (tmp_path / "cache").exists()


def test_with_a_command_of_ones_own_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORKER_VLLM_COMMAND", "/opt/vllm/bin/vllm serve")
    set_up.set_up_vllm()
    set_up.set_up_flags()
    set_up.set_up_tiny_models()
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
