"""Examines a `tiny-chat` on held-out tasks, and prints a table of its skills.

    python -m scripts.tiny_chat.evaluate FOLDER [--number N] [--show SKILL]

Phrasings, cities, people, roles and words to spell are none that any training has read. Decoding
is greedy; an answer counts if code finds in it what the task wants, and if the model has stopped by
itself.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.tiny_chat.curriculum import SKILLS, examination
from scripts.tiny_chat.tasks import Task
from scripts.tiny_chat.tokenizer import END

NUMBER = 100
MOST_TOKENS = 200
BATCH = 50


@dataclass(frozen=True)
class Answer:
    """What a model said to a task; `stopped` by itself, and not because its length was used up."""

    task: Task
    text: str
    stopped: bool

    @property
    def right(self) -> bool:
        """Does it count?"""
        return self.stopped and self.task.accepts(self.text)


class Candidate:
    """A model that is examined."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._tokenizer.padding_side = "left"
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).float().eval()

    def answers(self, tasks: list[Task]) -> list[Answer]:
        """What it says to each task."""
        ordered = sorted(tasks, key=lambda task: len(self._prompt(task)))
        parts = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
        return [answer for part in parts for answer in self._batch(part)]

    def _prompt(self, task: Task) -> str:
        tools = task.tools or None
        return str(
            self._tokenizer.apply_chat_template(
                task.question, tools=tools, tokenize=False, add_generation_prompt=True
            )
        )

    def _batch(self, tasks: list[Task]) -> list[Answer]:
        prompts = [self._prompt(task) for task in tasks]
        batch = self._tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                temperature=None,
            )
        texts = self._tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :])
        return [
            Answer(task, text.partition(END)[0], END in text)
            for task, text in zip(tasks, texts, strict=True)
        ]


def table(scores: dict[str, float], number: int) -> str:
    """The scores in Markdown."""
    lines = [f"| skill | right of {number} held-out |", "| --- | --- |"]
    lines += [f"| {skill} | {100 * score:.0f} % |" for skill, score in scores.items()]
    return "\n".join(lines)


def show(answers: list[Answer]) -> None:
    """Print the wrong ones."""
    for answer in answers:
        if not answer.right:
            print(f"  {answer.task.question[-1]['content']!r}")
            print(f"    said   {answer.text!r}{'' if answer.stopped else ' ...'}")
            print(f"    wanted {answer.task.answer!r}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=NUMBER, help="tasks of each skill")
    parser.add_argument("--show", nargs="*", default=[], help="print the wrong answers of these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    candidate = Candidate(options.folder)
    scores = {}
    for skill in SKILLS:
        answers = candidate.answers(examination(skill, options.number))
        scores[skill] = sum(answer.right for answer in answers) / len(answers)
        if skill in options.show or "all" in options.show:
            print(skill)
            show(answers)
    print(table(scores, options.number))


if __name__ == "__main__":
    main()
