"""`compose.yaml`, as Compose itself reads it."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import proxy
from emulator.settings import EmulatorSettings, read_toml
from proxy.config.load import load
from proxy.config.settings import Settings, environment_names
from scripts.models import ANY_MODEL, CHAT_MODEL, SCRIPTED, TINY_MODEL, find_models
from scripts.set_up import TINY_CHAT, VLLM_FLAGS
from tests.deploy.conftest import BARE, ROOT, output_of

pytestmark = pytest.mark.slow

Services = dict[str, dict[str, Any]]
EMULATOR_ENV = ROOT / "deploy/compose/emulator.env"
SCRIPTED_ENV = ROOT / "deploy/compose/scripted.env"
EXAMPLE_ENV = ROOT / "deploy/compose/example.env"


def read(programs: Path, env_file: Path) -> dict[str, Any]:
    compose = (programs / "docker-compose", "-f", ROOT / "compose.yaml", "--env-file", env_file)
    found: dict[str, Any] = json.loads(output_of(*compose, "config", "--format", "json"))
    return found


@pytest.fixture(scope="module")
def services(programs: Path) -> Services:
    found: Services = read(programs, EMULATOR_ENV)["services"]
    return found


def test_nothing_runs_as_root_or_writes_to_its_own_files(
    programs: Path, services: Services
) -> None:
    assert set(services) == {"proxy", "postgres", "redis", "prometheus", "grafana", "emulator"}
    scripted = read(programs, SCRIPTED_ENV)["services"]["scripted"]
    for name, service in [*services.items(), ("scripted", scripted)]:
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # The images of the others name a user of their own.
        assert name not in ("postgres", "redis") or service["user"] == "999:999"


def test_every_service_is_pinned_and_has_a_health_check(services: Services) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.?\d*$", service["image"]), name
        if "build" in service:
            assert service["image"].endswith(f":{proxy.__version__}")
        if name == "proxy":
            assert "HEALTHCHECK" in (ROOT / "Dockerfile.proxy").read_text()
        else:
            assert service["healthcheck"]["test"], name


def test_every_variable_of_the_proxy_is_a_setting(services: Services) -> None:
    assert set(services["proxy"]["environment"]) <= set(environment_names())


def test_the_proxy_starts_with_what_it_is_given(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in services["proxy"]["environment"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.runpod_endpoint_base_url == "http://emulator:8400/v2"
    assert settings.rest_base_url == "http://emulator:8400"
    assert settings.models == ("tiny-chat",)
    assert settings.metrics_key is not None
    given = services["prometheus"]["environment"]["METRICS_KEY"]
    assert settings.metrics_key.get_secret_value() == given


def test_data_stores_are_reached_by_the_proxy_alone(programs: Path, services: Services) -> None:
    inner = {name for name, service in services.items() if "back" in service["networks"]}
    assert inner == {"proxy", "postgres", "redis"}
    assert read(programs, EMULATOR_ENV)["networks"]["back"]["internal"] is True
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))


def test_the_proxy_is_given_time_to_drain(services: Services) -> None:
    drain = Settings.model_fields["drain_seconds"].default
    keep_alive = Settings.model_fields["keep_alive_seconds"].default
    minutes, seconds = re.fullmatch(
        r"(?:(\d+)m)?(\d+)s", services["proxy"]["stop_grace_period"]
    ).groups(default="0")  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) >= drain + keep_alive + 30


def test_every_file_that_is_mounted_exists(services: Services) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists()


def test_a_secret_that_is_missing_is_named(programs: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.env"
    empty.touch()
    ended = subprocess.run(
        [programs / "docker-compose", "-f", ROOT / "compose.yaml", "--env-file", empty, "config"],
        capture_output=True,
        text=True,
        timeout=60,
        env=BARE,
    )
    assert ended.returncode != 0
    assert "is missing a value: in .env" in ended.stderr


def test_the_example_names_every_variable_that_compose_reads() -> None:
    read_by_compose = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    shown = set(re.findall(r"^#?(\w+)=", EXAMPLE_ENV.read_text(), re.MULTILINE))
    assert read_by_compose - shown == {
        "IMAGE",
        "RUNPOD_ENDPOINT_BASE_URL",
        "RUNPOD_REST_BASE_URL",
    }
    assert shown <= read_by_compose


def test_the_example_of_a_configuration_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRODUCT_KEY", "sk-product")
    settings = Settings(
        config=ROOT / "deploy/compose/config/example.toml",
        runpod_api_key=SecretStr("rpa_test"),
    )
    config = load(settings)
    assert config.endpoints["chat"].worker_concurrency == 32


def test_the_emulators_worker_has_what_make_run_gives_it() -> None:
    file = ROOT / "deploy/compose/emulator.toml"
    settings = EmulatorSettings.model_validate(read_toml(file))
    [endpoint] = settings.endpoints
    assert (settings.host, settings.port) == ("0.0.0.0", 8400)
    assert endpoint.env.items() >= (ANY_MODEL | TINY_MODEL | CHAT_MODEL).items()
    model = Path(endpoint.env["MODEL_NAME"]).relative_to("/opt/emulator")
    assert ROOT / model == TINY_CHAT.folder
    allowed = (ROOT / "Dockerfile.emulator.dockerignore").read_text().splitlines()
    assert f"!{model}" in allowed
    flags = Path(endpoint.env["WORKER_VLLM_FLAGS"]).relative_to("/opt/emulator")
    assert ROOT / flags == VLLM_FLAGS


def test_without_vllm_it_is_the_scripted_engine_of_make_run(programs: Path) -> None:
    services = read(programs, SCRIPTED_ENV)["services"]
    assert set(services) == {"proxy", "postgres", "redis", "prometheus", "grafana", "scripted"}
    proxy_environment = services["proxy"]["environment"]
    assert proxy_environment["RUNPOD_ENDPOINT_BASE_URL"] == "http://scripted:8400/v2"
    assert services["scripted"]["build"]["target"] == SCRIPTED
    assert services["scripted"]["image"] != services["proxy"]["image"]
    settings = EmulatorSettings.model_validate(read_toml(ROOT / "deploy/compose/scripted.toml"))
    [endpoint] = settings.endpoints
    [model] = find_models(engine=SCRIPTED)
    assert proxy_environment["PROXY_MODELS"] == model.name
    assert endpoint.env["OPENAI_SERVED_MODEL_NAME_OVERRIDE"] == model.name
    assert set(endpoint.env) >= set(model.settings)
    program = endpoint.env["WORKER_VLLM_COMMAND"].split()
    assert program[2:] == shlex.split(model.settings["WORKER_VLLM_COMMAND"])[2:]
    assert (ROOT / Path(program[1]).relative_to("/opt/emulator")).is_file()


def test_what_compose_reads_is_in_the_emulators_image() -> None:
    copied = (ROOT / "Dockerfile.emulator.dockerignore").read_text().splitlines()
    dockerfile = (ROOT / "Dockerfile.emulator").read_text()
    configurations = re.findall(r'CMD \["--config", "(.+?)"\]', dockerfile)
    assert len(configurations) == 2
    assert {f"!{file}" for file in configurations} <= set(copied)
