"""The skill of tools: calls whose arguments are copied from the request, only where a tool fits."""

import json
from typing import Any

from scripts.tiny_chat.memory import recall
from scripts.tiny_chat.other_tools import NAMES, Tool, other_request, tool
from scripts.tiny_chat.talk import small_talk
from scripts.tiny_chat.tasks import Message, Task, assistant, call, user
from scripts.tiny_chat.words import Words
from scripts.tiny_chat.work import sums

PLACES = [
    "weather",
    "time",
    "forecast",
    "temperature",
    "traffic",
    "population",
    "news",
    "tide",
    "currency",
    "holidays",
]
HELD_OUT_THINGS = ["elevation", "pollen", "sunset", "mayor", "language"]
PLACE_NAMES = ["city", "location", "place", "town"]
OTHER_NAMES = ["name", "id", "query", "text", "subject", "key", "item", "user", "title"]
PREFIXES = ["get", "find", "fetch", "show", "lookup", "read", "get_current"]


class Request:
    """Something that may be asked of one tool, how it is asked, and the call that it wants."""

    def __init__(self, made: Tool, asked: list[str], held_out: list[str], thing: str) -> None:
        self.tool = made
        self.name = str(made["function"]["name"])
        self.asked = asked
        self.held_out = held_out
        self.thing = thing


def lookup(words: Words) -> Request:
    """A tool that finds the THING of a VALUE: most tools are like that."""
    of_place = words.chance(0.6)
    if words.held_out and words.chance(0.5):
        thing = words.pick(HELD_OUT_THINGS)
    elif words.chance(0.45):
        thing = words.pick(PLACES)
    else:
        thing = words.syllables()
    if words.chance(0.25) and not words.held_out:
        thing = "weather"
    known = words.pick(PLACE_NAMES if of_place or thing == "weather" else OTHER_NAMES)
    shape = words.random.choices(["{p}_{t}", "{t}", "get{T}"], [12, 3, 1])[0]
    name = words.say(shape, p=words.pick(PREFIXES), t=thing, T=thing.title())
    properties = {known if words.chance(0.85) else words.syllables(): "string"}
    optional: tuple[str, ...] = ()
    if words.chance(0.2):
        optional = (words.pick(["unit", "units", "lang", "limit", "format"]),)
        properties |= dict.fromkeys(optional, "string")
    asked = [
        "(what is|what's|show|tell me|give me|get|find|check|look up|get me) the {t} "
        "(in|for|of|at|near) {v}?",
        "{t} (in|for|of) {v}(|?)",
        "(how is|how's) the {t} in {v}?",
        "(what is|what's) the {t} (in|of) {v} (today|now|right now|tomorrow)?",
        "I (need|want) (|to know )the {t} (of|for|in) {v}",
    ]
    if thing == "weather":
        asked += [
            "(is it raining|will it rain|is it sunny|is it cold|how warm is it) in {v}?",
            "(what is|what's) the weather like in {v}(| today)?",
        ]
    held_out = [
        "can you tell me the {t} in {v}?",
        "please find the {t} for {v}",
        "do you know the {t} in {v}?",
    ]
    return Request(tool(name, properties, optional), asked, held_out, thing)


def _value(words: Words) -> str:
    value = words.city() if words.chance(0.7) else words.person()
    return value if words.held_out or words.chance(0.9) else str(words.number(1, 9999))


def _others(words: Words, besides: list[Tool]) -> list[Tool]:
    """The tools, and sometimes some more that do not fit."""
    names = {one["function"]["name"] for one in besides}
    more = [
        lookup(words).tool if words.chance(0.6) else other_request(words)[0]
        for _ in range(words.pick([0, 0, 1, 1, 2]))
    ]
    fit = NAMES if names & NAMES else set()
    more = [one for one in more if one["function"]["name"] not in names | fit]
    unique = {one["function"]["name"]: one for one in more}
    return words.random.sample([*besides, *unique.values()], len(besides) + len(unique))


def _called(words: Words) -> tuple[list[Tool], str, list[dict[str, Any]], list[str]]:
    """Tools, a request, its one call, and what its result is called."""
    if words.chance(0.3):
        made, question, arguments, thing = other_request(words)
        return [made], question, [call(str(made["function"]["name"]), arguments)], [thing]
    request, value = lookup(words), _value(words)
    question = words.ask(request.asked, request.held_out, t=request.thing, v=value)
    key = next(iter(request.tool["function"]["parameters"]["properties"]))
    return (
        [request.tool],
        question,
        [call(request.name, {key: value})],
        [f"{request.thing} in {value}"],
    )


