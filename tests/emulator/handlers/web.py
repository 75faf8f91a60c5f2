"""A worker of a load-balancing endpoint: an HTTP server that does what it is asked.

`application()` is the ASGI application, for tests that serve it themselves; as a script it listens
on PORT and PORT_HEALTH. Its environment may name files that decide about its health: READY (204
until it exists) and SICK (500 while it exists). NOWHERE=1 listens on PORT_HEALTH alone.

    /ping           health
    /echo...        the request and our environment, as JSON
    /bytes?n=       an answer of so many bytes; with &chunked=1 without saying so first
    /first-piece?seen=  the file is created when the first piece of the body has come
    /drip?gate=     "first", then "last" once the file exists; &left= is created when we are left
    /hang?left=     never answers; the file is created when the client has left, and that of
                    &seen= when the first piece of the body has come
    /die            ends the process; with ?late=1 in the middle of the answer
"""

import asyncio
import json
import os
from pathlib import Path
from urllib.parse import parse_qs

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

WORKER_ID = os.environ.get("RUNPOD_POD_ID", "")


def application() -> ASGIApp:
    """The worker's routes."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            query = parse_qs(scope["query_string"].decode())
            asked = {name: values[0] for name, values in query.items()}
            await Answer(scope, receive, send, asked).give()

    return app


class Answer:
    """One request and what is made of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, asked: dict[str, str]) -> None:
        self._scope, self._receive, self._send, self._asked = scope, receive, send, asked

    async def give(self) -> None:
        """Answer by the first word of the path; /echo for an unknown one."""
        word = self._scope["path"].strip("/").partition("/")[0].replace("-", "_")
        await getattr(self, f"_{word}", self._echo)()

    def _health(self) -> int:
        ready, sick = os.environ.get("READY"), os.environ.get("SICK")
        if sick is not None and Path(sick).exists():
            return 500
        return 200 if ready is None or Path(ready).exists() else 204

    async def _ping(self) -> None:
        await self._whole(b"", self._health())

    async def _echo(self) -> None:
        body = b""
        while (message := await self._receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        facts = {
            "worker": WORKER_ID,
            "environment": dict(os.environ),
            "method": self._scope["method"],
            "path": self._scope["raw_path"].decode(),
            "query": self._scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode()] for name, value in self._scope["headers"]],
            "body": body.decode("latin-1"),
        }
        await self._whole(json.dumps(facts).encode(), status=int(self._asked.get("status", 200)))

    async def _bytes(self) -> None:
        await self._whole(b"x" * int(self._asked["n"]), chunked="chunked" in self._asked)

    async def _first_piece(self) -> None:
        await self._receive()
        Path(self._asked["seen"]).touch()  # noqa: ASYNC240
        await self._echo()

    async def _drip(self) -> None:
        await self._begin([(b"content-type", b"text/event-stream")])
        await self._piece(b"first")
        await self._receive()
        watch = asyncio.create_task(self._note_leaving())
        while not Path(self._asked["gate"]).exists():  # noqa: ASYNC240
            if watch.done():
                break
            await asyncio.sleep(0.01)
        watch.cancel()
        await self._piece(b"last", is_last=True)

    async def _hang(self) -> None:
        await self._receive()
        if "seen" in self._asked:
            Path(self._asked["seen"]).touch()  # noqa: ASYNC240
        await self._note_leaving()

    async def _die(self) -> None:
        if "late" in self._asked:
            await self._begin([])
            await self._piece(b"first")
            await asyncio.sleep(0.05)
        os._exit(3)

    async def _note_leaving(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if "left" in self._asked:
            Path(self._asked["left"]).touch()  # noqa: ASYNC240

    async def _whole(self, body: bytes, status: int = 200, *, chunked: bool = False) -> None:
        size = [] if chunked or status == 204 else [(b"content-length", b"%d" % len(body))]
        await self._begin([*size, (b"x-of-worker", b"yes")], status)
        await self._piece(body, is_last=True)

    async def _begin(self, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _piece(self, body: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})


async def main() -> None:
    """Serve until a signal comes."""
    ports = {os.environ["PORT_HEALTH"]}
    if "NOWHERE" not in os.environ:
        ports.add(os.environ["PORT"])
    configs = [
        uvicorn.Config(application(), port=int(port), log_level="warning", lifespan="off")
        for port in ports
    ]
    await asyncio.gather(*(uvicorn.Server(config).serve() for config in configs))


if __name__ == "__main__":
    asyncio.run(main())
