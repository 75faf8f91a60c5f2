"""Tools that do something: send, add, book, search, open, travel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.tiny_chat.words import Words

Tool = dict[str, Any]


def tool(name: str, properties: dict[str, str], optional: tuple[str, ...] = ()) -> Tool:
    """A tool as a request describes it; `properties` are names and JSON types."""
    required = [key for key in properties if key not in optional]
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": required,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema}}


@dataclass(frozen=True)
class Kind:
    """Tools for the same requests, by name and parameters, and the requests with their places."""

    tools: list[tuple[str, tuple[str, ...]]]
    asked: list[str]
    held_out: list[str]


KINDS = {
    "message": Kind(
        [
            ("send_message", ("to", "text")),
            ("send_email", ("recipient", "body")),
            ("text_person", ("name", "message")),
        ],
        [
            "(send|write|text) {0} (the message|a message saying|) {1}",
            "(tell|message|text) {0}(:|) {1}",
        ],
        ["please send {0} the message {1}"],
    ),
    "numbers": Kind(
        [("add", ("a", "b")), ("add_numbers", ("x", "y")), ("sum", ("first", "second"))],
        ["(what is|add|) {0} (plus|and|+) {1}", "(what is|what's|) {0} + {1}?"],
        ["please add {0} and {1}"],
    ),
    "times": Kind(
        [("multiply", ("a", "b")), ("multiply_numbers", ("x", "y"))],
        ["multiply {0} (by|and|with) {1}", "(what is|what's|) {0} (times|*) {1}?"],
        ["please multiply {0} by {1}"],
    ),
    "table": Kind(
        [
            ("book_table", ("restaurant", "guests")),
            ("reserve", ("place", "people")),
            ("book_room", ("hotel", "nights")),
        ],
        ["(book|reserve) {0} for {1}(| people| guests| nights)"],
        ["please make a booking at {0} for {1}"],
    ),
    "search": Kind(
        [
            ("search", ("query",)),
            ("web_search", ("query",)),
            ("search_web", ("q",)),
            ("search_docs", ("text",)),
        ],
        ["(search|search the web|look|google) for {0}", "find (pages|something) about {0}"],
        ["please search for {0}"],
    ),
    "file": Kind(
        [
            ("read_file", ("path",)),
            ("open_file", ("filename",)),
            ("delete_file", ("path",)),
            ("open", ("name",)),
        ],
        ["(read|open|delete|show)(| me)(| the file) {0}"],
        ["please read the file {0}"],
    ),
    "trip": Kind(
        [
            ("find_route", ("start", "end")),
            ("find_flights", ("origin", "destination")),
            ("book_train", ("from", "to")),
        ],
        [
            "(route|find flights|how do I get|a train|a flight) from {0} to {1}",
            "(get|travel|fly|go) from {0} to {1}",
        ],
        ["please plan a trip from {0} to {1}"],
    ),
}

NAMES = {name for kind in KINDS.values() for name, _ in kind.tools}


def other_request(words: Words) -> tuple[Tool, str, dict[str, Any], str]:
    """Another kind of tool: it, a request for it, the arguments and what its result is called."""
    name_of_kind = words.pick(sorted(KINDS))
    kind = KINDS[name_of_kind]
    name, keys = words.pick(kind.tools)
    values = _values(words, name_of_kind)
    arguments = dict(zip(keys, values, strict=True))
    types = {
        key: "integer" if isinstance(value, int) else "string" for key, value in arguments.items()
    }
    question = words.ask(kind.asked, kind.held_out)
    for i, value in enumerate(values):
        question = question.replace(f"{{{i}}}", str(value))
    return tool(name, types), question.rstrip("!."), arguments, f"result of {name}"


def _values(words: Words, kind: str) -> tuple[str | int, ...]:
    """What stands in the places of a request of this kind."""
    made: dict[str, Callable[[], tuple[str | int, ...]]] = {
        "message": lambda: (
            words.person(),
            " ".join(words.word() for _ in range(words.number(1, 3))),
        ),
        "numbers": lambda: (words.number(0, 999), words.number(0, 99)),
        "times": lambda: (words.number(0, 99), words.number(0, 99)),
        "table": lambda: (words.city(), words.number(1, 12)),
        "search": lambda: (words.pick([words.city, words.word, words.person])(),),
        "file": lambda: (words.word() + words.pick([".txt", ".py", ".md", ".json", ""]),),
        "trip": lambda: (words.city(), words.city()),
    }
    return made[kind]()