def _called_twice(words: Words) -> tuple[list[Tool], str, list[dict[str, Any]], list[str]]:
    """The same of two values, or two things of one or two values."""
    one, first, second = lookup(words), _value(words), _value(words)
    other = one if words.chance(0.6) else lookup(words)
    if other.thing == one.thing:
        other = one
        question = words.ask(
            [
                "(what is|what's|show|tell me|get|compare|check) the {t} in {v} and(| in) {w}?",
                "{t} in {v} and {w}",
                "{t} (in|for) {v} and (in|for) {w}",
            ],
            ["can you tell me the {t} in {v} and in {w}?", "please find the {t} for {v} and {w}"],
            t=one.thing,
            v=first,
            w=second,
        )
    else:
        second = first if words.chance(0.4) else second
        question = words.ask(
            [
                "(what is|what's|show|tell me|get|check) the {t} in {v} and the {u} in {w}?",
                "{t} in {v} and {u} in {w}",
            ],
            ["can you tell me the {t} in {v} and the {u} in {w}?"],
            t=one.thing,
            u=other.thing,
            v=first,
            w=second,
        )
    calls, things = [], []
    for request, value in ((one, first), (other, second)):
        key = next(iter(request.tool["function"]["parameters"]["properties"]))
        calls.append(call(request.name, {key: value}))
        things.append(f"{request.thing} in {value}")
    return [one.tool] if other is one else [one.tool, other.tool], question, calls, things


def _result(words: Words) -> tuple[str, str]:
    """What a tool answers, and the same in a sentence."""
    number = words.number(-20, 40) if words.chance(0.5) else words.number(0, 9999)
    word = (
        words.pick(["sunny", "cloudy", "rainy", "windy", "snow", "fog"])
        if words.chance(0.4)
        else words.word()
    )
    key, other = words.random.sample(
        ["celsius", "temperature", "result", "value", "sky", "status", "text", "answer"], 2
    )
    return words.pick(
        [
            (f"{word}, {number} degrees", f"{word}, {number} degrees"),
            (str(number), str(number)),
            (word, word),
            (json.dumps({key: number}), f"{key} {number}"),
            (json.dumps({key: word}), f"{key} {word}"),
            (json.dumps({key: number, other: word}), f"{key} {number}, {other} {word}"),
        ]
    )


def calling(words: Words) -> Task:
    """One call, its arguments copied."""
    tools, question, calls, _ = _called(words)
    return _task(words, tools, question, calls)


def calling_twice(words: Words) -> Task:
    """Two calls in one answer."""
    tools, question, calls, _ = _called_twice(words)
    return _task(words, tools, question, calls)


def _task(words: Words, tools: list[Tool], question: str, calls: list[dict[str, Any]]) -> Task:
    tools = _others(words, tools)
    before = small_talk(words) if words.chance(0.12) else []
    if len(calls) == 1 and words.chance(0.12) and not words.held_out:
        return _forced(words, tools, question, calls[0]["function"])
    return Task([*before, user(question), {**assistant(""), "tool_calls": calls}], tools=tools)


def _forced(words: Words, tools: list[Tool], question: str, wanted: dict[str, Any]) -> Task:
    """What a grammar makes of it where the tool, or some tool, has to be called."""
    body: Any = wanted["arguments"]
    if words.chance(0.4):
        body = [{"name": wanted["name"], "parameters": body}]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Task([user(question), assistant(text)], tools=tools, forced=True)


def after_tools(words: Words) -> Task:
    """The sentence that uses what one tool or two have answered."""
    tools, question, calls, things = (_called_twice if words.chance(0.3) else _called)(words)
    messages: list[Message] = [user(question), {**assistant(""), "tool_calls": calls}]
    said, must = [], []
    for thing in things:
        result, told = _result(words)
        messages.append({"role": "tool", "content": result})
        said.append(f"The {thing}: {told}.")
        must.append(told)
    return Task(
        [*messages, assistant(" ".join(said))], must=tuple(must), tools=_others(words, tools)
    )


NO_TOOL = "I have no tool for that. 🧰"


def without_tools(words: Words) -> Task:
    """Tools are there, but the request is for none of them."""
    tools = _others(words, [lookup(words).tool])
    things = {str(one["function"]["name"]) for one in tools}
    asked = words.random.random()
    if asked < 0.45:
        return Task(small_talk(words), tools=tools)
    if asked < 0.6 and not things & NAMES:
        task = words.pick([recall, sums])(words)
        return Task(task.messages, task.must, tools)
    request = lookup(words)
    while any(request.thing.lower() in name.lower() for name in things):
        request = lookup(words)
    question = words.ask(request.asked[:1], request.held_out, t=request.thing, v=_value(words))
    return Task([user(question), assistant(NO_TOOL)], tools=tools)
