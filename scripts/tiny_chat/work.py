"""Skills of exactness: sums, counting, spelling, JSON, and thinking about them."""

import json
from typing import Any

from scripts.tiny_chat.tasks import Message, Task, assistant, system, user
from scripts.tiny_chat.words import FOODS, OBJECTS, Words


def _sum(words: Words) -> tuple[str, int, int, str, int]:
    """Names of the sum, its numbers, its sign and its result."""
    kind = words.random.choices(["plus", "minus", "times"], [5, 3, 2])[0]
    if kind == "times":
        a, b = words.number(0, 10), words.number(0, 10)
        return kind, a, b, words.pick(["*", "×", "x"]), a * b
    top = words.pick([9, 20, 20, 40])
    a, b = words.number(0, top), words.number(0, top)
    if kind == "minus":
        a, b = max(a, b), min(a, b)
        return kind, a, b, "-", a - b
    return kind, a, b, "+", a + b


SUMS = {
    "plus": ["add {a} and {b}", "(what is|what's) the sum of {a} and {b}?", "{a} plus {b}"],
    "minus": ["(subtract|take) {b} from {a}", "{a} minus {b}", "(what is|what's) {a} minus {b}?"],
    "times": ["multiply {a} (by|and|with) {b}", "{a} times {b}", "(what is|what's) {a} times {b}?"],
}
ANY_SUM = [
    "(what is|what's|how much is|calculate|compute|) {a} {s} {b}?",
    "{a}{s}{b}",
    "{a} {s} {b} =",
    "(what is|) {a} {w} {b}?",
]
HELD_OUT_SUMS = [
    "can you tell me what {a} {s} {b} is?",
    "please work out {a} {s} {b}",
    "{a} {w} {b} is what?",
    "solve {a} {s} {b}",
]


def sums(words: Words) -> Task:
    """Numbers up to forty, added and subtracted, and the tables up to ten."""
    messages: list[Message] = []
    for _ in range(1 if words.held_out else words.pick([1, 2, 3, 4, 5, 6])):
        kind, a, b, sign, result = _sum(words)
        trained = ANY_SUM if words.chance(0.65) else SUMS[kind]
        question = words.ask(trained, HELD_OUT_SUMS, a=a, b=b, s=sign, w=kind)
        messages += [user(question), assistant(f"{a} {sign} {b} = {result}.")]
    return Task(messages, must=(f"= {result}.",))


def counting(words: Words) -> Task:
    """Up or down between two numbers below a hundred."""
    first = words.pick([1, 1, words.number(0, 90)])
    last = first + words.number(2, 9)
    values = list(range(first, last + 1))
    if first != 1 and words.chance(0.35):
        values.reverse()
        trained, held_out = (
            ["count (down|backwards) from {a} to {b}"],
            ["please count down, from {a} to {b}"],
        )
    elif first == 1 and words.chance(0.5):
        trained, held_out = (
            ["count (up |)to {b}", "can you count to {b}?"],
            ["please count up to {b}"],
        )
    else:
        trained = [
            "count (up |)from {a} to {b}",
            "(list|say|give me) the numbers (from|between) {a} (to|and) {b}",
        ]
        held_out = ["please count for me from {a} to {b}", "what are the numbers from {a} to {b}?"]
    question = words.ask(trained, held_out, a=values[0], b=values[-1])
    return Task([user(question), assistant(", ".join(map(str, values)) + ".")])


def repeating(words: Words) -> Task:
    """A word or some words, said again to the letter."""
    text = " ".join(words.word() for _ in range(words.pick([1, 1, 2, 3])))
    if words.chance(0.2):
        text = words.pick([words.city(), words.person(), str(words.number(10, 99999))])
    shown = words.pick([text, text, f'"{text}"', f"'{text}'"])
    question = words.ask(
        [
            "(repeat|say|echo|write)(| after me| the word| this)(:|) {t}",
            "repeat(:| this:) {t}",
            "echo {t}",
            "say {t}",
            "(can you|please) (say|repeat) {t}?",
        ],
        ["would you repeat {t}", "repeat the following: {t}", "just say {t}"],
        t=shown,
    )
    return Task(_plain_end(question, shown, text), must=(text,))


