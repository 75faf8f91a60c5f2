"""The built-in models: small, awkward in the ways that real models are, and made anew the same."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.set_up import ROOT, TINY_CHAT, TINY_EMBED, TinyModel, vllm_python

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

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
typed = {"properties": {"n": {"type": "integer"}, "unit": {}}, "required": ["n"]}
tools += [{"function": {"name": "add", "parameters": typed}}]
chat = tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=True)
texts = "🐉 漢 ж ع ع ő".split()
split = {text: len(tokenizer.encode(text)) for text in texts}
letters = ["in Zorbinq", '"Zorbinq', '{"city": "Zorbinq']
letters = [tokenizer.tokenize(text)[-7:] for text in letters]
hello = [{"role": "user", "content": "Hello!"}]
thinking = tokenizer.apply_chat_template(hello, tokenize=False, enable_thinking=True)
told = "🐉 漢字 è ع\\u2028é"
same = tokenizer.decode(tokenizer.encode(told))
found = {"size": len(tokenizer), "chat": chat, "split": split, "same": same == told}
print(json.dumps(found | {"letters": letters, "thinking": thinking}))
"""


EMBEDDINGS = """\
import json, sys
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from scripts.tiny_embed import DIMENSIONS, Reader
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    rows = Reader(AutoModel.from_pretrained(folder).float(), tokenizer).embed(texts)
cut = [normalize(rows[:, :dimensions], dim=-1) for dimensions in DIMENSIONS]
likeness = [(some @ some.T).tolist() for some in cut]
print(json.dumps({"likeness": likeness, "ids": [tokenizer.encode(text) for text in texts]}))
"""

# None of them has been read in these words, and hardly a word is in both.
LIKE_TEXTS = [
    ("Will it rain in Tokyo today?", "How's the weather in Tokyo?"),
    ("Say something funny, please", "Why did the worker cross the road?"),
    ("Good morning, hello!", "Hey there!"),
    ("Please introduce yourself", "Who are you, and what is your name?"),
    ("Wie geht's dir?", "Guten Tag"),
    ("Comment ça va ?", "Salut, bonjour"),
    ("Thanks", "Thank you so much"),
]


def run_in_vllms(code: str, model: TinyModel, text: str = "") -> dict[str, Any]:
    """What code that knows transformers says of the built model, as JSON."""
    command = [str(vllm_python()), "-c", code, str(model.folder)]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    """What transformers says of the tokenizer of tiny-chat."""
    return run_in_vllms(TOKENIZER, TINY_CHAT)


@pytest.fixture(scope="module")
def embeddings() -> dict[str, Any]:
    """How like each other tiny-embed finds the texts above, and what its tokenizer makes of them.

    The last two are the first in capitals, and nothing.
    """
    texts = [text for pair in LIKE_TEXTS for text in pair]
    return run_in_vllms(EMBEDDINGS, TINY_EMBED, json.dumps([*texts, texts[0].upper(), ""]))


def test_characters_are_split_across_tokens_and_come_back_whole(tokenizer: dict[str, Any]) -> None:
    assert tokenizer["size"] <= 2048
    assert tokenizer["split"]["🐉"] > 1
    assert tokenizer["split"]["漢"] > 1
    assert tokenizer["same"]


def test_the_chat_template_knows_tools_and_every_role(tokenizer: dict[str, Any]) -> None:
    call = '{"name": "get_weather", "arguments": {"city": "Zürich"}}'
    assert tokenizer["chat"] == (
        "<|system|>You may call get_weather(city, day) stop() add(n: integer, unit?)<|end|>"
        "<|system|>Be brief.<|end|>"
        "<|user|>Hello!<|end|>"
        f"<|assistant|><tool_call>\n{call}\n</tool_call><|end|>"
        "<|tool|>21<|end|>"
        "<|assistant|>"
    )


def test_a_name_is_cut_into_the_same_letters_wherever_it_stands(tokenizer: dict[str, Any]) -> None:
    assert tokenizer["letters"] == [list("Zorbinq")] * 3


def test_thinking_can_be_asked_for_in_the_template(tokenizer: dict[str, Any]) -> None:
    assert tokenizer["thinking"] == "<|system|>Think first.<|end|><|user|>Hello!<|end|>"


def test_texts_that_mean_the_same_are_nearer_than_others(embeddings: dict[str, Any]) -> None:
    for likeness in embeddings["likeness"]:
        for i in range(2 * len(LIKE_TEXTS)):
            others = [likeness[i][j] for j in range(2 * len(LIKE_TEXTS)) if j not in (i, i ^ 1)]
            assert likeness[i][i ^ 1] > max(others)


def test_capitals_mean_nothing_and_an_empty_text_is_still_a_text(
    embeddings: dict[str, Any],
) -> None:
    assert embeddings["ids"][0] == embeddings["ids"][-2]
    first, last = embeddings["ids"][0][0], embeddings["ids"][0][-1]
    assert embeddings["ids"][-1] == [first, last]


@pytest.mark.parametrize(
    ("model", "in_a_hurry", "weights"),
    [
        (
            TINY_CHAT,
            ("--steps", "1", "--processes", "1", "--tokenizer-texts", "1000"),
            "model/model.safetensors",
        ),
        (TINY_EMBED, ("--steps", "1"), "model.safetensors"),
    ],
    ids=["chat", "embed"],
)
def test_the_same_seed_gives_the_same_model(
    tmp_path: Path, model: TinyModel, in_a_hurry: tuple[str, ...], weights: str
) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        build(model, folder, in_a_hurry)
    assert (folders[0] / weights).read_bytes() == (folders[1] / weights).read_bytes()


def build(model: TinyModel, folder: Path, in_a_hurry: tuple[str, ...]) -> None:
    """Train a model as little as can be."""
    command = [str(vllm_python()), "-m", model.builder, str(folder), *in_a_hurry]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=environment)


TWIN = """\
import json, sys
import torch
from transformers import AutoModelForCausalLM
from scripts.tiny_chat.network import Network, Shape, causal_mask, rotation_of
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder).float()
network = Network(Shape(model.config.vocab_size), torch.Generator().manual_seed(1))
weights = model.state_dict()
ours = network.named()
with torch.no_grad():
    for name, weight in ours.items():
        weight.copy_(weights[name])
    ids = torch.randint(model.config.vocab_size, (2, 40))
    rotation = rotation_of(40, network.shape.head, torch.float32)
    hidden = network(ids, rotation, causal_mask(40, torch.float32))
    difference = hidden @ ours["model.embed_tokens.weight"].T - model(ids).logits
print(json.dumps({"difference": difference.abs().max().item()}))
"""


def test_what_is_trained_is_what_transformers_reads() -> None:
    assert run_in_vllms(TWIN, TINY_CHAT)["difference"] < 0.01
