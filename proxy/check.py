"""`python -m proxy --check`: whether RunPod is there, with these keys and endpoints, without a job.

RunPod's /health costs nothing and wakes no worker, for load-balancing endpoints as well. Other
servers are asked for their list of models.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from proxy.backends.connections import Client
from proxy.config.settings import Settings
from proxy.config.tables import Config, FallbackURL, secret

MAX_AT_ONCE = 20
_OF_RUNPOD = re.compile(r"(https?://[^/]+/v2/[A-Za-z0-9_-]+)/openai(/v1)?")
_LOAD_BALANCING = re.compile(r"https://([A-Za-z0-9_-]+)\.api\.runpod\.ai(/.*)?")


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked, and which settings it comes from."""

    name: str
    kind: str
    url: str
    variable: str
    """The variable that holds the key; empty for none."""
    key: str
    url_from: str
    id_from: str
    is_runpod: bool
    channel_port: int | None = None
    """The workers' port for direct channels, where there are to be some."""


@dataclass(frozen=True, slots=True)
class Finding:
    """How it went."""

    target: Target
    is_good: bool
    text: str


def targets(config: Config, settings: Settings) -> list[Target]:
    """All endpoints and servers that the configuration names."""
    found = []
    for name, endpoint in config.endpoints.items():
        url = endpoint.runpod_url(name, settings.runpod_endpoint_base_url)
        key = _key(endpoint.api_key_env, settings)
        table = f"endpoints.{name}" if settings.config else ""
        has_url = bool(endpoint.url) and endpoint.kind == "queue"
        found.append(
            Target(
                name,
                endpoint.kind,
                url,
                endpoint.api_key_env,
                key,
                url_from=f"{table}.url" if has_url else "RUNPOD_ENDPOINT_BASE_URL",
                id_from=table or "RUNPOD_ENDPOINT_ID",
                is_runpod=True,
                channel_port=endpoint.port_for_channels(settings),
            )
        )
    for name, model in config.models.items():
        if isinstance(fallback := model.fallback, FallbackURL):
            key = _key(fallback.api_key_env, settings)
            url, is_runpod = _health_of_fallback(fallback.url, settings)
            title, variable = f"fallback of {name}", fallback.api_key_env
            place = f"models.{name}.fallback.url"
            found.append(Target(title, "server", url, variable, key, place, place, is_runpod))
    return found


async def check(config: Config, settings: Settings) -> list[Finding]:
    """Ask each of them once."""
    turns = asyncio.Semaphore(MAX_AT_ONCE)
    timeout = httpx.Timeout(15, connect=settings.connect_timeout_seconds)
    async with Client(timeout) as client:

        async def ask(target: Target) -> Finding:
            async with turns:
                return await _ask(client, target)

        return await asyncio.gather(*map(ask, targets(config, settings)))


def table(findings: list[Finding]) -> str:
    """The findings in columns."""
    rows = [("name", "kind", "key", "result")]
    rows += [(f.target.name, f.target.kind, f.target.variable or "-", f.text) for f in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


async def _ask(client: httpx.AsyncClient, target: Target) -> Finding:
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    path = "/health" if target.is_runpod else "/models"
    try:
        response = await client.get(target.url + path, headers=headers)
    except httpx.HTTPError as exc:
        return Finding(
            target, False, f"fault: {target.url_from}: {_why(exc)} ({_host(target.url)})"
        )
    is_good, text = _judged(target, response)
    return Finding(target, is_good, ("ok: " if is_good else "fault: ") + text)


def _judged(target: Target, response: httpx.Response) -> tuple[bool, str]:
    status = response.status_code
    where = "RunPod" if target.is_runpod else "the server"
    if status in (401, 403):
        if not target.variable:
            return False, f"{target.url_from}: {where} wants a key (HTTP {status}): set api_key_env"
        return False, f"{target.variable}: {where} refuses this key (HTTP {status})"
    if status == 404:
        if not target.is_runpod:
            return True, "the server answers, and has no list of models"
        return False, f"{target.id_from}: RunPod knows no endpoint of this id (HTTP 404)"
    if status == 407:
        return False, "the proxy that the environment names wants a password (HTTP 407)"
    if not response.is_success:
        return False, f"{target.url_from}: {where} answers HTTP {status}"
    if not target.is_runpod:
        return True, "the server takes the key" if target.key else "the server answers"
    try:
        return True, _counted(response.json()) + _planned(target)
    except (ValueError, RecursionError):
        return False, f"{target.url_from}: this is no answer of RunPod's ({_host(target.url)})"


def _counted(answer: object) -> str:
    match answer:
        case {"workers": Mapping() as workers, "jobs": Mapping() as jobs}:
            numbers = [workers.get("ready", 0), jobs.get("inQueue", 0)]
            if all(isinstance(number, int) for number in numbers):
                return f"{numbers[0]} workers ready, {numbers[1]} jobs in the queue"
    raise ValueError("not RunPod's counters")


def _planned(target: Target) -> str:
    """What else the proxy will do with the endpoint, which cannot be tried without a job."""
    if target.channel_port is None:
        return ""
    return f"; workers with port {target.channel_port}/tcp open will be dialled for their tokens"


def _why(exc: httpx.HTTPError) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return "the host's name is not known"
        if isinstance(cause, ssl.SSLError):
            return "the host's certificate is not trusted"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        cause = cause.__cause__ or cause.__context__
    if isinstance(exc, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(exc, httpx.ProxyError):
        return "the proxy that the environment names refuses the connection"
    return "the connection cannot be made"


def _health_of_fallback(url: str, settings: Settings) -> tuple[str, bool]:
    """Where to ask; a list of models at RunPod would be a job, and start a worker."""
    if match := _OF_RUNPOD.fullmatch(url):
        return match[1], True
    if match := _LOAD_BALANCING.fullmatch(url):
        return f"{settings.runpod_endpoint_base_url}/{match[1]}", True
    return url, False


def _key(variable: str, settings: Settings) -> str:
    if variable == "RUNPOD_API_KEY" and settings.runpod_api_key is not None:
        return settings.runpod_api_key.get_secret_value()
    return secret(variable).get_secret_value() if variable else ""


def _host(url: str) -> str:
    return httpx.URL(url).netloc.decode()