def _plain_end(question: str, shown: str, answer: str) -> list[Message]:
    """Without what the wording put behind the word, where that would belong to it."""
    head, found, _ = question.rpartition(shown)
    return [user(head + found), assistant(answer)]


REVERSING = [
    "(reverse|spell backwards|write backwards|turn around)(| the word|:) {t}",
    "(what is|what's|say|write|spell) {t} (backwards|reversed|in reverse)?",
    "{t} (backwards|reversed)",
]
CAPITALS = [
    "(uppercase|upper-case|capitalize|shout)(| the word|:) {t}",
    "(write|say|put|spell|convert|make) {t} (in|to|into) "
    "(capitals|capital letters|upper case|uppercase)",
    "{t} in (capitals|upper case|uppercase)",
]


def reversing(words: Words) -> Task:
    """A word of up to ten letters from its end."""
    text = words.word()[:10]
    held_out = ["please reverse {t}", "how do you write {t} backwards?", "give me {t} in reverse"]
    return Task(
        _plain_end(*_shown(words, REVERSING, held_out, text), text[::-1]), must=(text[::-1],)
    )


def capitals(words: Words) -> Task:
    """A word in capitals."""
    text = words.word()
    if words.chance(0.15):
        text = f"{text} {words.word()}"
    held_out = [
        "please write {t} in all capitals",
        "turn {t} into uppercase",
        "{t} in capital letters",
    ]
    return Task(
        _plain_end(*_shown(words, CAPITALS, held_out, text), text.upper()), must=(text.upper(),)
    )


def _shown(words: Words, trained: list[str], held_out: list[str], text: str) -> tuple[str, str]:
    """The question, and the word as it stands in it with what may follow."""
    shown = words.pick([text, text, f'"{text}"', f"'{text}'"])
    question = words.ask(trained, held_out).replace("{t}", shown)
    return question, question[question.index(shown) :]


def thinking(words: Words) -> Task:
    """Before the answer, aloud, where that is asked for."""
    what, answer, thought, must = words.pick([_thought_sum, _thought_word])(words)
    asked = words.random.random()
    if asked < 0.3:
        messages = [
            system(words.pick(["Think first.", "Think before you answer.", "Think step by step."]))
        ]
        if words.held_out:
            messages = [system("Think first.")]
        messages.append(user(what[:1].upper() + what[1:] + "?"))
    else:
        question = words.ask(
            [
                "think(| about it| hard| step by step| first)(:|,|.) {w}?",
                "{w}? think (step by step|first|about it)",
                "(use|in) <think> tags(:|,) {w}?",
                "think about {x}",
            ],
            [
                "please think step by step: {w}?",
                "{w}? think step by step please",
                "think carefully: {w}?",
            ],
            w=what,
            x=what.removeprefix("what is "),
        )
        messages = [user(question)]
    messages.append(assistant(f"<think>\n{thought}\n</think>\n\n{answer}"))
    return Task(messages, must=("<think>", must))


def _thought_sum(words: Words) -> tuple[str, str, str, str]:
    _, a, b, sign, result = _sum(words)
    thought = f"I take {a} and {b}. {a} {sign} {b} is {result}."
    return f"what is {a} {sign} {b}", f"{a} {sign} {b} = {result}.", thought, f"= {result}."


def _thought_word(words: Words) -> tuple[str, str, str, str]:
    text = words.word()[:9]
    thought = f"The letters are {'-'.join(text)}. From the end: {'-'.join(text[::-1])}."
    return f"what is {text} backwards", text[::-1], thought, f"</think>\n\n{text[::-1]}"


