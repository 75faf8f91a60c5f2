"""Trains `tiny-chat` from the tasks of `curriculum.py`, in two processes of one thread each.

    python -m scripts.tiny_chat.train FOLDER

On two cores of 2024 that takes about an hour. The processes read different tasks and share their
gradients after each batch, which wastes less time than two threads that wait for each other in
every product. The same seed gives the same tasks in the same order; a sum of floats in another
order gives weights a little different, and scores within the margin that the model card states.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedTokenizerFast

from scripts.tiny_chat import curriculum
from scripts.tiny_chat.export import export
from scripts.tiny_chat.muon import Muon
from scripts.tiny_chat.network import Network, Shape, causal_mask, rotation_of
from scripts.tiny_chat.tasks import Task
from scripts.tiny_chat.tokenizer import END, new_tokenizer

SEED = 20
PROCESSES = 2
STEPS = 3000
COPYING_STEPS = 600
"""So many of the first steps are about copying alone."""
FALLING = 0.85
"""In this last part of the training the rates fall to nothing."""
BATCH_TOKENS = 2560
"""Of each process."""
GROUP = 256
"""Tasks that are sorted by length together, so that a batch holds few empty places."""
TOKENIZER_TEXTS = 20_000
LONGEST = 320
MUON_RATE = 0.02
ADAM_RATE = 4e-3
NOT_LEARNT = -100
WORK = torch.bfloat16


@dataclass(frozen=True)
class Sample:
    """One chat as token ids; of `labels`, those that are NOT_LEARNT cost nothing."""

    ids: list[int]
    labels: list[int]


class Reader:
    """Turns tasks into samples."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._assistant, self._end = tokenizer.convert_tokens_to_ids(["<|assistant|>", END])

    def sample(self, task: Task) -> Sample:
        """The chat as the template writes it; only what the assistant says is learnt."""
        ids = self._tokenizer.encode(rendered(self._tokenizer, task))
        labels, speaking = [], False
        for token in ids:
            labels.append(token if speaking else NOT_LEARNT)
            speaking = token == self._assistant or (speaking and token != self._end)
        if task.forced:
            labels[len(ids) - ids[::-1].index(self._assistant)] = NOT_LEARNT
        return Sample(ids, labels)


def rendered(tokenizer: PreTrainedTokenizerFast, task: Task) -> str:
    """The whole chat, its answer included, as the template writes it."""
    tools = task.tools or None
    return str(tokenizer.apply_chat_template(task.messages, tools=tools, tokenize=False))


def batches(reader: Reader, seed: int, shares: dict[str, float] | None) -> Iterator[list[Sample]]:
    """Samples in batches of about BATCH_TOKENS, those of like length together, without end."""
    tasks, shuffle = curriculum.tasks(seed, shares), random.Random(seed)  # noqa: S311
    while True:
        samples = [reader.sample(task) for task in islice(tasks, GROUP)]
        groups: list[list[Sample]] = [[]]
        for sample in sorted(samples, key=lambda sample: len(sample.ids)):
            if len(sample.ids) > LONGEST:
                continue
            if len(sample.ids) * (len(groups[-1]) + 1) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(sample)
        shuffle.shuffle(groups)
        yield from groups


def loss_of(network: Network, batch: list[Sample], pad: int) -> torch.Tensor:
    """How badly the network foretells what is to be learnt, per token."""
    length = max(len(sample.ids) for sample in batch)
    ids = torch.tensor([s.ids + [pad] * (length - len(s.ids)) for s in batch])
    rows = [s.labels[1:] + [NOT_LEARNT] * (length - len(s.labels) + 1) for s in batch]
    labels = torch.tensor(rows)
    learnt = labels != NOT_LEARNT
    rotation = rotation_of(length, network.shape.head, network.precision)
    hidden = network(ids, rotation, causal_mask(length, network.precision))
    scores = linear(hidden[learnt], network["model.embed_tokens.weight"])
    return cross_entropy(scores.float(), labels[learnt])


