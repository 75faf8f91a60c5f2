"""The models in the repository: how large they are, and what their cards say of them."""

import re
import subprocess

import pytest

from scripts.set_up import ROOT, TINY_CHAT, TINY_EMBED, vllm_python
from scripts.tiny_chat.curriculum import SKILLS

MOST_BYTES = 16_000_000
ROW = re.compile(r"^\| ([^|]+) \| (\d+) % \|$", re.MULTILINE)
MARGIN = 20
"""How many parts in a hundred a score of few tasks may be below the card's."""


def scores(text: str) -> dict[str, int]:
    """The rows of a table of scores."""
    return {skill: int(score) for skill, score in ROW.findall(text)}


def test_they_are_small_enough_to_ship() -> None:
    for model in (TINY_CHAT, TINY_EMBED):
        files = [file for file in model.folder.rglob("*") if file.is_file()]
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in files}
        assert sum(file.stat().st_size for file in files) < MOST_BYTES


def test_the_card_tells_a_score_of_each_skill() -> None:
    assert list(scores((TINY_CHAT.folder / "README.md").read_text("utf-8"))) == list(SKILLS)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_scores_of_the_card_are_the_models() -> None:
    command = [str(vllm_python()), "-m", "scripts.tiny_chat.evaluate", str(TINY_CHAT.folder)]
    done = subprocess.run(
        [*command, "--number", "20"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = scores(done.stdout)
    told = scores((TINY_CHAT.folder / "README.md").read_text("utf-8"))
    assert list(found) == list(told)
    assert all(found[skill] >= told[skill] - MARGIN for skill in told), (found, told)