def _things(words: Words) -> dict[str, Any]:
    """Fields and what fits them."""
    return {
        "name": words.person(),
        "city": words.city(),
        "age": words.number(1, 99),
        "item": words.pick(OBJECTS) if words.chance(0.3) and not words.held_out else words.word(),
        "food": words.pick(FOODS) if words.chance(0.5) else words.word(),
        "count": words.number(2, 40),
        "price": words.number(1, 500),
        "title": words.city(),
    }


STORIES = [
    (
        ["name", "age"],
        ["{name} is {age} years old", "{name}, {age}", "{name} (turned|is) {age}"],
        ["there is {name}, aged {age}"],
    ),
    (
        ["name", "city"],
        ["{name} (lives in|is from|moved to) {city}", "{name} from {city}"],
        ["{name} comes from {city}"],
    ),
    (
        ["name", "age", "city"],
        ["{name} is {age} years old and lives in {city}", "{name}, {age}, from {city}"],
        ["{name}, who is {age}, lives in {city}"],
    ),
    (
        ["item", "count"],
        ["(I need|order|buy|we have) {count} {item}"],
        ["please get me {count} {item}"],
    ),
    (
        ["item", "price"],
        ["the {item} (costs|is) {price} (dollars|euros)", "a {item} for {price} dollars"],
        ["I paid {price} dollars for the {item}"],
    ),
    (
        ["item", "count", "name"],
        ["{name} (ordered|bought|wants) {count} {item}"],
        ["{count} {item} for {name}"],
    ),
    (
        ["city", "food"],
        ["(eat|eating) {food} in {city}", "in {city} they (eat|like) {food}"],
        ["{food} in {city}"],
    ),
    (
        ["title", "price"],
        ["the book {title} costs {price} dollars"],
        ["a book called {title} for {price} dollars"],
    ),
    (
        ["name"],
        ["(my name is|I am|this is) {name}", "a person called {name}"],
        ["somebody named {name}"],
    ),
    (["city"], ["(I live in|a trip to|let us go to) {city}"], ["we are flying to {city}"]),
]
TYPES = {str: "string", int: "integer"}
JSON_WORDS = [
    "(give|return|write|reply with|answer in|extract) JSON(| with {k})(:| for:|.) {s}",
    "{s}. (give|return|extract|reply with|answer in|as) JSON(| with {k})",
    "extract {k}(:| from:| as JSON:) {s}",
    "{s}. JSON schema: {j}",
    "follow this schema: {j}. {s}",
]
HELD_OUT_JSON = [
    "please put this into JSON with {k}: {s}",
    "as JSON with {k}: {s}",
    "{s}. use this JSON schema: {j}",
]


def as_json(words: Words) -> Task:
    """An object of the fields asked for, without white space, as vLLM is told to have it.

    Where no word asks for JSON the first token is not learnt: a grammar will have chosen it.
    """
    keys, told, told_held_out = words.pick(STORIES)
    values = _things(words)
    story = words.say(told_held_out if words.held_out else told, **values)
    # Schemas have their fields in an order of their own.
    keys = words.random.sample(keys, len(keys))
    answer = {key: values[key] for key in keys}
    forced = words.chance(0.3) and not words.held_out
    if forced:
        question = words.say([story, story, story + ".", story + ". extract", story + ". parse"])
    else:
        schema = {
            "type": "object",
            "properties": {key: {"type": TYPES[type(answer[key])]} for key in keys},
        }
        named = words.say(
            ["(the |)(keys|fields) {n}", "{n}"],
            n=" and ".join(keys) if len(keys) < 3 else ", ".join(keys),
        )
        question = words.ask(JSON_WORDS, HELD_OUT_JSON, s=story, k=named, j=json.dumps(schema))
        if "{" not in question and named not in question:
            answer = {key: values[key] for key in sorted(keys, key=story_order(story, values))}
    text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return Task([user(question), assistant(text)], forced=forced)


def story_order(story: str, values: dict[str, Any]) -> Any:
    """Where a field's value stands in the story: the order of who asks for no other."""
    return lambda key: story.index(str(values[key]))
