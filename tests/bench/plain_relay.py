"""What most people write: FastAPI, httpx and sse-starlette, and nothing else.

`python -m tests.bench.plain_relay --port 8001 --to http://127.0.0.1:8000`
"""

import argparse
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from sse_starlette import EventSourceResponse


def create_relay(url: str) -> FastAPI:
    """A relay to the server at that URL."""
    app = FastAPI()
    client = httpx.AsyncClient(
        base_url=url,
        timeout=None,
        limits=httpx.Limits(max_connections=None),
    )

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Any:
        body = await request.json()
        if body.get("stream"):
            return EventSourceResponse(events(body))
        return (await client.post("/v1/chat/completions", json=body)).json()

    async def events(body: dict[str, Any]) -> AsyncIterator[dict[str, str]]:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield {"data": line.removeprefix("data: ")}

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", required=True)
    arguments = parser.parse_args()
    app = create_relay(arguments.to)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
