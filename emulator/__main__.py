"""python -m emulator: reads the settings, serves until SIGTERM or Ctrl-C."""

import argparse
import contextlib
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from emulator.app import create_app
from emulator.mistakes import explained
from emulator.server import Server
from emulator.settings import EmulatorSettings, Scenario, read_toml

DEFAULT_ENDPOINT = "local"

_EMULATOR_FLAGS = ("host", "port", "public_url", "api_key", "log_dir")
_ENDPOINT_FLAGS = (
    "kind",
    "worker",
    "min_workers",
    "max_workers",
    "scaler",
    "scaler_value",
    "idle_timeout_seconds",
    "cold_start_delay_seconds",
)


def parser() -> argparse.ArgumentParser:
    """The command line. A flag that is not given leaves the file's value or the default."""
    flags = argparse.ArgumentParser(prog="python -m emulator", description=__doc__)
    flags.add_argument("--config", type=Path, help="a TOML file; flags win over it")
    flags.add_argument("--scenario", type=Path, help="a TOML file with [[faults]] to inject")
    flags.add_argument("--host", help="where to listen (127.0.0.1)")
    flags.add_argument("--port", type=int, help="(8400)")
    flags.add_argument("--public-url", help="the base URL workers are told (from host and port)")
    flags.add_argument("--api-key", help="of clients and workers (rpa_local)")
    flags.add_argument("--log-dir", help="keep the workers' output here")
    flags.add_argument("--endpoint", help="the endpoint that the flags below are about (local)")
    flags.add_argument("--kind", choices=["queue", "load-balancing"], help="(queue)")
    flags.add_argument("--worker", help="the command of one worker, as in a shell")
    flags.add_argument("--min-workers", type=int, help="(0)")
    flags.add_argument("--max-workers", type=int, help="(1)")
    flags.add_argument("--scaler", choices=["request_count", "queue_delay"])
    flags.add_argument("--scaler-value", type=float, help="jobs per worker, or seconds (4)")
    flags.add_argument("--idle-timeout", dest="idle_timeout_seconds", type=float, metavar="SECONDS")
    flags.add_argument(
        "--cold-start-delay", dest="cold_start_delay_seconds", type=float, metavar="SECONDS"
    )
    flags.add_argument("--access-log", action="store_true", help="log every request")
    return flags


def merged(flags: argparse.Namespace) -> dict[str, Any]:
    """The file's contents with the flags on top, unchecked."""
    given = {name: value for name, value in vars(flags).items() if value is not None}
    contents = _read(flags.config) if flags.config else {}
    contents |= {name: given[name] for name in _EMULATOR_FLAGS if name in given}
    endpoints = contents.setdefault("endpoints", [])
    changes = {name: given[name] for name in _ENDPOINT_FLAGS if name in given}
    are_tables = isinstance(endpoints, list) and all(isinstance(one, dict) for one in endpoints)
    if are_tables and (flags.endpoint or changes or not endpoints):
        _endpoint(endpoints, flags.endpoint).update(changes)
    if flags.scenario:
        scenario = Scenario.model_validate(_read(flags.scenario))
        contents["faults"] = [*contents.get("faults", []), *scenario.faults]
    return contents


def _read(file: Path) -> dict[str, Any]:
    """The file's contents; exits with 2 when they cannot be had."""
    try:
        return read_toml(file)
    except (OSError, ValueError) as error:  # the latter for what is not TOML, or not UTF-8
        parser().error(f"{file}: {error}")
    except RecursionError:
        parser().error(f"{file}: lists or tables are nested too deep")


def _endpoint(endpoints: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The endpoint the flags are about: the one named, or the only one, or a new one."""
    if name is None and len(endpoints) == 1:
        return endpoints[0]
    for endpoint in endpoints:
        if endpoint.get("id") == (name or DEFAULT_ENDPOINT):
            return endpoint
    endpoints.append({"id": name or DEFAULT_ENDPOINT})
    return endpoints[-1]


def main() -> None:
    """Serve, and exit with 2 when the settings are wrong."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s emulator: %(message)s", datefmt="%H:%M:%S"
    )
    flags = parser().parse_args()
    try:
        settings = EmulatorSettings.model_validate(merged(flags))
    except ValidationError as error:
        parser().error("; ".join(explained(error)))
    with contextlib.suppress(KeyboardInterrupt):
        Server(create_app(settings), access_log=flags.access_log).run()


if __name__ == "__main__":
    main()
