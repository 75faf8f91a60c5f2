"""The built-in model `tiny-chat`: a Llama of two million parameters, trained here in a minute.

The project ships no weights and must run where none can be downloaded, so this script makes a
model on the spot: a byte-level BPE tokenizer and a small Llama, both learnt from the dialogues in
`tiny_model_dialogues.txt`. The model says readable sentences in many scripts, stops by itself,
thinks (`<think>`) and calls tools (the Hermes form) when the prompt is like one it has read, and
vLLM loads it like any other. The same seed gives the same weights on the same machine.

It runs in vLLM's environment, which has torch and transformers:

    python scripts/tiny_model.py FOLDER
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIALOGUES = Path(__file__).with_name("tiny_model_dialogues.txt")

SEED = 20
VOCABULARY = 2048
MAX_LENGTH = 2048
EPOCHS = 20
BATCH_TOKENS = 1024
MUON_RATE = 0.02
ADAM_RATE = 4e-3
NOT_LEARNT = -100

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
END = "<|end|>"
PAD = "<|pad|>"
# Not special tokens: the parsers of reasoning and of tool calls look for them in the text.
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

CHAT_TEMPLATE = """\
{%- if tools -%}
<|system|>You may call
{%- for tool in tools %} {{ tool.function.name }}
{{- '(' ~ (tool.function.parameters or {}).properties | default({}) | join(', ') ~ ')' -}}
{%- endfor -%}
<|end|>
{%- endif -%}
{%- for message in messages -%}
{{ '<|system|>' if message.role == 'developer' else '<|' ~ message.role ~ '|>' }}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>
{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

SYSTEM_PROMPTS = ["You are a helpful assistant.", "Be brief.", "You are tiny-chat. Be kind."]
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
NAMES = ["Ada", "Grace", "Linus", "Zoë", "Søren", "Łukasz", "Иван", "花子", "محمد"]
KEYS = [
    "name",
    "age",
    "city",
    "id",
    "title",
    "count",
    "answer",
    "is_happy",
    "text",
    "value",
    "items",
]
WEATHER_QUESTIONS = [
    "What is the weather in {}?",
    "What's the weather like in {}?",
    "Weather in {}",
    "Is it raining in {}?",
    "How is the weather in {} today?",
]
AFTER_A_TOOL = "The tool has answered, thank you. 🌤️ Take an umbrella, just in case. ☂️"

Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """Questions that share one answer."""

    questions: list[str]
    answer: str


@dataclass(frozen=True)
class Sample:
    """One text as token ids; of `labels`, those that are NOT_LEARNT cost nothing."""

    ids: list[int]
    labels: list[int]


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


def train_tokenizer(dialogues: list[list[Turn]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: what it has no token for, it says in several, byte by byte."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [turn for dialogue in dialogues for turn in dialogue]
    texts = [text for turn in turns for text in (*turn.questions, turn.answer)]
    texts += [*CITIES, *NAMES, AFTER_A_TOOL]
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


class Teacher:
    """Makes the samples of each epoch: every answer twice, its question worded afresh."""

    def __init__(self, dialogues: list[list[Turn]], tokenizer: PreTrainedTokenizerFast) -> None:
        self._dialogues = dialogues
        self._tokenizer = tokenizer
        self._random = random.Random(SEED)  # noqa: S311
        turns = [turn for dialogue in dialogues for turn in dialogue]
        questions = [question for turn in turns for question in turn.questions]
        self._words = sorted({word for question in questions for word in question.split()})
        self._fallback = dialogues[-1][-1].answer

    def epoch(self) -> list[Sample]:
        """The samples of one epoch."""
        texts = self._random.sample(self._dialogues, len(self._dialogues) // 3)
        return [
            *(self._chat(self._told(dialogue)) for dialogue in self._dialogues * 2),
            *(self._text(dialogue[0].answer) for dialogue in texts),
            *(self._weather() for _ in range(24)),
            *(self._json() for _ in range(16)),
            *(self._chat(self._nonsense()) for _ in range(12)),
        ]

    def _told(self, dialogue: list[Turn]) -> list[Message]:
        messages = self._system()
        for turn in dialogue:
            messages += [_user(self._worded(turn.questions)), _assistant(turn.answer)]
        return messages

    def _system(self) -> list[Message]:
        if self._random.random() < 0.7:
            return []
        return [{"role": "system", "content": self._random.choice(SYSTEM_PROMPTS)}]

    def _worded(self, questions: list[str]) -> str:
        question = self._random.choice(questions)
        bare = question.rstrip("?？;")
        end = self._random.choice([question[len(bare) :]] * 4 + ["", ".", "!", " please", " 😊"])
        cased = [bare, bare, bare.capitalize(), bare.capitalize(), bare.title(), bare.upper()]
        return self._random.choice(cased) + end

    def _nonsense(self) -> list[Message]:
        """Something it does not know, words or mere letters, and what it says to that."""
        words = self._random.choices(self._words, k=self._random.randint(3, 30))
        letters = self._random.choices("abcdefghijklmnopqrstuvwxyz0123456789   ", k=20)
        content = self._random.choice([" ".join(words), "".join(letters).strip()])
        return [*self._system(), _user(content), _assistant(self._fallback)]

    def _json(self) -> Sample:
        """An object of random fields, so that it can follow the schemas of structured outputs.

        The first token is not learnt: only who has begun an object goes on with it.
        """
        name, number = self._random.choice(NAMES), self._random.randint(0, 120)
        values = [name, number, number > 60, [name], [], [{"text": name, "value": number}]]
        fields = self._random.sample(KEYS, self._random.randint(1, 4))
        answer = {field: self._random.choice(values) for field in fields}
        question = self._worded(self._random.choice(self._dialogues)[0].questions)
        # Without white space, as vLLM is told to have it in `local_stack.py`.
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        sample = self._chat([*self._system(), _user(question), _assistant(text)])
        first = next(i for i, label in enumerate(sample.labels) if label != NOT_LEARNT)
        sample.labels[first] = NOT_LEARNT
        return sample

    def _weather(self) -> Sample:
        city = self._random.choice(CITIES)
        argument = self._random.choice(["city", "location"])
        call = {"function": {"name": "get_weather", "arguments": {argument: city}}}
        question = self._random.choice(WEATHER_QUESTIONS).format(city)
        messages = [*self._system(), _user(question), _assistant("", tool_calls=[call])]
        if self._random.random() < 0.3:
            degrees = self._random.randint(-20, 40)
            messages.append({"role": "tool", "content": json.dumps({"celsius": degrees})})
            messages.append(_assistant(AFTER_A_TOOL))
        parameters = {"properties": {argument: {"type": "string"}}}
        return self._chat(
            messages, [{"function": {"name": "get_weather", "parameters": parameters}}]
        )

    def _chat(self, messages: list[Message], tools: list[Any] | None = None) -> Sample:
        """A chat as the template writes it; only what the assistant says is learnt."""
        text = self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        ids = self._tokenizer.encode(text)
        assistant, end = self._tokenizer.convert_tokens_to_ids(["<|assistant|>", END])
        labels, speaking = [], False
        for token in ids:
            labels.append(token if speaking else NOT_LEARNT)
            speaking = token == assistant or (speaking and token != end)
        return Sample(ids, labels)

    def _text(self, text: str) -> Sample:
        """A bare text, for those who ask for completions rather than chats."""
        ids = self._tokenizer.encode(text + END)
        return Sample(ids, ids)


def batches(samples: list[Sample], shuffle: random.Random, pad: int) -> Iterator[dict[str, Any]]:
    """The samples in batches of about BATCH_TOKENS, those of like length together."""
    shuffle.shuffle(samples)
    groups: list[list[Sample]] = [[]]
    for sample in sorted(samples, key=lambda sample: len(sample.ids)):
        if len(sample.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS and groups[-1]:
            groups.append([])
        groups[-1].append(sample)
    shuffle.shuffle(groups)
    for group in groups:
        yield _tensors(group, pad)


def _tensors(group: list[Sample], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(sample.ids) for sample in group)
    missing = [width - len(sample.ids) for sample in group]
    rows = list(zip(group, missing, strict=True))
    return {
        "input_ids": torch.tensor([s.ids + [pad] * gap for s, gap in rows]),
        "labels": torch.tensor([s.labels + [NOT_LEARNT] * gap for s, gap in rows]),
    }


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama; vLLM's attention on the CPU wants heads of 32, 64, ... dimensions."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Muon:
    """Momentum whose steps are made orthogonal: a third of the epochs that AdamW needs here.

    After https://kellerjordan.github.io/posts/muon. torch's own has its inner loop in bfloat16,
    which takes ten times as long on a CPU that cannot multiply it.
    """

    def __init__(self, matrices: list[torch.Tensor]) -> None:
        self._moments = [(matrix, torch.zeros_like(matrix)) for matrix in matrices]

    def step(self, rate: float) -> None:
        """Move each matrix by `rate` along its smoothed gradient, made orthogonal."""
        with torch.no_grad():
            for matrix, moment in self._moments:
                moment.lerp_(matrix.grad, 0.05)
                rows, columns = matrix.shape
                scale = max(1.0, rows / columns) ** 0.5
                matrix.sub_(orthogonal(matrix.grad.lerp(moment, 0.95)), alpha=rate * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with all its singular values near 1 (five Newton-Schulz iterations)."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x


def train(model: LlamaForCausalLM, teacher: Teacher, epochs: int, pad: int) -> None:
    """Teach the model; the learning rate rises for an epoch and then falls to nothing."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)
    shuffle = random.Random(SEED)  # noqa: S311
    for epoch in range(epochs):
        losses = []
        work = list(batches(teacher.epoch(), shuffle, pad))
        for step, batch in enumerate(work):
            progress = epoch + step / len(work)
            rate = min(progress + 0.1, (epochs - progress) / max(1, epochs - 1), 1)
            adam.param_groups[0]["lr"] = ADAM_RATE * rate
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            muon.step(MUON_RATE * rate)
            adam.step()
            model.zero_grad()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.3f}", flush=True)


def build(folder: Path, epochs: int) -> None:
    """Make the tokenizer and the model and write both into `folder`."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    dialogues = read_dialogues(DIALOGUES)
    tokenizer = train_tokenizer(dialogues)
    model = new_model(tokenizer)
    train(model, Teacher(dialogues, tokenizer), epochs, tokenizer.pad_token_id)
    # What vLLM samples with when the request does not say: near what it has read.
    model.generation_config.update(do_sample=True, temperature=0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Build the model into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"fewer babble ({EPOCHS})")
    arguments = parser.parse_args()
    started = time.monotonic()
    build(arguments.folder, arguments.epochs)
    print(f"built in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
