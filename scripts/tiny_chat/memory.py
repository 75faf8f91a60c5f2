"""The skill of memory: what the user said of themselves, turns ago or just now."""

from dataclasses import dataclass

from scripts.tiny_chat.talk import small_talk
from scripts.tiny_chat.tasks import Message, Task, assistant, user
from scripts.tiny_chat.words import COLOURS, FOODS, Words


@dataclass(frozen=True)
class Fact:
    """Something that one may say of oneself, how it is asked for, and how it is answered."""

    told: list[str]
    asked: list[str]
    asked_held_out: list[str]
    answer: str
    unknown: str


FACTS = {
    "name": Fact(
        ["(my name is|I am|I'm|call me|you can call me|this is|the name is|my name's) {v}"],
        [
            "(what is|what's|tell me|do you know|do you remember|say|repeat) my name?",
            "who am I?",
            "what am I called?",
            "what did I say my name was?",
        ],
        [
            "can you tell me my name?",
            "what was my name?",
            "remember my name?",
            "so what is my name",
        ],
        "Your name is {v}.",
        "You have not told me your name yet.",
    ),
    "place": Fact(
        [
            "I (live|am living|work) in {v}",
            "I(| just) moved to {v}",
            "I('m| am|) (from|in) {v}",
            "my (home town|city|home) is {v}",
            "I come from {v}",
        ],
        [
            "where (do I live|am I from|am I|do I come from)?",
            "(what is|what's) my (city|home|home town)?",
            "(what|which) city (do I live|am I) in?",
            "do you (know|remember) where I live?",
        ],
        ["can you tell me where I live?", "where did I say I live?", "in which city do I live?"],
        "You live in {v}.",
        "You have not told me where you live.",
    ),
    "age": Fact(
        [
            "I (am|'m) {v} years old",
            "I am {v}",
            "my age is {v}",
            "I turned {v} (today|last week|this year)",
        ],
        [
            "how old am I?",
            "(what is|what's) my age?",
            "do you (know|remember) (my age|how old I am)?",
        ],
        ["can you tell me my age?", "how old did I say I am?", "what age am I?"],
        "You are {v} years old.",
        "You have not told me your age.",
    ),
    "number": Fact(
        [
            "my (lucky|favourite|favorite|) number is {v}",
            "(remember|note|keep) the number {v}",
            "the number is {v}",
        ],
        [
            "(what is|what's) (my|the) (lucky|favourite|favorite|) number?",
            "which number did I (say|tell you)?",
            "do you (know|remember) (my|the) number?",
            "what number was it?",
        ],
        ["can you tell me the number?", "what was my number?", "tell me my lucky number"],
        "The number is {v}.",
        "You have not told me a number.",
    ),
    "colour": Fact(
        ["my (favourite|favorite) (colour|color) is {v}", "I (like|love) the (colour|color) {v}"],
        [
            "(what is|what's) my (favourite|favorite) (colour|color)?",
            "which (colour|color) do I (like|love)?",
        ],
        ["can you tell me my favourite colour?", "what colour do I like best?"],
        "Your favourite colour is {v}.",
        "You have not told me a colour.",
    ),
    "food": Fact(
        ["my (favourite|favorite) food is {v}", "I (like|love) (to eat|eating) {v}"],
        ["(what is|what's) my (favourite|favorite) food?", "what do I (like|love) to eat?"],
        ["can you tell me my favourite food?", "which food do I like?"],
        "Your favourite food is {v}.",
        "You have not told me what you like to eat.",
    ),
    "pet": Fact(
        [
            "my (pet|cat|dog|rabbit) is (called|named) {v}",
            "I have a (pet|cat|dog|rabbit) (called|named) {v}",
        ],
        [
            "(what is|what's) my (pet|cat|dog|rabbit) called?",
            "(what is|what's) the name of my (pet|cat|dog)?",
        ],
        ["what did I call my pet?", "can you tell me the name of my pet?"],
        "It is called {v}.",
        "You have not told me of a pet.",
    ),
}

TAKEN_NOTE = {
    "name": "(Nice to meet you|Hello|Pleased to meet you), {v}! 👋",
    "place": "{v} sounds like a (lovely|fine|good) place.",
    "age": "{v} is a good age.",
    "number": "I will remember {v}.",
}


def _value(words: Words, fact: str) -> str:
    made = {
        "name": words.person,
        "place": words.city,
        "age": lambda: words.number(3, 99),
        "number": lambda: words.number(0, words.pick([9, 99, 999, 9999])),
        "colour": lambda: words.pick(COLOURS) if words.chance(0.4) else words.word(),
        "food": lambda: words.pick(FOODS) if words.chance(0.4) else words.word(),
        "pet": words.person,
    }
    return str(made[fact]())


def recall(words: Words) -> Task:
    """What the user said of themselves, some turns ago or just now."""
    names = words.random.sample(sorted(FACTS), words.pick([1, 1, 2, 3]))
    if words.chance(0.5) and "name" not in names:
        names[0] = "name"
    values = {name: _value(words, name) for name in names}
    told = [words.say(FACTS[name].told, v=values[name]) for name in names]
    messages: list[Message] = []
    asked_now = words.chance(0.15)
    if asked_now or words.chance(0.4):
        messages.append(user(_joined(words, told)))
        if not asked_now:
            note = TAKEN_NOTE.get(names[0], "Noted.")
            messages.append(assistant(words.say(note, v=values[names[0]])))
    else:
        for name, text in zip(names, told, strict=True):
            note = words.say(TAKEN_NOTE.get(name, "Noted."), v=values[name])
            messages += [user(_joined(words, [text])), assistant(note)]
    if not asked_now and words.chance(0.35):
        messages += small_talk(words)
    absent = words.chance(0.1)
    name = words.pick(sorted(set(FACTS) - set(names)) if absent else names)
    fact = FACTS[name]
    question = words.ask(fact.asked, fact.asked_held_out)
    if asked_now:
        question = f"{messages.pop()['content']}. {question}"
    answer = fact.unknown if absent else words.say(fact.answer, v=values[name])
    # Of one who has told nothing.
    if absent and words.chance(0.5):
        messages = []
    if not messages and not absent and not asked_now:
        return recall(words)
    messages += [user(question), assistant(answer)]
    return Task(messages, must=(answer,) if absent else (values[name],))


def _joined(words: Words, told: list[str]) -> str:
    text = words.pick([" and ", ". ", ", ", ". "]).join(told)
    text = text[:1].upper() + text[1:] if words.chance(0.5) else text
    return (
        words.pick(["", "", "", "Hi! ", "Hello, ", "hi, ", "Hey! "])
        + text
        + words.pick(["", ".", "!"])
    )
