"""The built-in model: the same each time, and awkward in the ways that real models are."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.set_up import TINY_MODEL, tiny_model, vllm_python

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TOKENIZER = """\
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
call = {"function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
chat = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "content": "21"},
]
parameters = {"properties": {"city": {}, "day": {}}}
tools = [{"function": {"name": "get_weather", "parameters": parameters}}]
tools += [{"function": {"name": "stop"}}]
chat = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=True)
texts = "🐉 漢 ж ع ع ő".split()
split = {text: len(tokenizer.encode(text)) for text in texts}
told = "🐉 漢字 è ع\\u2028é"
same = tokenizer.decode(tokenizer.encode(told))
print(json.dumps({"size": len(tokenizer), "chat": chat, "split": split, "same": same == told}))
"""


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    """What transformers says of the built model's tokenizer."""
    command = [str(vllm_python()), "-c", TOKENIZER, str(tiny_model())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_characters_are_split_across_tokens_and_come_back_whole(tokenizer: dict[str, Any]) -> None:
    assert tokenizer["size"] == 2048
    assert tokenizer["split"]["🐉"] > 1
    assert tokenizer["split"]["漢"] > 1
    assert tokenizer["same"]


def test_the_chat_template_knows_tools_and_every_role(tokenizer: dict[str, Any]) -> None:
    call = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
    assert tokenizer["chat"] == (
        "<|system|>You may call get_weather(city, day) stop()<|end|>"
        "<|system|>Be brief.<|end|>"
        "<|user|>Hello!<|end|>"
        f"<|assistant|><tool_call>\n{call}\n</tool_call><|end|>"
        "<|tool|>21<|end|>"
        "<|assistant|>"
    )


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    weights = [build(tmp_path / name) for name in ("first", "second")]
    assert weights[0] == weights[1]


def build(folder: Path) -> bytes:
    """The weights of a model built in a hurry."""
    command = [*map(str, (vllm_python(), TINY_MODEL, folder)), "--epochs", "1"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, capture_output=True, check=True, env=environment)
    return (folder / "model.safetensors").read_bytes()
