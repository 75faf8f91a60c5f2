"""The environment becomes settings, mistakes are named, and docs/settings.md lists them all."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy import errors
from proxy.config.settings import (
    Settings,
    doubts,
    environment_name,
    environment_names,
    explained,
    misspelt,
)

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs/settings.md").read_text()
ANSWERS = (ROOT / "docs/api.md").read_text()
ENOUGH = {"RUNPOD_API_KEY": "rp", "RUNPOD_ENDPOINT_ID": "ep", "PROXY_API_KEYS": "a, b,"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("value", ["hidden" * 5, "hidden " * 6, "hidden\u200b" * 6, "x" * 5000])
def test_a_secret_that_can_be_guessed_or_was_copied_badly_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, value: str
) -> None:
    environment.setenv("PROXY_SEAL_SECRET", value)
    [sentence] = mistakes()
    assert sentence.startswith("PROXY_SEAL_SECRET: ")
    assert "openssl rand -base64 32" in sentence
    assert value[:6] not in sentence


@pytest.mark.parametrize(
    ("public_url", "channel_url"),
    [
        ("https://proxy-1.example.com/", "wss://proxy-1.example.com/channel"),
        ("https://example.com:8443/one", "wss://example.com:8443/one/channel"),
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/channel"),
    ],
)
def test_workers_reach_the_channel_below_the_public_url(
    environment: pytest.MonkeyPatch, public_url: str, channel_url: str
) -> None:
    environment.setenv("PROXY_PUBLIC_URL", public_url)
    assert Settings().channel_url == channel_url
    (doubt,) = doubts(Settings())
    assert doubt.startswith("PROXY_PUBLIC_URL has no effect")
    environment.setenv("PROXY_DIRECT", "true")
    assert doubts(Settings()) == []


def test_three_variables_are_enough(environment: pytest.MonkeyPatch) -> None:
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.runpod_endpoint_base_url == "https://api.runpod.ai/v2"
    assert settings.host == "127.0.0.1"


def test_secrets_do_not_show_when_settings_are_printed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RUNPOD_API_KEY", "rp-hidden")
    environment.setenv("PROXY_API_KEYS", "sk-hidden")
    environment.setenv("PROXY_SEAL_SECRET", "hidden" * 6)
    assert "hidden" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROXY_API_KEYS", ""),
        ("PROXY_API_KEYS", ","),
        ("PROXY_ADMIN_KEYS", "sk-secret"),
        ("PROXY_ADMIN_KEYS", "sk-secret-of-24-characters,sk-secret"),
        ("RUNPOD_ENDPOINT_ID", "a/../b"),
        ("RUNPOD_ENDPOINT_ID", "ab cd"),
        ("RUNPOD_ENDPOINT_ID", "ab\ncd"),
        ("RUNPOD_ENDPOINT_ID", "https://api.runpod.ai/v2/abc"),
        ("RUNPOD_ENDPOINT_ID", "a" * 64),
        ("RUNPOD_ENDPOINT_BASE_URL", "api.runpod.ai"),
        ("RUNPOD_ENDPOINT_BASE_URL", "ftp://api.runpod.ai/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https:///v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https:/api.runpod.ai/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai\n/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v 2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai\u200b/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://me:secret@api.runpod.ai/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v2?key=secret"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v2#top"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai:99999/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai:0/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai:/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://[::1/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://300.1.1.1/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", f"https://{'a' * 64}.example/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://xn--a/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "https://xn--/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", f"https://api.runpod.ai/{'a' * 70_000}"),
        ("RUNPOD_REST_BASE_URL", "https://xn--a"),
        ("RUNPOD_ENDPOINT_ID", "xn--a"),
        ("PROXY_API_KEYS", '["sk-secret"]'),
        ("PROXY_API_KEYS", "[sk-secret, sk-other-secret]"),
        ("PROXY_MODELS", '["Qwen/Qwen3-8B"]'),
        ("PROXY_HOST", "http://127.0.0.1"),
        ("PROXY_HOST", "127.0.0.1:8080"),
        ("PROXY_HOST", "127.0.0.1/24"),
        ("PROXY_HOST", "127.0.0"),
        ("PROXY_HOST", "local host"),
        ("PROXY_HOST", "*"),
        ("PROXY_HOST", "::1::"),
        ("PROXY_DIRECT_PORT", "0"),
        ("PROXY_PUBLIC_URL", "proxy-1.example.com"),
        ("PROXY_PUBLIC_URL", "http://proxy-1.example.com"),
        ("PROXY_PUBLIC_URL", "http://localhost:8080"),
        ("PROXY_PUBLIC_URL", "wss://proxy-1.example.com/channel"),
        ("PROXY_PORT", "x"),
        ("PROXY_PORT", "65536"),
        ("PROXY_PORT", "8080 # the port"),
        ("PROXY_PORT", "1e308"),
        ("PROXY_MAX_CONNECTIONS", "9" * 5000),
        ("PROXY_MAX_CONNECTIONS", "1000000000000000000000"),
        ("PROXY_MAX_HEADER_BYTES", "1"),
        ("PROXY_MAX_BODY_BYTES", "1"),
        ("PROXY_STREAM_LIMIT", "2000"),
        ("PROXY_STREAM_LIMIT", "2000/0"),
        ("PROXY_STREAM_LIMIT", "9999999999999/1"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "0"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "inf"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "1e308"),
        ("PROXY_QUEUE_TIMEOUT_SECONDS", "soon"),
        ("PROXY_DRAIN_SECONDS", "inf"),
        ("PROXY_DRAIN_SECONDS", "1e308"),
        ("PROXY_FIRST_BYTE_HOLD_SECONDS", "nan"),
        ("PROXY_COUNT_TOKENS", "perhaps"),
        ("PROXY_KEEP_ALIVE_MODE", "event"),
        ("PROXY_LOG_LEVEL", "loud"),
        ("PROXY_MODELS", "org/model\u200b"),
        ("PROXY_MODELS", "m" * 201),
        ("PROXY_STATE_DIR", "~no-such-user/state"),
        ("PROXY_ROUTES", ","),
        ("PROXY_ROUTES", "/v1/embeddings"),
        ("PROXY_ROUTES", "post /v1/embeddings"),
        ("PROXY_ROUTES", "POST v1/embeddings"),
        ("PROXY_ROUTES", "POST /v1/../embeddings"),
        ("PROXY_ROUTES", "POST /v1//embeddings"),
        ("PROXY_ROUTES", "POST /v1/embeddings?x=1"),
        ("PROXY_ROUTES", "GET /a/{id}/{id}"),
        ("PROXY_ROUTES", "GET /a/{id:path}"),
        ("PROXY_ROUTES", "GET /a/{}"),
        ("PROXY_ROUTES", "GET /a/{1}"),
        ("PROXY_ROUTES", "GET /health"),
        ("PROXY_ROUTES", "POST /v1/models/{id}/warm"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com/"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com/app"),
        ("PROXY_CORS_ORIGINS", "https://Chat.example.com"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com:443"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com:99999"),
        ("PROXY_CORS_ORIGINS", "https://chat.example.com\u200b"),
        ("PROXY_CORS_ORIGINS", "https://*.example.com"),
        ("PROXY_CORS_ORIGINS", "chat.example.com"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variables_name(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    [sentence] = mistakes()
    assert sentence.startswith(f"{name}: ")
    assert "secret" not in sentence
    assert not re.search(r"pattern|Input should|permitted|Field required", sentence)


NUMBERS = [
    environment_name(name)
    for name, field in Settings.model_fields.items()
    if field.annotation in (int, float)
]


@pytest.mark.parametrize("value", ["1e308", "9" * 400, "nan", "inf", "-1", "0x10", "1 2"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_taken_that_could_never_be_meant(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    [sentence] = mistakes()
    assert sentence.startswith(f"{name}: a ")
    assert "number" in sentence


def mistakes() -> list[str]:
    """What is said of an environment that cannot be used."""
    with pytest.raises(ValidationError) as caught:
        Settings()
    return explained(caught.value)


def test_all_that_is_missing_is_asked_for_at_once(environment: pytest.MonkeyPatch) -> None:
    for name in ENOUGH:
        environment.delenv(name)
    environment.setenv("PROXY_PORT", "many")
    told = {sentence.partition(":")[0] for sentence in mistakes()}
    assert told == {*ENOUGH, "PROXY_PORT"}


ODD_CHARACTERS = {
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "en dash": "\u2013",
    "no-break space": "\u00a0",
    "umlaut": "\u00e4",
    "blank": " ",
    "tab": "\t",
    "line end": "\r\n",
    "escape": "\x1b",
    "delete": "\x7f",
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("character", ODD_CHARACTERS.values(), ids=ODD_CHARACTERS)
@pytest.mark.parametrize("name", ["RUNPOD_API_KEY", "PROXY_API_KEYS", "PROXY_ADMIN_KEYS"])
def test_a_key_with_an_odd_character_is_refused_and_not_shown(
    environment: pytest.MonkeyPatch, name: str, character: str
) -> None:
    for value in (f"rpa_SECRET{character}SECRET", f"rpa_SECRET,rpa_SECRET{character}x"):
        environment.setenv(name, value)
        [sentence] = mistakes()
        assert sentence.startswith(f"{name}: ")
        assert "SECRET" not in sentence


def test_a_key_cannot_both_administer_and_not(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROXY_ADMIN_KEYS", "sk-secret-of-24-characters")
    environment.setenv("PROXY_API_KEYS", "a,sk-secret-of-24-characters")
    assert mistakes() == [
        "PROXY_API_KEYS: one of them is also in PROXY_ADMIN_KEYS, which may do all of it"
    ]


def test_an_admins_key_is_enough_for_a_start(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("PROXY_API_KEYS")
    environment.setenv("PROXY_ADMIN_KEYS", "sk-secret-of-24-characters")
    assert Settings().api_keys == ()


@pytest.mark.parametrize("character", ["\u200b", "\u00a0", "\x0b"])
def test_an_odd_character_at_a_keys_end_is_refused(
    environment: pytest.MonkeyPatch, character: str
) -> None:
    environment.setenv("RUNPOD_API_KEY", f"rpa_SECRET{character}")
    [sentence] = mistakes()
    assert sentence.startswith("RUNPOD_API_KEY: ")


def test_a_key_with_its_header_is_refused_with_what_to_leave_out(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("RUNPOD_API_KEY", "Bearer rpa_SECRET")
    assert mistakes() == [
        "RUNPOD_API_KEY: the key holds a blank, which no key has; copy it again, "
        "without the word Bearer"
    ]


@pytest.mark.parametrize("quote", ['"', "'", "`", "\u201c"])
@pytest.mark.parametrize("name", environment_names())
def test_quotation_marks_that_came_along_are_refused(
    environment: pytest.MonkeyPatch, name: str, quote: str
) -> None:
    for value in (f"{quote}value{quote}", f"{quote}value", f"value{quote}"):
        environment.setenv(name, value)
        told = [sentence for sentence in mistakes() if sentence.startswith(f"{name}: ")]
        assert told != []
        assert "quotation marks" in told[0]


@pytest.mark.parametrize(
    "name",
    ["PROXY_API_KEYS", "PROXY_ADMIN_KEYS", "PROXY_MODELS", "PROXY_CORS_ORIGINS", "PROXY_ROUTES"],
)
def test_quotation_marks_around_one_of_several_are_refused(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.setenv(name, 'one,"two",three')
    [sentence] = mistakes()
    assert sentence.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("PROXY_HOST", "[::1]", "::1"),
        ("PROXY_HOST", "::", "::"),
        ("PROXY_HOST", "fe80::1%eth0", "fe80::1%eth0"),
        ("PROXY_HOST", "localhost", "localhost"),
        ("PROXY_LOG_LEVEL", "INFO", "info"),
        ("RUNPOD_ENDPOINT_ID", " abc123\n", "abc123"),
        ("RUNPOD_ENDPOINT_BASE_URL", "http://[::1]:8400/v2/", "http://[::1]:8400/v2"),
        ("RUNPOD_ENDPOINT_BASE_URL", "HTTPS://api.runpod.ai/v2", "HTTPS://api.runpod.ai/v2"),
    ],
)
def test_a_value_that_is_written_otherwise_is_taken(
    environment: pytest.MonkeyPatch, name: str, value: str, taken: str
) -> None:
    environment.setenv(name, value)
    assert taken in [str(found) for found in Settings().model_dump().values()]


def test_without_a_home_folder_the_state_folder_must_be_named(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setattr(Path, "expanduser", _without_home)
    [sentence] = mistakes()
    assert sentence.startswith("PROXY_STATE_DIR: there is no home folder")


def _without_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


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


def test_less_memory_than_the_largest_body_takes_is_warned_of(
    environment: pytest.MonkeyPatch,
) -> None:
    assert doubts(Settings(max_body_bytes=1000, max_buffered_bytes=2000)) == []
    (doubt,) = doubts(Settings(max_body_bytes=1000, max_buffered_bytes=1999))
    assert doubt.startswith("PROXY_MAX_BUFFERED_BYTES (1,999) is less than twice")


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


def test_the_readme_names_every_setting_that_is_required() -> None:
    required = {name for name, default in rows_of(SETTINGS).items() if default == "required"}
    assert required
    assert [name for name in required if f"-e {name}=" not in README] == []


def all_errors() -> list[type[errors.ProxyError]]:
    def below(cls: type[errors.ProxyError]) -> list[type[errors.ProxyError]]:
        return [cls, *(found for sub in cls.__subclasses__() for found in below(sub))]

    return below(errors.ProxyError)


@pytest.mark.parametrize("error", all_errors())
def test_the_document_and_the_table_of_errors_list_every_code(error: Any) -> None:
    if error.code is None or error is errors.VLLMError:  # whose code no client sees
        return
    row = rf"\| {error.status}[^|]*\| `{error.type}` \| `{error.code}` \|"
    assert re.search(row, ANSWERS), error
    assert re.search(rf"{error.__name__} +{error.status}  ", errors.__doc__ or ""), error
