"""The public table of errors is the proxy's own, and each code in it is met by a test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import errors
from proxy.errors import ProxyError, VLLMError

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "proxy"
ROW = re.compile(
    r"\| (?P<status>\d{3})(?P<retry>, `Retry-After`)? \| `(?P<type>\w+)` \| (`(?P<code>\w+)`)? ?\|$"
)
Row = tuple[str | None, int, str]


def classes(base: type[ProxyError] = ProxyError) -> Iterator[type[ProxyError]]:
    for cls in base.__subclasses__():
        yield cls
        yield from classes(cls)


OWN = {(c.code, c.status, c.type) for c in classes() if c is not VLLMError}


def public() -> list[Row]:
    """The rows of the document's table that have a status of their own."""
    table = (ROOT / "docs" / "api.md").read_text().partition("## Errors")[2]
    found = [ROW.search(line) for line in table.splitlines()]
    return [(row["code"], int(row["status"]), row["type"]) for row in found if row]


def test_the_public_table_has_what_the_proxy_can_say_and_nothing_else() -> None:
    assert set(public()) == OWN
    assert len(public()) == len(set(public()))


def test_the_tree_in_the_module_is_the_classes() -> None:
    assert errors.__doc__ is not None
    lines = re.findall(r"─ (\w+) +(\d{3}) +(\w+) *(\w+)?(?:,.*)?$", errors.__doc__, re.MULTILINE)
    drawn = {(name, code or None, int(status), kind) for name, status, kind, code in lines}
    assert drawn == {
        (c.__name__, c.code, c.status, c.type) for c in classes() if c is not VLLMError
    }


def texts_asserted(path: Path) -> set[str]:
    """The texts that tests of this file hold an answer against.

    Those in an `assert`, and in the cases of a parametrized test that asserts something.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
            "test_"
        ):
            asserts = [part for part in ast.walk(node) if isinstance(part, ast.Assert)]
            for part in (*node.decorator_list, *asserts) if asserts else ():
                found |= constants(part)
    return found


def constants(node: ast.AST) -> set[str]:
    return {
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


@pytest.mark.parametrize("code", sorted(code for code, _, _ in public() if code))
def test_each_code_is_met_by_a_test(code: str) -> None:
    files = [path for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    assert any(code in texts_asserted(path) for path in files)