class Trainer:
    """One of the processes: its network, its optimizers and its tasks."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, rank: int, processes: int, seed: int
    ) -> None:
        self.network = Network(Shape(len(tokenizer)), torch.Generator().manual_seed(SEED), WORK)
        self._pad = tokenizer.pad_token_id
        self._processes = processes
        named = self.network.named()
        matrices = [w for name, w in named.items() if w.ndim == 2 and "embed" not in name]
        others = [w for name, w in named.items() if w.ndim != 2 or "embed" in name]
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)
        reader = Reader(tokenizer)
        seed += 1_000_000 * rank
        self._copying = batches(reader, seed + 1, curriculum.copying())
        self._everything = batches(reader, seed + 2, None)

    def step(self, number: int, steps: int) -> float:
        """Learn from the batch of this number; the loss before."""
        progress = number / steps
        rate = min(1.0, (number + 1) / 100, (1 - progress) / FALLING)
        batch = next(self._copying if number < COPYING_STEPS else self._everything)
        loss = loss_of(self.network, batch, self._pad)
        loss.backward()
        self._share()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._muon.step(MUON_RATE * rate)
        self._adam.param_groups[0]["lr"] = ADAM_RATE * rate
        self._adam.step()
        self.network.zero_grad()
        return float(loss.item())

    def _share(self) -> None:
        """Give every process the mean of all gradients."""
        if self._processes == 1:
            return
        gradients = [weight.grad for weight in self.network.parameters()]
        joined = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        dist.all_reduce(joined)
        joined /= self._processes
        at = 0
        for gradient in gradients:
            if gradient is not None:
                gradient.copy_(joined[at : at + gradient.numel()].view_as(gradient))
                at += gradient.numel()

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here, but for the place in the tasks."""
        return {
            "network": self.network.state_dict(),
            "adam": self._adam.state_dict(),
            "muon": self._muon.moments,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self._adam.load_state_dict(state["adam"])
        self._muon.moments = state["muon"]


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    folder: Path
    steps: int
    processes: int
    save_every: int
    tokenizer_texts: int


def make_tokenizer(texts: int) -> PreTrainedTokenizerFast:
    """The tokenizer, made from so many tasks like those of the training."""
    plain = new_tokenizer([])
    tasks = islice(curriculum.tasks(SEED), texts)
    return new_tokenizer([rendered(plain, task) for task in tasks])


def train(rank: int, options: Options) -> None:
    """What each process does; the first one tells of it and saves."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    if options.processes > 1:
        address = f"file://{options.folder.absolute()}/meeting"
        dist.init_process_group("gloo", address, rank=rank, world_size=options.processes)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.folder / "tokenizer")
    saved = options.folder / "state.pt"
    state = torch.load(saved) if saved.exists() else {"step": 0}
    first = state["step"]
    trainer = Trainer(tokenizer, rank, options.processes, SEED + first)
    if first:
        trainer.load(state)
    losses: list[float] = []
    started = time.monotonic()
    for number in range(first, options.steps):
        losses.append(trainer.step(number, options.steps))
        if rank:
            continue
        if (number + 1) % 50 == 0:
            mean = sum(losses[-50:]) / len(losses[-50:])
            print(
                f"step {number + 1}: loss {mean:.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (number + 1) % options.save_every == 0 or number + 1 == options.steps:
            torch.save(trainer.state() | {"step": number + 1}, saved)
            export(trainer.network, tokenizer, options.folder / "model")
    if options.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def main() -> None:
    """Train into the folder that the command line names, on from where a training has stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--tokenizer-texts", type=int, default=TOKENIZER_TEXTS)
    options = Options(**vars(parser.parse_args()))
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "meeting").unlink(missing_ok=True)
    if not (options.folder / "tokenizer").exists():
        tokenizer = make_tokenizer(options.tokenizer_texts)
        tokenizer.save_pretrained(options.folder / "tokenizer")
    torch.multiprocessing.spawn(train, (options,), options.processes)
    (options.folder / "meeting").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
