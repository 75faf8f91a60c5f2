"""What tiny-chat reads: tasks whose checks accept the right answer and refuse others."""

import json
from itertools import islice

import pytest

from scripts.tiny_chat.curriculum import COPYING, SKILLS, examination, tasks
from scripts.tiny_chat.talk import read_dialogues
from scripts.tiny_chat.tasks import Task, calls_of
from scripts.tiny_chat.words import REAL_CITIES, REAL_NAMES, REAL_WORDS, Words

TRAINED = list(islice(tasks(1), 3000))
TOOLS = ["a tool call", "two tool calls"]


def asked(task: Task) -> str:
    """All that the model is given to answer."""
    return json.dumps([task.question, task.tools], ensure_ascii=False)


@pytest.mark.parametrize("skill", SKILLS)
def test_each_right_answer_is_accepted(skill: str) -> None:
    words = Words(3)
    for task in [*examination(skill, 100), *(SKILLS[skill][0](words) for _ in range(100))]:
        assert task.accepts(task.answer)
        assert task.messages[-1]["role"] == "assistant"
        assert task.question[-1]["role"] in ("user", "tool")


@pytest.mark.parametrize("skill", SKILLS)
def test_the_answer_to_another_question_is_refused(skill: str) -> None:
    examined = examination(skill, 60)
    for task in examined:
        others = [other.answer for other in examined if other.answer != task.answer]
        # A name may be part of another's answer by chance, but never of most.
        assert sum(task.accepts(other) for other in others) < 0.2 * len(others)
        assert not task.accepts("")


def test_a_letter_less_is_refused() -> None:
    for skill in ("repeating", "reversing", "capitals", "JSON", "counting"):
        for task in examination(skill, 50):
            assert not task.accepts(task.answer[:-2])


@pytest.mark.parametrize("skill", TOOLS)
def test_arguments_stand_in_the_request_and_names_among_the_tools(skill: str) -> None:
    for task in examination(skill, 100):
        calls = calls_of(task.answer)
        assert len(calls) == 1 + TOOLS.index(skill)
        tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in task.tools}
        for call in calls:
            assert set(tools[call["name"]]["required"]) == set(call["arguments"])
            for value in call["arguments"].values():
                assert str(value) in task.question[-1]["content"]


def test_a_call_with_another_city_or_another_tool_is_refused() -> None:
    for task in examination("a tool call", 50):
        (call,) = calls_of(task.answer)
        for wrong in (
            {**call, "name": "other"},
            {**call, "arguments": dict.fromkeys(call["arguments"], "Atlantis")},
            {**call, "arguments": {}},
        ):
            assert not task.accepts(f"<tool_call>\n{json.dumps(wrong)}\n</tool_call>")
        assert not task.accepts(task.answer + task.answer)
        assert not task.accepts("Sunny.")


def test_where_no_tool_fits_a_call_is_refused() -> None:
    for task in examination("no tool fits", 50):
        call = {"name": task.tools[0]["function"]["name"], "arguments": {}}
        assert not task.accepts(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")


def test_no_training_knows_the_names_and_wordings_of_an_examination() -> None:
    read = [asked(task) + task.answer for task in TRAINED]
    for name in [*REAL_CITIES, *REAL_NAMES, *REAL_WORDS]:
        if name in ("Paris", "Tokyo", "Berlin"):  # capitals, in dialogues
            continue
        assert not any(f" {name} " in text or f'"{name}"' in text for text in read), name
    questions = {message["content"] for task in TRAINED for message in task.question}
    for dialogue in read_dialogues():
        for turn in dialogue.turns:
            assert not set(turn.held_out) & (questions | set(turn.questions))


def test_every_skill_is_practised_and_every_dialogue_can_be_examined() -> None:
    assert set(COPYING) < set(SKILLS)
    dialogues = read_dialogues()
    assert len(dialogues) > 50
    assert sum(bool(dialogue.turns[-1].held_out) for dialogue in dialogues) > 45


def test_the_same_seed_gives_the_same_tasks() -> None:
    assert list(islice(tasks(1), 200)) == TRAINED[:200]
    assert list(islice(tasks(2), 200)) != TRAINED[:200]
    assert examination("sums", 20) == examination("sums", 20)
