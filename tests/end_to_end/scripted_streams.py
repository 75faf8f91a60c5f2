"""Streams of the stand-in for vLLM, which says what the request scripts."""

from typing import Any

import openai


def begun(sdk: openai.OpenAI, **script: Any) -> openai.Stream[Any]:
    """A stream that the engine makes as the script says."""
    return sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"script": script},
    )


def said(sdk: openai.OpenAI, **script: Any) -> str:
    """The text of such a stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in begun(sdk, **script))


def leave(sdk: openai.OpenAI) -> None:
    """Begin a long stream, and close the connection after its first chunk."""
    stream = begun(sdk, tokens=100_000, delay_seconds=0.02)
    next(iter(stream))
    stream.close()
