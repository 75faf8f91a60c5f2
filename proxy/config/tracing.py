"""Whether traces are made, by the variables that every program with OpenTelemetry knows.

OpenTelemetry itself reads them, and many more; what is looked at here says whether it is wanted.
"""

from collections.abc import Mapping
from importlib.util import find_spec

from proxy.config.file import ConfigError
from proxy.config.values import check_base_url

PROTOCOL = "http/protobuf"


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether a place is named to which traces are sent, and they are not switched off.

    Raises:
        ConfigError: traces are wanted in a way in which they cannot be sent.
    """
    said = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_")}
    exporter = said.get("OTEL_TRACES_EXPORTER", "").lower()
    is_disabled = said.get("OTEL_SDK_DISABLED", "").lower() == "true"
    endpoint = _first(said, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if is_disabled or exporter == "none" or not (exporter or endpoint):
        return False
    if exporter not in ("", "otlp"):
        raise ConfigError("OTEL_TRACES_EXPORTER: traces are sent by otlp alone; none sends nothing")
    if (name := endpoint) is not None:
        try:
            check_base_url(said[name])
        except ValueError as exc:
            raise ConfigError(f"{name}: {exc}") from None
    name = _first(said, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if name is not None and said[name] != PROTOCOL:
        raise ConfigError(
            f"{name}: traces are sent by {PROTOCOL} alone, to which collectors listen at port 4318"
        )
    if not _is_installed():
        raise ConfigError(
            f"{endpoint or 'OTEL_TRACES_EXPORTER'}: needs a package: "
            "pip install 'runpod-openai-proxy[otel]'; or set OTEL_SDK_DISABLED=true"
        )
    return True


def _first(said: Mapping[str, str], *names: str) -> str | None:
    """The first of these variables that says something."""
    return next((name for name in names if said.get(name)), None)


def _is_installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # a part of its path is missing
        return False
