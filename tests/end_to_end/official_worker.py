"""A worker that behaves as RunPod's worker-vllm does, for the proxy to get along with.

Told from its source (runpod-workers/worker-vllm, src/handler.py, August 2026): a body with
`"stream": true` is answered with the pieces of the HTTP body as they were read; any other with one
parsed object; an HTTP error of vLLM with an object that has `error`, which RunPod's SDK turns into
the failure of the job. With STYLE=older the pieces are the parsed chunks, as its older generation
yields them without RAW_OPENAI_OUTPUT.

One thing is left out: that worker breaks a character which a read has cut in two, and nobody
behind it can tell what it was. It finds its engine at ENGINE_URL.
"""

import codecs
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import runpod

ENGINE_URL = os.environ["ENGINE_URL"]
IS_OLDER = os.environ.get("STYLE") == "older"
PIECE_BYTES = int(os.environ.get("PIECE_BYTES", "23"))
"""At most so much is read at once."""


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    route, body = job["input"]["openai_route"], job["input"]["openai_input"]
    async with (
        aiohttp.ClientSession() as session,
        session.post(ENGINE_URL + route, json=body) as response,
    ):
        if response.status >= 400:
            detail = await response.text()
            message = f"vLLM returned HTTP {response.status}: {detail}"
            yield {"error": {"message": message, "type": "worker_error", "code": None}}
        elif not body.get("stream"):
            yield await response.json(content_type=None)
        elif IS_OLDER:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))
        else:
            decoder = codecs.getincrementaldecoder("utf-8")()
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                yield decoder.decode(piece)


runpod.serverless.start(
    {
        "handler": handler,
        "concurrency_modifier": lambda _: 30,
        "return_aggregate_stream": True,
    }
)
