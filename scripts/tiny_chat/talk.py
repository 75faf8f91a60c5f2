"""Skills of conversation: what the dialogues say, and what a prompt says: dates, roles, facts."""

import re
from dataclasses import dataclass
from pathlib import Path

from scripts.tiny_chat.tasks import Message, Task, assistant, system, user
from scripts.tiny_chat.words import ADJECTIVES, DAYS, MONTHS, Words

DIALOGUES = Path(__file__).with_name("dialogues.txt")
GREETINGS, PROJECT, LANGUAGES = "greetings", "project", "languages"


@dataclass(frozen=True)
class Turn:
    """Questions that share one answer; the held-out ones are for examinations alone."""

    questions: list[str]
    held_out: list[str]
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """Turns that follow one another, and the skill that they belong to."""

    skill: str
    turns: list[Turn]


def read_dialogues(path: Path = DIALOGUES) -> list[Dialogue]:
    """The dialogues in the file at `path`, in its order."""
    skill, found = GREETINGS, []
    for block in re.split(r"\n\n(?=[>=])", path.read_text("utf-8").strip()):
        if block.startswith("= "):
            skill = block[2:].split("\n")[0]
        elif block.startswith("> "):
            found.append(Dialogue(skill, _turns(block)))
    return found


def _turns(block: str) -> list[Turn]:
    parts = re.findall(r"((?:^[>?] .*\n)+)((?:^(?![>?] ).*\n?)+)", block, re.MULTILINE)
    turns = []
    for questions, answer in parts:
        lines = questions.splitlines()
        asked = {mark: [line[2:] for line in lines if line[0] == mark] for mark in ">?"}
        turns.append(Turn(asked[">"], asked["?"], answer.strip()))
    return turns


class Dialogues:
    """Draws from the dialogues of some skill."""

    def __init__(self, skill: str) -> None:
        self._all = [dialogue for dialogue in read_dialogues() if dialogue.skill == skill]
        self._examined = [dialogue for dialogue in self._all if dialogue.turns[-1].held_out]

    def __call__(self, words: Words) -> Task:
        """One of them, its questions worded afresh."""
        messages: list[Message] = []
        turns = words.pick(self._examined if words.held_out else self._all).turns
        for turn in turns:
            examined = words.held_out and turn is turns[-1]
            asked = _worded(words, words.pick(turn.held_out if examined else turn.questions))
            if not examined and asked.lower() in turn.held_out:
                asked = turn.questions[0]
            messages += [user(asked), assistant(turn.answer)]
        if words.chance(0.15):
            messages.insert(0, system(words.pick(IDLE_PROMPTS)))
        return Task(messages)


IDLE_PROMPTS = [
    "You are a helpful assistant.",
    "Be brief.",
    "You are tiny-chat. Be kind.",
    "You are an AI assistant.",
    "Answer in short sentences.",
]


def _worded(words: Words, question: str) -> str:
    if not words.held_out and words.chance(0.2):
        question = words.loosened(question)
    bare = question.rstrip("?？;")
    end = words.pick([question[len(bare) :]] * 4 + ["", ".", "!", " please", " 😊"])
    cased = [
        bare,
        bare,
        bare,
        bare[:1].upper() + bare[1:],
        bare[:1].upper() + bare[1:],
        bare.upper(),
    ]
    return ("" if words.chance(0.95) else words.pick(["hey, ", "ok, ", "so, "])) + (
        words.pick(cased[: 5 if words.held_out else 6]) + end
    )


_greetings = Dialogues(GREETINGS)


def small_talk(words: Words) -> list[Message]:
    """A question and its answer, to stand between others."""
    trained = Words(words.number(0, 10**9))
    return [m for m in _greetings(trained).messages if m["role"] != "system"][:2]


def date(words: Words) -> str:
    """A date in one of the usual forms."""
    day, month, year = words.number(1, 28), words.number(1, 12), words.number(1990, 2049)
    iso = f"{year}-{month:02}-{day:02}"
    name = MONTHS[month - 1]
    return words.pick(
        [
            iso,
            f"{day} {name} {year}",
            f"{name} {day}, {year}",
            f"{words.pick(DAYS)}, {day} {name} {year}",
        ]
    )


def dated(words: Words) -> Task:
    """The date, which the system prompt says."""
    today = date(words)
    prompt = words.say(
        [
            "(Today is|The date is|Today's date is|Current date:|It is|The current date is) {d}.",
            "Date: {d}",
        ],
        d=today,
    )
    question = words.ask(
        [
            "(what is|what's) (today's date|the date|the date today)?",
            "(what|which) day is (it|today)(| today)?",
            "(tell|give) me (the|today's) date",
            "what date is it(| today)?",
        ],
        ["can you tell me the date?", "do you know today's date?", "which date do we have today?"],
    )
    messages = [system(_among(words, prompt)), user(question), assistant(f"Today is {today}.")]
    return Task(messages, must=(today,))


def _among(words: Words, prompt: str) -> str:
    """The prompt, sometimes among what does not matter."""
    if words.chance(0.6):
        return prompt
    return " ".join(words.random.sample([prompt, words.pick(IDLE_PROMPTS)], 2))


def role(words: Words) -> Task:
    """Who the system prompt says it is."""
    what, name = words.role(), words.person()
    adjective = words.pick([*ADJECTIVES, "", "", ""])
    title = f"{_article(adjective or what)} {adjective} {what}".replace("  ", " ")
    named = words.chance(0.4)
    prompt = words.say(
        "You are {n}, {t}." if named else "(You are|Act as|You play|Behave like) {t}.",
        n=name,
        t=title,
    )
    question = words.ask(
        [
            "who are you?",
            "what are you?",
            "(introduce|describe) yourself",
            "(what is|what's) your (job|role)?",
            "tell me about yourself",
            "what do you do?",
        ],
        ["who exactly are you?", "please tell me who you are", "what is it that you do?"],
    )
    answer = f"I am {name}, {title}." if named else f"I am {title}."
    must = (name, what) if named else (what,)
    return Task([system(_among(words, prompt)), user(question), assistant(answer)], must=must)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def briefing(words: Words) -> Task:
    """Something else that the system prompt, or the user, says: the THING is THIS."""
    things = words.random.sample(THINGS, words.number(1, 3))
    values = [
        words.pick([words.city, words.word, lambda: str(words.number(0, 999)), words.person])()
        for _ in things
    ]
    text = " ".join(f"The {thing} is {value}." for thing, value in zip(things, values, strict=True))
    i = words.number(0, len(things) - 1)
    question = words.ask(
        ["(what is|what's|tell me) the {t}?", "do you know the {t}?"],
        ["can you tell me the {t}?", "what was the {t} again?"],
    ).replace("{t}", things[i])
    start = [system(text)] if words.chance(0.6) else [user(text), assistant("Noted.")]
    answer = f"The {things[i]} is {values[i]}."
    return Task([*start, user(question), assistant(answer)], must=(values[i],))


THINGS = [
    *(
        "password",
        "secret word",
        "code",
        "address",
        "room",
        "user's name",
        "boss",
        "price",
        "city",
        "port",
    ),
    *("owner", "key", "capital", "winner", "colour", "answer", "team", "street", "drink", "title"),
]
