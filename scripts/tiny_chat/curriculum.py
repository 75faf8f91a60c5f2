"""What is read, and how often: first mostly what has to be copied, then everything."""

from collections.abc import Iterator

from scripts.tiny_chat import memory, talk, tools, work
from scripts.tiny_chat.tasks import Message, Skill, Task, system
from scripts.tiny_chat.words import Words

SKILLS: dict[str, tuple[Skill, float]] = {
    "greetings and small talk": (talk.Dialogues(talk.GREETINGS), 8),
    "this project": (talk.Dialogues(talk.PROJECT), 7),
    "languages and emoji": (talk.Dialogues(talk.LANGUAGES), 8),
    "what was said before": (memory.recall, 10),
    "what a prompt says": (talk.briefing, 7),
    "the date": (talk.dated, 5),
    "a role": (talk.role, 4),
    "sums": (work.sums, 8),
    "counting": (work.counting, 7),
    "repeating": (work.repeating, 4),
    "reversing": (work.reversing, 7),
    "capitals": (work.capitals, 6),
    "JSON": (work.as_json, 9),
    "thinking": (work.thinking, 8),
    "a tool call": (tools.calling, 11),
    "two tool calls": (tools.calling_twice, 8),
    "after tools": (tools.after_tools, 7),
    "no tool fits": (tools.without_tools, 4),
}
"""Each skill, and how often it is practised beside the others."""

COPYING = (
    "what a prompt says",
    "repeating",
    "reversing",
    "capitals",
    "a tool call",
    "what was said before",
)
"""What the first part of the training is about, so that heads which copy form early."""


def tasks(seed: int, skills: dict[str, float] | None = None) -> Iterator[Task]:
    """Tasks without end; a third of them go on from another, as chats do."""
    words = Words(seed)
    shares = skills or {name: share for name, (_, share) in SKILLS.items()}
    names = list(shares)
    while True:
        name = words.random.choices(names, list(shares.values()))[0]
        task = SKILLS[name][0](words)
        if words.chance(0.2):
            task = _after(words, task)
        yield _told_more(words, task) if words.chance(0.15) else task


def _after(words: Words, task: Task) -> Task:
    """The task as the next part of another chat."""
    first = task.messages[0]
    start = [first] if first["role"] == "system" else []
    rest = task.messages[len(start) :]
    before: list[Message] = (
        talk.small_talk(words) if words.chance(0.5) else work.sums(words).messages
    )
    return Task([*start, *before, *rest], task.must, task.tools, task.forced)


def _told_more(words: Words, task: Task) -> Task:
    """The task after a system prompt that has nothing to do with it."""
    if task.messages[0]["role"] == "system":
        return task
    prompt = words.pick(talk.IDLE_PROMPTS)
    if words.chance(0.3):
        prompt += " " + talk.small_talk(words)[1]["content"]
    return Task([system(prompt), *task.messages], task.must, task.tools, task.forced)


def copying() -> dict[str, float]:
    """The shares of the first part."""
    return {name: SKILLS[name][1] for name in COPYING}


def examination(skill: str, number: int, seed: int = 1) -> list[Task]:
    """So many held-out tasks of the skill: phrasings and names that no training has used."""
    words = Words(seed, held_out=True)
    return [SKILLS[skill][0](words) for _ in range(number)]
