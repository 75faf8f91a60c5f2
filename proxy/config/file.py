"""The configuration file as text: read within bounds, and its mistakes told with their lines."""

import operator
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.config.mistakes import did_you_mean, reason
from proxy.config.settings import Settings, environment_name
from proxy.config.values import printable

MAX_FILE_BYTES = 1_000_000
"""Some thousand models."""
MAX_REASONS = 20
CURLY_QUOTES = "“”„‘’‚"

Fields = Callable[[Sequence[str]], Iterable[str]]
"""The names that may stand where one does, given as the names that lead to it."""


class ConfigError(Exception):
    """The configuration cannot be used; each reason names the file, the line and what to do."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = [printable(reason) for reason in reasons]
        super().__init__("; ".join(self.reasons))


class Misplaced(ValueError):
    """A reason, and the place in the file that it is about."""

    def __init__(self, reason: str, *place: str) -> None:
        super().__init__(reason)
        self.place = place


class ConfigFile:
    """One file, read once; raises ConfigError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = _text(path)

    def parsed(self) -> dict[str, Any]:
        """What it holds, unchecked; raises ConfigError if it is not TOML."""
        try:
            return tomllib.loads(self._text)
        except RecursionError:
            raise ConfigError(f"{self._path}: lists or tables are nested too deep") from None
        except ValueError as exc:  # tomllib's own error, or a number of more than 4,300 digits
            message, _, place = str(exc).partition(" (at ")
            number = re.match(r"line (\d+)", place)
            lines = self._text.split("\n")
            line = int(number[1]) if number else len(lines)
            hint = _syntax_hint("".join(lines[line - 1 : line]))
            raise ConfigError(f"{self._path}, line {line}: {message}{hint}") from None

    def sentence(self, place: Sequence[str], reason: str) -> str:
        """A mistake, with the file, the line and the name it is about."""
        return f"{self._path}, line {_line(self._text, place)}: {'.'.join(place)}: {reason}"

    def explained(self, exc: ValidationError, fields: Fields) -> list[str]:
        """One sentence for each mistake in the tables."""
        errors = exc.errors(include_url=False)
        split = {error["loc"][:-1] for error in errors if _is_split_name(error)}
        sentences = []
        for error in errors:
            if error["type"] == "missing" and error["loc"][:-1] in split:
                continue  # the table is a part of another one's name
            place, number = _place(error)
            cause = error.get("ctx", {}).get("error")
            if isinstance(cause, Misplaced):
                place = cause.place
            sentences.append(self.sentence(place, number + _reason(error, fields)))
        left_out = len(sentences) - MAX_REASONS
        more = [f"{self._path}: and {left_out} more"] if left_out > 0 else []
        return sentences[:MAX_REASONS] + more


def _text(path: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: it cannot be read, or is no file that a configuration can be in.
    """
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():  # a pipe could be read only once, or never ends
            raise ConfigError(f"PROXY_CONFIG: {path} is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"PROXY_CONFIG: {path} is larger than {MAX_FILE_BYTES:,} bytes")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}, line {line}: not text in UTF-8; save it as that") from None
    except (OSError, RuntimeError) as exc:  # the latter for a `~` without a home
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"PROXY_CONFIG: {path} cannot be read: {reason}") from None


def _syntax_hint(line: str) -> str:
    """What was probably meant by a line that is not TOML, as the end of a sentence."""
    line = line.strip()
    table = re.match(r"\[+\s*(endpoints|models|keys)\s*\.\s*([^\"'\]]+?)\s*\]", line)
    if table and not re.fullmatch(r"[\w-]+", table[2], re.ASCII):
        name = table[2].strip(CURLY_QUOTES)
        return f'; write a name like this in quotation marks: [{table[1]}."{name}"]'
    if field := re.match(r"([\w.-]+)\s*:\s", line):
        return f"; write {field[1]} = in place of {field[1]}:"
    if re.match(r"[\w.-]+[/:@][^\s\"'=]*\s*=", line):
        return "; a name with other signs than letters, digits, - and _ stands in quotation marks"
    if re.match(r"[\w.-]+\s*=\s*[^\"'\[{\d\s]", line):
        return '; a text stands in straight quotation marks, as in "this"'
    return ""


def _place(error: ErrorDetails) -> tuple[tuple[str, ...], str]:
    """The names that lead to a mistake, and which entry of a list it is in."""
    parts = [part for part in error["loc"] if part != "[key]"]
    if parts[2:3] == ["fallback"]:
        del parts[3:4]  # pydantic's name of the kind of fallback
    number = "".join(f"number {part + 1}: " for part in parts if isinstance(part, int))
    return tuple(part for part in parts if isinstance(part, str)), number


def _reason(error: ErrorDetails, fields: Fields) -> str:
    place, _ = _place(error)
    if error["type"] == "missing" and place == ("endpoints",):
        return "required: name at least one, as in [endpoints.chat]"
    if error["type"] == "dict_type" and isinstance(error["input"], list):
        return f"write [{place[0]}.NAME] with single brackets, one table for each"
    if error["type"] != "extra_forbidden":
        return reason(error)
    if _is_split_name(error):
        name = ".".join([*place[1:], *_inner_names(error["input"])])
        return f'a name with a dot stands in quotation marks: [{place[0]}."{name}"]'
    if len(place) == 1 and place[0] in Settings.model_fields:
        return f"not in this file: it is the environment variable {environment_name(place[0])}"
    kind = "table" if len(place) == 1 else "field"
    return f"there is no such {kind}{did_you_mean(place[-1], fields(place))}"


def _is_split_name(error: ErrorDetails) -> bool:
    """Whether a table's name with a dot was read as two names."""
    is_inner = error["type"] == "extra_forbidden" and len(error["loc"]) == 3
    return is_inner and isinstance(error["input"], dict)


def _inner_names(table: Any) -> list[str]:
    """The names of tables that hold nothing but one table."""
    names = []
    while isinstance(table, dict) and len(table) == 1:
        ((name, table),) = table.items()
        if isinstance(table, dict):
            names.append(name)
    return names


def _line(text: str, place: Sequence[str]) -> int:
    """The first of the lines that come closest to a place; 1 if none does."""
    found, closest, table = 1, 0, list[str]()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("["):
            here = table = _keys(line)
        else:
            here = table + _keys(line.partition("=")[0] + "= 0")
        close = sum(takewhile(bool, map(operator.eq, here, place)))
        if close > closest:
            found, closest = number, close
    return found


def _keys(line: str) -> list[str]:
    """The dotted name in a line of TOML; none if there is no name in it."""
    try:
        inner: Any = tomllib.loads(line)
    except (ValueError, RecursionError):
        return []
    keys = []
    while isinstance(inner, dict) and inner:
        ((key, inner),) = inner.items()
        keys.append(key)
    return keys
