"""Which of OpenTelemetry's variables ask for traces."""

import pytest

from proxy.config import tracing
from proxy.config.file import ConfigError
from proxy.config.tracing import wants_traces

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ITS_OWN = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
URL = "http://collector:4318"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "proxy", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({ENDPOINT: URL}, True),
        ({ENDPOINT: ""}, False),
        ({ITS_OWN: f"{URL}/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: URL}, False),
        ({"OTEL_SDK_DISABLED": "True", ENDPOINT: URL}, False),
        ({"OTEL_SDK_DISABLED": "yes", ENDPOINT: URL}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", ENDPOINT: URL}, True),
    ],
    ids=str,
)
def test_traces_are_made_where_a_place_for_them_is_named(
    said: dict[str, str], wanted: bool
) -> None:
    assert wants_traces(said) is wanted


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER: "),
        ({ENDPOINT: "collector:4318"}, f"{ENDPOINT}: "),
        ({ENDPOINT: URL, ITS_OWN: "http://user:SECRET@collector"}, f"{ITS_OWN}: "),
        ({ENDPOINT: URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: "),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_the_variables_name(
    said: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        wants_traces(said)
    assert str(refused.value).startswith(named)
    assert "SECRET" not in str(refused.value)


def test_without_the_extra_the_line_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"ENDPOINT: .*pip install 'runpod-openai-proxy\[otel\]'"):
        wants_traces({ENDPOINT: URL})
    assert not wants_traces({})
