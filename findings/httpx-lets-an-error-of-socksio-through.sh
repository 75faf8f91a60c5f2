#!/usr/bin/env bash
# httpx 0.28.1 with httpcore 1.0.9 and socksio 1.0.0 (`httpx[socks]`).
#
# What a SOCKS5 proxy says is taken from one read of the socket, and TCP may bring it in two. A reply
# that comes in two parts then ends the request in socksio's ProtocolError, and so does a proxy that
# hangs up during the handshake. It is no httpx.HTTPError, so that an `except httpx.HTTPError` around
# the call, or a retry for httpx.TransportError, does not see it.
#
# Seen on 2026-11-29:
#   in one part: 200
#   in two parts: socksio.exceptions.ProtocolError, an httpx.HTTPError: False
#   hangs up: socksio.exceptions.ProtocolError, an httpx.HTTPError: False
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  "httpx[socks]==0.28.1" httpcore==1.0.9 socksio==1.0.0
cat > try.py <<'PY'
import asyncio
import functools

import httpx

ACCEPTED = b"\x05\x00"
CONNECTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
REPLIES = {
    "in one part": [CONNECTED],
    "in two parts": [CONNECTED[:4], CONNECTED[4:]],
    "hangs up": [],
}


async def proxy(
    replies: list[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A SOCKS5 proxy that plays the server behind it as well."""
    try:
        await reader.readexactly(3)
        writer.write(ACCEPTED)
        await reader.readexactly(10)  # CONNECT, with an address of IPv4
        for reply in replies:
            writer.write(reply)
            await asyncio.sleep(0.2)  # so that each is read by itself
        if replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def outcome(port: int) -> str:
    url = f"socks5://127.0.0.1:{port}"
    async with httpx.AsyncClient(proxy=url, trust_env=False) as client:
        try:
            return str((await client.get("http://127.0.0.1/")).status_code)
        except Exception as error:
            name = f"{type(error).__module__}.{type(error).__qualname__}"
            return f"{name}, an httpx.HTTPError: {isinstance(error, httpx.HTTPError)}"


async def main() -> None:
    for name, replies in REPLIES.items():
        handler = functools.partial(proxy, replies)
        async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
            print(f"{name}: {await outcome(server.sockets[0].getsockname()[1])}")
            await asyncio.sleep(0.3)  # the proxy's last words


asyncio.run(main())
PY
venv/bin/python try.py | tee seen
diff seen - <<'SEEN'
in one part: 200
in two parts: socksio.exceptions.ProtocolError, an httpx.HTTPError: False
hangs up: socksio.exceptions.ProtocolError, an httpx.HTTPError: False
SEEN
