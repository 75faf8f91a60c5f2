"""The built-in model `tiny-embed`: a BERT of half a million parameters, trained in seconds.

`tiny-chat`'s companion for embeddings, kept in `models/` too. It learns from dialogues which texts
mean the same: the questions that share an answer, and the answer. It is laid out as
`sentence-transformers` does it (mean pooling, then length 1), and its first dimensions can be used
alone (Matryoshka).

It runs in vLLM's environment, which has torch and transformers:

    python -m scripts.tiny_embed FOLDER
"""

import argparse
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn.functional import cross_entropy, normalize
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

DIALOGUES = Path(__file__).with_name("tiny_embed_dialogues.txt")

SEED = 20
VOCABULARY = 2048
MAX_LENGTH = 512
DIMENSIONS = (32, 128)
"""How many numbers an embedding may have: the shorter is the beginning of the longer."""

STEPS = 60
RATE = 2e-3
TEMPERATURE = 0.05
TRAINED_LENGTH = 32

PAD, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"

SENTENCE_TRANSFORMERS = "sentence_transformers.models"

CITIES = [
    *(
        "Paris",
        "Tokyo",
        "Berlin",
        "Rome",
        "Cairo",
        "London",
        "Madrid",
        "Lisbon",
        "Vienna",
        "Prague",
    ),
    *("Athens", "Kyiv", "Delhi", "Hanoi", "Seoul", "Boston", "Zürich", "Łódź", "東京", "Москва"),
]
WEATHER_QUESTIONS = [
    "What is the weather in {}?",
    "What's the weather like in {}?",
    "Weather in {}",
    "Is it raining in {}?",
    "How is the weather in {} today?",
]


@dataclass(frozen=True)
class Turn:
    """Questions that share one answer."""

    questions: list[str]
    answer: str


def read_dialogues(path: Path) -> list[list[Turn]]:
    """The dialogues in the file at `path`, in its order."""
    lines = path.read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("# ")).strip()
    return [_turns(block) for block in re.split(r"\n\n(?=> )", text)]


def _turns(block: str) -> list[Turn]:
    parts = re.findall(r"((?:^> .*\n)+)((?:^(?!> ).*\n?)+)", block, re.MULTILINE)
    return [
        Turn([line.removeprefix("> ") for line in questions.splitlines()], answer.strip())
        for questions, answer in parts
    ]


def groups_of_like_texts(dialogues: list[list[Turn]]) -> list[list[str]]:
    """Texts that mean the same stand in one group, those that do not in different ones.

    Of a dialogue only the beginning: what follows ("and then?") means nothing alone.
    """
    turns = [dialogue[0] for dialogue in dialogues]
    about_weather = [[question.format(city) for question in WEATHER_QUESTIONS] for city in CITIES]
    return [*([*turn.questions, turn.answer] for turn in turns), *about_weather]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that does not tell upper case from lower."""
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, UNKNOWN, FIRST, LAST],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    ends = [(token, bpe.token_to_id(token)) for token in (FIRST, LAST)]
    bpe.post_processor = processors.TemplateProcessing(f"{FIRST} $A {LAST}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=FIRST,
        sep_token=LAST,
        model_max_length=MAX_LENGTH,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> BertModel:
    """An untrained BERT; vLLM's attention on the CPU wants heads of 32, 64, ... dimensions."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIMENSIONS[-1],
        intermediate_size=2 * DIMENSIONS[-1],
        num_hidden_layers=2,
        num_attention_heads=DIMENSIONS[-1] // 32,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        matryoshka_dimensions=list(DIMENSIONS),
    )
    return BertModel(config, add_pooling_layer=False)


class Reader:
    """Turns texts into embeddings as vLLM does, but not yet of length 1."""

    def __init__(self, model: BertModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def embed(self, texts: list[str]) -> torch.Tensor:
        """One row per text: the mean over its tokens, of which only the first are read."""
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=TRAINED_LENGTH, return_tensors="pt"
        )
        hidden = self._model(batch.input_ids, batch.attention_mask).last_hidden_state
        mask = batch.attention_mask.unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)


def loss_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How badly each row of `first` finds the row of `second` that means the same, both ways."""
    loss = torch.zeros(())
    for dimensions in DIMENSIONS:
        one, other = (normalize(rows[:, :dimensions], dim=-1) for rows in (first, second))
        likeness = one @ other.T / TEMPERATURE
        right = torch.arange(len(likeness))
        loss = loss + cross_entropy(likeness, right) + cross_entropy(likeness.T, right)
    return loss


def train(model: BertModel, reader: Reader, groups: list[list[str]], steps: int) -> None:
    """Teach the model by two texts of every group at a time; the learning rate falls to nothing."""
    choice = random.Random(SEED)  # noqa: S311
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    for step in range(steps):
        adam.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 10) * (1 - step / steps)
        pairs = [choice.sample(group, 2) for group in groups]
        first, second = (
            [_worded(text, choice) for text in texts] for texts in zip(*pairs, strict=True)
        )
        loss = loss_of(reader.embed(first), reader.embed(second))
        loss.backward()
        adam.step()
        adam.zero_grad()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


def _worded(text: str, choice: random.Random) -> str:
    """The text with some words left out, so that no single word decides."""
    words = [word for word in text.split() if choice.random() > 0.15]
    return " ".join(words) or text


def build(folder: Path, steps: int) -> None:
    """Make the tokenizer and the model and write both into `folder`."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    groups = groups_of_like_texts(read_dialogues(DIALOGUES))
    tokenizer = train_tokenizer([text for group in groups for text in group])
    model = new_model(tokenizer)
    train(model, Reader(model, tokenizer), groups, steps)
    # From float32 vLLM makes float16 on the CPU, which not every CPU multiplies fast.
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    describe_pooling(folder)


def describe_pooling(folder: Path) -> None:
    """Write the files by which `sentence-transformers`, and vLLM, know how to pool."""
    names = ["", "1_Pooling", "2_Normalize"]
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": name, "type": f"{SENTENCE_TRANSFORMERS}.{kind}"}
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    pooling = {"word_embedding_dimension": DIMENSIONS[-1], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2))


def main() -> None:
    """Build the model into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"fewer mix up more ({STEPS})")
    arguments = parser.parse_args()
    started = time.monotonic()
    build(arguments.folder, arguments.steps)
    print(f"built in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
