"""What the TOML file and the command line may say."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from emulator.__main__ import merged, parser
from emulator.mistakes import explained
from emulator.settings import (
    BalancingSettings,
    EmulatorSettings,
    EndpointSettings,
    Fault,
    LatencySettings,
    RoadSettings,
)

BALANCING = {"id": "a", "kind": "load-balancing"}
README = Path(__file__).parents[2] / "emulator" / "README.md"


def settings(*arguments: str) -> EmulatorSettings:
    """What these command-line arguments come to."""
    return EmulatorSettings.model_validate(merged(parser().parse_args(arguments)))


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "emulator.toml"
    file.write_text(
        """
        port = 9000
        api_key = "rpa_file"
        [[endpoints]]
        id = "chat"
        worker = "python -m worker"
        max_workers = 2
        [endpoints.env]
        MODEL_NAME = "tiny"
        [[endpoints]]
        id = "embed"
        """
    )
    return str(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1\n", "prot: there is no such field; did you mean port?"),
        ("port = 'x'\n", "port: a whole number is needed"),
        ("port = 70000\n", "port: a number below 65536 is needed"),
        (
            "[endpoints.a]\nid = 'a'\n",
            "endpoints: a list is needed, or tables that",
        ),
        (
            "[[endpoints]]\nworkr = 'x'\n",
            "endpoints.0.workr: there is no such field; did you",
        ),
        ("[[endpoints]]\nkind = 'queue'\n", "endpoints.0.id: required"),
        ("[[endpoints]]\nid = 'a b'\n", "endpoints.0.id: letters, digits, - and _ alone"),
        ("[[endpoints]]\nid = 'a'\nscaler = 'x'\n", "endpoints.0.scaler: one of these is needed"),
        (
            "[[endpoints]]\nid = 'a'\n[endpoints.latency]\nclient_second = 1\n",
            "endpoints.0.latency.client_second: there is no such field; did you mean client_secon",
        ),
        (
            "[[endpoints]]\nid = 'a'\nports = ['8000/http']\n",
            'endpoints.0.ports: 8000/http is no port like "8899/tcp": others are not imitated',
        ),
        ("[[faults]]\noperation = 'run'\ntime = 1\n", "faults.0.time: there is no such field; did"),
    ],
)
def test_a_mistake_is_told_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "emulator.toml"
    file.write_text(text)
    with pytest.raises(ValidationError) as caught:
        settings("--config", str(file))
    sentences = "; ".join(explained(caught.value))
    assert said in sentences
    assert not re.search("pattern|Input should|permitted|Field required", sentences)


def test_a_file_that_is_nested_too_deep_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "emulator.toml"
    file.write_text(f"x = {'[' * 2000}{']' * 2000}")
    with pytest.raises(SystemExit):
        settings("--config", str(file))
    assert "nested too deep" in capsys.readouterr().err


def test_without_arguments_there_is_one_endpoint_on_loopback() -> None:
    found = settings()
    assert found.base_url == "http://127.0.0.1:8400"
    assert [endpoint.id for endpoint in found.endpoints] == ["local"]


def test_flags_describe_one_endpoint() -> None:
    found = settings(
        *("--endpoint", "chat", "--worker", "python -m worker", "--max-workers", "3"),
        *("--min-workers", "1", "--idle-timeout", "2.5", "--cold-start-delay", "4"),
    )
    [endpoint] = found.endpoints
    assert endpoint.id == "chat"
    assert endpoint.command == ["python", "-m", "worker"]
    assert (endpoint.min_workers, endpoint.max_workers) == (1, 3)
    assert (endpoint.idle_timeout_seconds, endpoint.cold_start_delay_seconds) == (2.5, 4)


def test_a_file_may_hold_many_endpoints(config: str) -> None:
    found = settings("--config", config)
    assert found.port == 9000
    assert [endpoint.id for endpoint in found.endpoints] == ["chat", "embed"]
    assert found.endpoints[0].env == {"MODEL_NAME": "tiny"}


def test_flags_win_over_the_file(config: str) -> None:
    found = settings("--config", config, "--port", "9001", "--endpoint", "chat", "--worker", "x")
    assert found.port == 9001
    assert found.api_key.get_secret_value() == "rpa_file"
    assert found.endpoints[0].worker == "x"
    assert found.endpoints[0].max_workers == 2


@pytest.mark.parametrize("wrong", ["[endpoints]\nid = 'a'", "endpoints = ['a']", "endpoints = 1"])
def test_endpoints_that_are_no_list_of_tables_are_refused_under_flags_too(
    tmp_path: Path, wrong: str
) -> None:
    file = tmp_path / "emulator.toml"
    file.write_text(wrong)
    with pytest.raises(ValidationError, match="endpoints"):
        settings("--config", str(file), "--worker", "x")


def test_a_scenario_adds_its_faults_to_the_file(config: str, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[faults]]\noperation = "stream"\ndrop = "answer"\n')
    [fault] = settings("--config", config, "--scenario", str(scenario)).faults
    assert (fault.operation, fault.drop, fault.times) == ("stream", "answer", 1)


def test_the_public_url_is_what_workers_are_told() -> None:
    assert settings("--public-url", "http://10.0.0.1:80/").base_url == "http://10.0.0.1:80"
    assert settings("--host", "::1").base_url == "http://[::1]:8400"


def test_the_key_does_not_show_when_settings_are_printed() -> None:
    assert "rpa_secret" not in repr(settings("--api-key", "rpa_secret"))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"endpoints": []},
        {"endpoints": [{"id": "a"}, {"id": "a"}]},
        {"endpoints": [{"id": "a/b"}]},
        {"endpoints": [{"id": "a", "min_workers": 2, "max_workers": 1}]},
        {"endpoints": [{"id": "a", "idle_timeout": 1}]},
        {"endpoints": [{"id": "a", "take_hold_seconds": 90}]},
        {"endpoints": [{"id": "a", "worker": "sh -c 'unbalanced"}]},
        {"endpoints": [{**BALANCING, "scaler": "queue_delay"}]},
        {"endpoints": [{**BALANCING, "env": {"PORT": "1"}, "max_workers": 2}]},
        {"endpoints": [{**BALANCING, "env": {"PORT_HEALTH": "1"}, "max_workers": 2}]},
        {"endpoints": [{**BALANCING, "env": {"PORT": "http"}}]},
        {"endpoints": [{**BALANCING, "env": {"PORT": "70000"}}]},
        {"endpoints": [{"id": "a", "ports": ["8000/http"]}]},
        {"endpoints": [{"id": "a", "ports": ["70000/tcp"]}]},
        {"endpoints": [{"id": "a", "ports": [8899]}]},
        {"endpoints": [{"id": "a"}], "prot": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EmulatorSettings.model_validate(wrong)


def toml_blocks() -> list[dict[str, Any]]:
    """The TOML examples of the README, parsed."""
    blocks = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    return [tomllib.loads(block) for block in blocks]


def test_the_readmes_examples_are_valid() -> None:
    configuration, scenario = toml_blocks()
    EmulatorSettings.model_validate({**configuration, **scenario})


def test_the_readme_names_every_setting_with_its_default() -> None:
    configuration, scenario = toml_blocks()
    [endpoint] = configuration["endpoints"]
    assert set(endpoint) == set(EndpointSettings.model_fields)
    assert set(configuration) == set(EmulatorSettings.model_fields) - {"faults"}
    assert set().union(*scenario["faults"]) == set(Fault.model_fields)
    assert set(endpoint["latency"]) == set(LatencySettings.model_fields)
    assert set(endpoint["road"]) == set(RoadSettings.model_fields)
    assert set(endpoint["balancing"]) == set(BalancingSettings.model_fields)
    shown = EndpointSettings.model_validate(endpoint)
    changed = {"worker", "env", "limits"}
    assert shown.model_dump(exclude=changed) == EndpointSettings(id="local").model_dump(
        exclude=changed
    )


def test_the_readme_names_every_flag() -> None:
    text = README.read_text()
    flags = [option for action in parser()._actions for option in action.option_strings]
    assert [flag for flag in flags if flag.startswith("--") and flag not in text] == ["--help"]
