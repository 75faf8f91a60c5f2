#!/usr/bin/env bash
# httpx-aiohttp 0.2.0 with httpx 0.28.1 and aiohttp 3.14.5.
#
# A server reads a whole request and closes the connection without an answer. httpx's own transport
# raises RemoteProtocolError; over httpx-aiohttp it is ConnectTimeout, by which a caller knows that
# nothing was sent and that the call may be made again: a POST that starts a job is then sent twice.
# A GET over a connection that was used before is sent twice without the caller's knowing, so that a
# server which hands out each result once has lost one.
#
# Seen on 2026-11-29:
#   httpx: POST RemoteProtocolError, seen 1 times; second GET RemoteProtocolError, seen 1 times
#   httpx-aiohttp: POST ConnectTimeout, seen 1 times; second GET 200, seen 2 times
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  httpx==0.28.1 httpx-aiohttp==0.2.0 aiohttp==3.14.5
cat > try.py <<'PY'
import asyncio

import httpx
from httpx_aiohttp import AiohttpTransport

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers /first; closes at the first request for another path, and answers the next ones."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode().lower().split("\r\n")
                length = [int(f.split(":")[1]) for f in fields if f.startswith("content-length")]
                await reader.readexactly(length[0] if length else 0)
                path = line.split()[1]
                self.seen.append(path)
                if path != "/first" and self.seen.count(path) == 1:
                    break
                writer.write(ANSWER)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def outcome(call) -> str:
    try:
        return str((await call).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


async def main() -> None:
    for name, transport in (("httpx", None), ("httpx-aiohttp", AiohttpTransport())):
        state = Server()
        server = await asyncio.start_server(state.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, transport=transport, trust_env=False) as client:
            post = await outcome(client.post("/run", content=b"{}"))
            await client.get("/first")
            get = await outcome(client.get("/result"))
        runs, results = state.seen.count("/run"), state.seen.count("/result")
        print(f"{name}: POST {post}, seen {runs} times; second GET {get}, seen {results} times")
        server.close()


asyncio.run(main())
PY
venv/bin/python try.py | tee seen
diff seen - <<'SEEN'
httpx: POST RemoteProtocolError, seen 1 times; second GET RemoteProtocolError, seen 1 times
httpx-aiohttp: POST ConnectTimeout, seen 1 times; second GET 200, seen 2 times
SEEN
