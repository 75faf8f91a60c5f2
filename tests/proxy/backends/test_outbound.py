"""The proxies that the environment names: which call takes which, and what is refused."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest

from proxy.backends.connections import Client
from proxy.backends.outbound import OutboundProxies, OutboundProxyError

RUNPOD = "https://api.runpod.ai/v2/ep"
PLAIN = "http://10.1.2.3:8400/v2/ep"
PROXY = "http://127.0.0.1:3128"


def way(environment: Mapping[str, str], url: str) -> str | None:
    """The variable whose proxy a URL is called through; None if it is called directly."""
    found = OutboundProxies(environment).find(httpx.URL(url))
    return found and found[0]


@pytest.mark.parametrize(
    ("environment", "runpod", "plain"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": PROXY}, "HTTPS_PROXY", None),
        ({"HTTP_PROXY": PROXY}, None, "HTTP_PROXY"),
        ({"ALL_PROXY": PROXY}, "ALL_PROXY", "ALL_PROXY"),
        ({"all_proxy": PROXY}, "all_proxy", "all_proxy"),
        ({"ALL_PROXY": PROXY, "https_proxy": PROXY}, "https_proxy", "ALL_PROXY"),
        ({"HTTPS_PROXY": PROXY, "https_proxy": ""}, None, None),
        ({"HTTPS_PROXY": "127.0.0.1:3128"}, "HTTPS_PROXY", None),
        ({"ALL_PROXY": "socks5h://127.0.0.1"}, "ALL_PROXY", "ALL_PROXY"),
    ],
    ids=str,
)
def test_a_call_goes_through_the_proxy_of_its_scheme_or_that_of_all(
    environment: dict[str, str], runpod: str | None, plain: str | None
) -> None:
    assert (way(environment, RUNPOD), way(environment, PLAIN)) == (runpod, plain)


@pytest.mark.parametrize(
    ("entries", "url", "is_direct"),
    [
        ("*", RUNPOD, True),
        ("runpod.ai", RUNPOD, True),
        (".runpod.ai", RUNPOD, True),
        ("*.runpod.ai", RUNPOD, True),
        ("API.RunPod.AI", RUNPOD, True),
        ("pod.ai", RUNPOD, False),
        ("api.runpod.ai:443", RUNPOD, True),
        ("api.runpod.ai:8443", RUNPOD, False),
        ("https://api.runpod.ai/", RUNPOD, True),
        ("other.example, api.runpod.ai", RUNPOD, True),
        ("10.1.2.3", PLAIN, True),
        ("10.0.0.0/8", PLAIN, True),
        ("11.0.0.0/8", PLAIN, False),
        ("10.1.2.3:8400", PLAIN, True),
        ("[::1]", "http://[::1]:8400/v2", True),
        ("::1", "http://[::1]:8400/v2", True),
        ("[::1]:8400", "http://[::1]:8400/v2", True),
        ("localhost,[::1]", "http://localhost:8400/v2", True),
        ("http://[,@#!,[::1,localhost", "http://localhost:8400/v2", True),
        ("http://[,@#!,[::1", RUNPOD, False),
        ("", RUNPOD, False),
    ],
)
def test_what_no_proxy_names_is_called_directly(entries: str, url: str, is_direct: bool) -> None:
    environment = {"ALL_PROXY": PROXY, "NO_PROXY": entries}
    assert (way(environment, url) is None) is is_direct


def test_entries_that_cannot_be_read_are_left_out_and_counted() -> None:
    proxies = OutboundProxies({"NO_PROXY": "localhost,@#!,[::1],http://["})
    assert proxies.unreadable == [2, 4]


@pytest.mark.parametrize(
    "value",
    [
        "socks4://127.0.0.1:1080",
        "ftp://user:SECRET@proxy.example",
        "http://user:SECRET@",
        "http://user:SECRET@proxy.example:99999",
        "http://user:SECRET@proxy.example:0",
        "http://user:SEC RET@proxy.example",
        "http://user:SECRET@proxy\u200b.example",
        "http://[::1",
        "://",
        f"http://user:SECRET@{'a' * 64}.example:3128",
        "http://user:SECRET@proxy..example:3128",
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_by_its_variable_and_not_shown(value: str) -> None:
    with pytest.raises(OutboundProxyError) as caught:
        way({"ALL_PROXY": value}, RUNPOD)
    assert str(caught.value).startswith("ALL_PROXY: ")
    assert "SEC" not in str(caught.value)


def test_a_proxy_that_cannot_be_used_does_not_matter_to_what_is_called_directly() -> None:
    environment = {"ALL_PROXY": "socks4://127.0.0.1:1080", "NO_PROXY": "127.0.0.1"}
    assert way(environment, "http://127.0.0.1:8400/v2") is None


@asynccontextmanager
async def http_proxy(heads: list[bytes]) -> AsyncIterator[int]:
    """The port of an HTTP proxy that answers every call itself, and keeps what it was asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"])
async def test_a_call_takes_the_way_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    heads: list[bytes] = []
    async with http_proxy(heads) as port:
        monkeypatch.setenv(variable, f"http://user:password@127.0.0.1:{port}")
        async with Client(httpx.Timeout(30)) as client:
            answer = await client.get("http://runpod.invalid/v2/ep/health")
    assert answer.text == "ok"
    assert heads[0].startswith(b"GET http://runpod.invalid/v2/ep/health HTTP/1.1\r\n")
    assert b"proxy-authorization: basic " in heads[0].lower()
