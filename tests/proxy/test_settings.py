"""The environment becomes settings, mistakes are named, and docs/settings.md lists them all."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy import errors
from proxy.settings import Settings, environment_names, misspelt

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
ENOUGH = {"RUNPOD_API_KEY": "rp", "RUNPOD_ENDPOINT_ID": "ep", "PROXY_API_KEYS": "a, b,"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_three_variables_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.runpod_endpoint_base_url == "https://api.runpod.ai/v2"
    assert settings.host == "127.0.0.1"


def test_secrets_do_not_show_when_settings_are_printed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RUNPOD_API_KEY", "rp-secret")
    environment.setenv("PROXY_API_KEYS", "sk-secret")
    assert "secret" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROXY_API_KEYS", ""),
        ("RUNPOD_ENDPOINT_ID", "a/../b"),
        ("RUNPOD_ENDPOINT_BASE_URL", "api.runpod.ai"),
        ("PROXY_PORT", "x"),
        ("PROXY_STREAM_LIMIT", "2000"),
        ("PROXY_STREAM_LIMIT", "2000/0"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "0"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "inf"),
        ("PROXY_DRAIN_SECONDS", "inf"),
        ("PROXY_FIRST_BYTE_HOLD_SECONDS", "nan"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com/"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com/app"),
        ("PROXY_CORS_ORIGINS", "https://Chat.example.com"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com:443"),
        ("PROXY_CORS_ORIGINS", "chat.example.com"),
    ],
)
def test_a_wrong_value_is_refused(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_an_origin_that_no_browser_sends_is_told_with_what_is_wrong(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("PROXY_CORS_ORIGINS", "https://a.example,https://b.example/")
    with pytest.raises(ValidationError, match=r"'https://b\.example/' is no origin"):
        Settings()


@pytest.mark.parametrize(
    "origins", ["*", "null", "http://127.0.0.1:3000", "http://[::1]:3000", "chrome-extension://abc"]
)
def test_an_origin_as_browsers_send_it_is_taken(
    environment: pytest.MonkeyPatch, origins: str
) -> None:
    environment.setenv("PROXY_CORS_ORIGINS", origins)
    assert Settings().cors_origins == (origins,)


def test_the_end_of_a_line_does_not_belong_to_a_key(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RUNPOD_API_KEY", "rp-1\n")
    key = Settings().runpod_api_key
    assert key is not None
    assert key.get_secret_value() == "rp-1"


@pytest.mark.slow
def test_the_proxy_says_what_is_missing_and_exits(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("RUNPOD_API_KEY")
    environment.setenv("PROXY_PORT", "many")
    environment.setenv("PROXY_LOG_LEVEL", "loud")
    run = subprocess.run(
        [sys.executable, "-m", "proxy"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1
    assert "RUNPOD_API_KEY" in run.stderr
    assert "PROXY_PORT" in run.stderr
    assert "PROXY_LOG_LEVEL" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_misspelt_name_is_told_with_the_one_that_was_meant() -> None:
    sentences = misspelt(["PROXY_MODELS", "PROXY_QUEUE_TIMEOUT", "PATH", "HTTPS_PROXY"])
    assert sentences == [
        "unknown setting PROXY_QUEUE_TIMEOUT; did you mean PROXY_QUEUE_TIMEOUT_SECONDS?"
    ]


def rows_of(document: str) -> dict[str, str]:
    """The defaults in a table of settings, by the variables' names."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", document, re.MULTILINE)
    return {name: default.strip().strip("`") for name, default in rows}


def test_the_document_lists_every_setting_with_its_default() -> None:
    listed = rows_of(SETTINGS)
    assert sorted(listed) == sorted(environment_names())
    for name, field in zip(environment_names(), Settings.model_fields.values(), strict=True):
        if listed[name] in ("required", "any", "all"):
            continue
        default = field.default if field.default not in (None, ()) else "none"
        assert str(default).lower() == listed[name].lower(), name


def test_the_readme_lists_the_settings_that_matter_first_as_the_document_does() -> None:
    first = rows_of(README)
    assert 3 <= len(first) <= 8
    assert first.items() <= rows_of(SETTINGS).items()


def all_errors() -> list[type[errors.ProxyError]]:
    def below(cls: type[errors.ProxyError]) -> list[type[errors.ProxyError]]:
        return [cls, *(found for sub in cls.__subclasses__() for found in below(sub))]

    return below(errors.ProxyError)


@pytest.mark.parametrize("error", all_errors())
def test_the_readme_and_the_table_of_errors_list_every_code(error: Any) -> None:
    if error.code is None:
        return
    row = rf"\| {error.status}[^|]*\| `{error.type}` \| `{error.code}` \|"
    assert re.search(row, README), error
    assert re.search(rf"{error.__name__} +{error.status}  ", errors.__doc__ or ""), error
