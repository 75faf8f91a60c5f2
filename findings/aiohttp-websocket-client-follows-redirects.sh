#!/usr/bin/env bash
# aiohttp 3.14.5, its client's WebSockets.
#
# `ClientSession.ws_connect` follows redirects, ten of them, to other hosts too, and takes no
# `allow_redirects`: RFC 6455, section 4.1, leaves it to the client. Who lets a program dial named
# hosts only has to forbid it by a TraceConfig whose `on_request_redirect` raises.
#
# Seen on 2026-11-29:
#   parameter allow_redirects: False
#   ws_connect to one server: 302, connected to the other
#   with a TraceConfig that raises: refused
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check aiohttp==3.14.5
cat > try.py <<'PY'
import asyncio
import inspect

import aiohttp
from aiohttp import web


class Forbidden(Exception):
    pass


async def serve(handler) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, runner.addresses[0][1]


async def greet(request: web.Request) -> web.WebSocketResponse:
    channel = web.WebSocketResponse()
    await channel.prepare(request)
    await channel.send_str("the other")
    await channel.close()
    return channel


async def main() -> None:
    parameters = inspect.signature(aiohttp.ClientSession.ws_connect).parameters
    parameters = parameters | inspect.signature(aiohttp.ClientSession._ws_connect).parameters
    print("parameter allow_redirects:", "allow_redirects" in parameters)
    other, other_port = await serve(greet)

    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://127.0.0.1:{other_port}/")

    first, first_port = await serve(away)
    url = f"ws://127.0.0.1:{first_port}/"
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url) as channel:
            said = (await channel.receive()).data
    print("ws_connect to one server: 302, connected to", said)

    async def forbid(*_: object) -> None:
        raise Forbidden

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(forbid)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        try:
            async with session.ws_connect(url):
                print("with a TraceConfig that raises: connected")
        except Forbidden:
            print("with a TraceConfig that raises: refused")
    for runner in (first, other):
        await runner.cleanup()


asyncio.run(main())
PY
venv/bin/python try.py | tee seen
diff seen - <<'SEEN'
parameter allow_redirects: False
ws_connect to one server: 302, connected to the other
with a TraceConfig that raises: refused
SEEN
