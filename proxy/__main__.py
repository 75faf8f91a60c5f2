"""`python -m proxy`: serve until told to stop. Installed, the command is `runpod-openai-proxy`.

Exit codes: 0 after SIGTERM or Ctrl-C, and when --check finds no fault; 1 when the proxy cannot
start or --check finds one; 2 for a wrong command line.
"""

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import httpx
from dotenv import dotenv_values
from pydantic import ValidationError

from proxy import __version__, check, check_storage, key_commands, usage_commands
from proxy.app import create_app
from proxy.backends.connections import trusted_certificates
from proxy.backends.outbound import OutboundProxies, OutboundProxyError
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.config.settings import DatabaseSettings, Settings, doubts, explained, misspelt
from proxy.config.tables import Config
from proxy.config.tracing import wants_traces
from proxy.http.listening import ListenError, listen
from proxy.http.server import Server, allow_descriptors
from proxy.summary import summary
from proxy.telemetry.logs import log_to_stderr

if TYPE_CHECKING:
    from proxy.telemetry.traces import Traces

ABOUT = """\
An OpenAI-compatible proxy for RunPod Serverless vLLM endpoints.

The settings come from the environment, and from the file .env in the working folder for what the
environment does not say:

  RUNPOD_API_KEY       the key of the RunPod account that owns the endpoint
  RUNPOD_ENDPOINT_ID   the endpoint that jobs are sent to
  PROXY_API_KEYS       the keys that clients may use, separated by commas
  PROXY_MODELS         the models the endpoint serves, separated by commas
  PROXY_CONFIG         a TOML file, for more than one endpoint

docs/settings.md lists all of them."""
EXIT_CODES = """\
exit codes: 0 when told to stop, or when --check finds no fault; 1 when the proxy cannot start, or
--check finds a fault; 2 for a wrong command line"""

COLLECT_AFTER = 10_000
"""How many objects have to be made, and not freed, before Python looks for cycles among them."""

log = logging.getLogger("proxy")

S = TypeVar("S", bound=DatabaseSettings)


def main() -> None:
    """Read the settings, then serve or check."""
    options = parser().parse_args()
    read = _read_env_file(options.env_file)
    if options.command is not None:
        sys.exit(_commanded(options))
    settings = _settings(Settings)
    log_to_stderr(settings.log_level, settings.log_format)
    for sentence in [*read, *misspelt(os.environ), *doubts(settings), *_unreadable_exceptions()]:
        log.warning("%s", sentence)
    first = _loaded(settings)
    try:
        makes_traces = wants_traces(os.environ)
    except ConfigError as exc:
        _refuse(exc.reasons)
    _check_the_way_out(first, settings)
    if options.check:
        findings = asyncio.run(_findings(first, settings))
        print(check.table(findings))  # noqa: T201 - what the command is for
        sys.exit(0 if all(finding.is_good for finding in findings) else 1)
    _serve(settings, first, _traces() if makes_traces else None)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    is_module = Path(sys.argv[0]).name == "__main__.py"
    flags = argparse.ArgumentParser(
        prog="python -m proxy" if is_module else None,
        description=ABOUT,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--version", action="version", version=f"runpod-openai-proxy {__version__}")
    flags.add_argument(
        "--check",
        action="store_true",
        help="read the configuration; ask RunPod, database and Redis; start no job",
    )
    flags.add_argument(
        "--env-file", type=Path, metavar="FILE", help="read this file in place of .env"
    )
    commands = flags.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    key_commands.add_parser(commands)
    usage_commands.add_parser(commands)
    return flags


async def _findings(first: Config, settings: Settings) -> list[check.Finding]:
    return await check.check(first, settings) + await check_storage.check(settings, first)


def _traces() -> "Traces":
    """OpenTelemetry takes its time and memory: it is imported where traces are made."""
    from proxy.telemetry.traces import Traces

    try:
        return Traces()
    except ValueError as exc:
        _refuse([f"OTEL_*: {exc}"])


def _commanded(options: argparse.Namespace) -> int:
    """Do what a command says; returns the exit code."""
    if options.command == "keys":
        return key_commands.run(options, _settings(DatabaseSettings))
    if not options.reconcile:
        return usage_commands.run(options, _settings(DatabaseSettings))
    settings = _settings(Settings)
    return usage_commands.reconcile(options, settings, _loaded(settings))


def _loaded(settings: Settings) -> Config:
    try:
        return load(settings)
    except ConfigError as exc:
        _refuse(exc.reasons)


def _serve(settings: Settings, first: Config, traces: "Traces | None") -> None:
    try:
        sockets = listen(settings.host, settings.port)
    except ListenError as exc:
        _refuse([str(exc)])
    app = create_app(settings, first, traces)
    allow_descriptors(settings)
    for line in summary(first, settings):
        log.info("%s", line)
    log.info("listening at %s", ", ".join(map(_base_url, sockets)))
    _collect_rarely()
    Server(app, settings).run(sockets)


def _collect_rarely() -> None:
    """Look for cycles rarely, and never among what was made by now and stays.

    No stream goes on meanwhile: a look at everything took 100 ms with 400 streams open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _read_env_file(path: Path | None) -> list[str]:
    """Add to the environment what a file says and it does not; what to say of that in the log."""
    if path is None and not Path(".env").is_file():
        return []
    path = path or Path(".env")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with path.open(encoding="utf-8-sig") as file:
            values = {name: value for name, value in dotenv_values(stream=file).items() if value}
        ours = {name for name in values if name not in os.environ}
        os.environ.update({name: values[name] for name in ours})
    except (OSError, ValueError) as exc:  # the latter for what is not UTF-8, or holds a NUL
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text in UTF-8"
        _refuse([f"{path} cannot be read: {reason}"])
    sentence = f"{path} has been read"
    if overridden := sorted(
        name for name in values.keys() - ours if values[name] != os.environ[name]
    ):
        sentence += f"; the environment's own values stay for {', '.join(overridden)}"
    return [sentence] if values else []


def _settings(kind: type[S]) -> S:
    try:
        return kind()
    except ValidationError as exc:
        _refuse([*explained(exc), *misspelt(os.environ)])


def _check_the_way_out(first: Config, settings: Settings) -> None:
    """Check that the certificates and HTTP proxies that the environment names are usable."""
    try:
        trusted_certificates()
    except OSError as exc:
        name = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
        _refuse([f"{name}: no certificates can be read there: {exc.strerror or exc}"])
    proxies = OutboundProxies.of_environment()
    try:
        for url in first.urls(settings):
            if (found := proxies.find(httpx.URL(url))) is not None:
                log.info("%s is called through %s", httpx.URL(url).host, found[0])
    except OutboundProxyError as exc:
        _refuse([str(exc)])


def _unreadable_exceptions() -> list[str]:
    numbers = OutboundProxies.of_environment().unreadable
    return [f"NO_PROXY: entry number {n} cannot be read and is left out" for n in numbers]


def _refuse(reasons: Iterable[str]) -> NoReturn:
    sys.exit("\n  ".join(["The proxy cannot start:", *reasons]))


def _base_url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


if __name__ == "__main__":
    main()
