"""A worker whose handler does what its input says, step by step; the real SDK runs it.

Each step is a list of a verb and its argument:

    ["yield", x]      hand out x
    ["wait", path]    wait until the file exists, so a test decides when to go on
    ["touch", path]   create the file, so a test knows how far we are
    ["raise", text]   fail
    ["exit", code]    end the process on the spot
    ["mark_cancel", path]  run on until cancelled, then create the file
    ["swallow", path] the same, but go on afterwards, as a careless handler would
"""

# ruff: noqa: ASYNC110, ASYNC240  # files are how a test talks to a handler in another process

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import runpod


async def handler(job: dict[str, Any]) -> AsyncIterator[Any]:
    """Play the steps of the job's input."""
    for verb, argument in job["input"]["steps"]:
        if verb == "yield":
            yield argument
        else:
            await act(verb, argument)


async def act(verb: str, argument: Any) -> None:
    """Do one step that hands nothing out."""
    if verb == "wait":
        await file_exists(Path(argument))
    elif verb == "touch":
        Path(argument).touch()
    elif verb == "raise":
        raise RuntimeError(argument)
    elif verb == "exit":
        os._exit(argument)
    elif verb in ("mark_cancel", "swallow"):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            Path(argument).touch()
            if verb == "mark_cancel":
                raise


async def file_exists(path: Path) -> None:
    """Wait until the test creates the file."""
    while not path.exists():
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    runpod.serverless.start(
        {
            "handler": handler,
            "return_aggregate_stream": True,
            "concurrency_modifier": lambda _: int(os.environ.get("CONCURRENCY", "8")),
        }
    )
