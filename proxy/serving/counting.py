"""Tokens counted beside the proxy, so that counting wakes no GPU.

Chat UIs and coding agents count texts all the time: SillyTavern asks /tokenize for each, Claude
Code /v1/messages/count_tokens. A model whose configuration names its `tokenizer.json` has them
counted here while no worker is up, by Hugging Face's `tokenizers`.

/tokenize and /detokenize are exact for texts. A whole chat is written by the model's own template,
which only vLLM has: of one, /tokenize cannot tell the tokens, and count_tokens is what Anthropic
promises, an estimate (https://docs.anthropic.com/en/docs/build-with-claude/token-counting).
"""

import asyncio
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from proxy.api.answer import JSON, Head, LocalAnswer
from proxy.api.call import Call, JSONContent
from proxy.errors import ModelAsleep

log = logging.getLogger(__name__)

TOKENS_PER_MESSAGE: Final = 4
"""What a chat template writes around a message: two or three marks, and its role."""


class LocalCount(LocalAnswer):
    """A count, or tokens, made here."""

    def __init__(self, call: Call, tokenizer: Path | None, max_model_len: int | None) -> None:
        self._call = call
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len

    async def open(self) -> bytes:
        """Count.

        Raises:
            ModelAsleep: this cannot be counted here.
        """
        content = self._call.content
        result = None
        if self._tokenizer is not None and isinstance(content, JSONContent):
            result = await asyncio.to_thread(self._result, self._tokenizer, content)
        if result is None:
            raise ModelAsleep(
                "No worker is up, and counting tokens wakes none. It can be counted while one is; "
                "plain texts also without one, if the configuration names the model's tokenizer."
            )
        self.head = Head(200, JSON)
        return msgspec.json.encode(result)

    def _result(self, path: Path, content: JSONContent) -> dict[str, Any] | None:
        body = {name: msgspec.json.decode(value) for name, value in content.readable.items()}
        if (tokenizer := _load(path)) is None:
            return None
        match self._call.route.path, body:
            case "/tokenize", {"prompt": str(text)}:
                special = body.get("add_special_tokens", True) is not False
                encoded = tokenizer.encode(text, add_special_tokens=special)
                return {
                    "count": len(encoded.ids),
                    "max_model_len": self._max_model_len,
                    "tokens": encoded.ids,
                    "token_strs": encoded.tokens if body.get("return_token_strs") else None,
                }
            case "/detokenize", {"tokens": [*tokens]} if all(map(_is_token, tokens)):
                return {"prompt": tokenizer.decode(tokens, skip_special_tokens=False)}
            case "/v1/messages/count_tokens", {"messages": [*messages]}:
                # Templates write tools as JSON.
                tools = [msgspec.json.encode(tool).decode() for tool in _list(body.get("tools"))]
                texts = [*_texts(body.get("system")), *_texts(messages), *tools]
                made = sum(map(len, tokenizer.encode_batch(texts, add_special_tokens=False)))
                return {"input_tokens": made + TOKENS_PER_MESSAGE * len(messages)}
        return None


@lru_cache(maxsize=8)
def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # noqa: BLE001 - the package raises no other
        log.error("the tokenizer %s cannot be loaded: %s", path, exc)
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _texts(value: Any) -> Iterator[str]:
    """All texts in it; a picture is none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict) and value.get("type") != "base64":
        for name, one in value.items():
            if name not in ("role", "type", "cache_control"):
                yield from _texts(one)
