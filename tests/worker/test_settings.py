"""The worker's own settings."""

from pathlib import Path

import pytest

from worker.command import ALIASES
from worker.errors import SettingsError, VLLMExited
from worker.settings import VLLM_COMMAND, WorkerSettings, own_names, start_failure_seconds

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "worker.md"


@pytest.mark.parametrize("name", sorted(own_names() | set(ALIASES)))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENTATION.read_text()


def test_the_environment_is_read_under_the_official_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_CONCURRENCY", "REQUEST_TIMEOUT", "VLLM_STARTUP_TIMEOUT", "WORKER_VLLM_PORT"):
        monkeypatch.setenv(name, "77")
    settings = WorkerSettings.from_environment()
    assert settings.concurrency == 77
    assert settings.request_timeout_seconds == 77
    assert settings.start_timeout_seconds == 77
    assert settings.vllm_port == 77


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENCY", "")
    monkeypatch.setenv("WORKER_VLLM_COMMAND", "")
    settings = WorkerSettings.from_environment()
    assert settings.max_concurrency is None
    assert settings.command == VLLM_COMMAND.split()


def test_wrong_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENCY", "many")
    monkeypatch.setenv("WORKER_GRACE_SECONDS", "-1")
    with pytest.raises(SettingsError) as caught:
        WorkerSettings.from_environment()
    assert "MAX_CONCURRENCY: " in str(caught.value)
    assert "WORKER_GRACE_SECONDS: " in str(caught.value)


@pytest.mark.parametrize(("running", "taken"), [(1, 5), (8, 12), (256, 320), (1024, 1280)])
def test_more_jobs_are_taken_than_vllm_runs_at_once(running: int, taken: int) -> None:
    assert WorkerSettings(max_num_seqs=running).concurrency == taken


def test_a_command_is_split_like_a_shell_does() -> None:
    settings = WorkerSettings(vllm_command="'/a b/python' -m vllm")
    assert settings.command == ["/a b/python", "-m", "vllm"]


@pytest.mark.parametrize("name", ["WORKER_VLLM_COMMAND", "VLLM_EXTRA_ARGS"])
@pytest.mark.parametrize("value", ["vllm 'serve", 'vllm "serve', "vllm \\"])
def test_a_quotation_that_stays_open_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: a quotation is not closed"):
        WorkerSettings.from_environment()


def test_a_command_that_is_blank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_VLLM_COMMAND", "  ")
    with pytest.raises(SettingsError, match="WORKER_VLLM_COMMAND: it names no program"):
        WorkerSettings.from_environment()


def test_quotes_around_a_whole_command_are_named_and_those_around_a_path_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKER_VLLM_COMMAND", "'/a b/vllm'")
    assert WorkerSettings.from_environment().command == ["/a b/vllm"]
    monkeypatch.setenv("WORKER_VLLM_COMMAND", '"python3 -m vllm"')
    with pytest.raises(SettingsError, match="WORKER_VLLM_COMMAND: it has quotes around all of it"):
        WorkerSettings.from_environment()


@pytest.mark.parametrize(
    ("value", "seconds"), [("", 120), ("30", 30), ("0", 0), ("soon", 120), ("-1", 0), ("nan", 120)]
)
def test_jobs_are_refused_for_a_while_whatever_else_is_wrong(value: str, seconds: float) -> None:
    assert start_failure_seconds({"WORKER_START_FAILURE_SECONDS": value}) == seconds


@pytest.mark.parametrize(
    ("code", "lines", "message"),
    [
        (1, [], "vLLM exited with code 1. It said: nothing"),
        (1, ["one", " ", "two "], "vLLM exited with code 1. It said: one | two"),
        (
            0,
            ["ERROR x.EngineDeadError: dead", "x.EngineDeadError: dead", "leaked"],
            "vLLM exited with code 0. It said: EngineDeadError: dead",
        ),
        (
            -9,
            ["last"],
            "vLLM was killed by SIGKILL, which often means that memory ran out. It said: last",
        ),
    ],
)
def test_the_death_of_vllm_is_told_with_its_reason(
    code: int, lines: list[str], message: str
) -> None:
    assert str(VLLMExited(code, lines)) == message
