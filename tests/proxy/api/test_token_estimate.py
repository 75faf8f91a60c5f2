"""How many tokens a call may take, before any worker has counted them."""

import json
from typing import Any

import pytest

from proxy.api.call import Body, Call, parse_content
from proxy.api.route_table import find_route
from proxy.api.token_estimate import Tokens, estimated_tokens
from proxy.api.turns import Turns
from proxy.memory import Memory

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}


async def estimate(
    path: str, body: dict[str, Any], max_model_len: int | None = None, method: str = "POST"
) -> Tokens:
    route, raw = find_route(f"{method} {path}"), json.dumps(body).encode()
    parsed = Body(raw, Memory(10**9).reserve())
    content = await parse_content(parsed, "application/json", route, Turns())
    return estimated_tokens(Call("req", route, "", content), max_model_len)


@pytest.mark.parametrize(
    ("path", "limits", "output"),
    [
        ("/v1/chat/completions", {"max_tokens": 7}, 7),
        ("/v1/chat/completions", {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ("/v1/chat/completions", {"max_tokens": None}, 1_000),
        ("/v1/chat/completions", {"max_tokens": "seven"}, 1_000),
        ("/v1/chat/completions", {"max_tokens": -1}, 0),
        ("/v1/responses", {"max_output_tokens": 7}, 7),
        ("/v1/messages", {"max_tokens": 7}, 7),
        ("/v1/embeddings", {}, 0),
        ("/v1/score", {}, 0),
    ],
)
async def test_a_dialects_limit_says_how_many_may_come_out(
    path: str, limits: dict[str, Any], output: int
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    found = await estimate(path, {"model": "m", "messages": messages, "input": "hi"} | limits)
    assert found.output == output
    assert 10 < found.prompt < 40


async def test_no_more_may_come_out_than_the_models_context_has_room_for() -> None:
    body = {"model": "m", "prompt": "word " * 800, "max_tokens": 100_000}
    found = await estimate("/v1/completions", body, max_model_len=4096)
    assert 1_000 < found.prompt < 1_050
    assert found.prompt + found.output == 4096
    assert (await estimate("/v1/completions", body, max_model_len=100)).output == 0


async def test_a_picture_is_no_text_however_large_it_is() -> None:
    content = [{"type": "text", "text": "What is this?"}, PICTURE, PICTURE]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    found = await estimate("/v1/chat/completions", body)
    assert 2_000 < found.prompt < 2_150


async def test_what_generates_nothing_takes_nothing() -> None:
    assert await estimate("/tokenize", {"prompt": "hi " * 1000}) == Tokens()
