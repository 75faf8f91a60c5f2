"""What the document says of outcomes, and when the run has failed."""

import pytest

from tests.conformance.clients import CLIENTS, Client
from tests.conformance.report import Comparison, cell, compare, document
from tests.conformance.run import Result

CLIENT = CLIENTS[0]


def result(outcome: str, check: str = "a check", message: str = "") -> Result:
    return Result("chat", check, outcome, message)


def comparison(proxy: str, vllm: str) -> Comparison:
    return Comparison(CLIENT, result(proxy), result(vllm))


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([], "–"),
        ([("skipped", "skipped")], "–"),
        ([("passed", "passed"), ("passed", "skipped"), ("skipped", "skipped")], "pass"),
        ([("passed", "failed")], "pass"),
        ([("failed", "failed")], "as vLLM"),
        ([("passed", "passed"), ("failed", "failed")], "1 of 2, as vLLM"),
        ([("passed", "passed"), ("failed", "passed")], "**fail**"),
        ([("failed", "failed"), ("failed", "passed")], "**fail**"),
        ([("failed", "skipped")], "**fail**"),
    ],
)
def test_a_cell_says_whose_failure_it_is(outcomes: list[tuple[str, str]], says: str) -> None:
    assert cell(comparison(*pair) for pair in outcomes) == says


def test_a_check_that_one_side_did_not_come_to_has_failed_there() -> None:
    both, lost = result("passed"), result("passed", "another check")
    of_proxy = compare(CLIENT, [both], [both, lost])
    assert [one.is_ours for one in of_proxy] == [False, True]
    of_vllm = compare(CLIENT, [both, lost], [both])
    assert [one.is_better for one in of_vllm] == [False, True]


def test_the_document_tells_what_failed_and_what_was_said() -> None:
    said = result("failed", message="a | b\n`c`" + "x" * 200)
    text = document({CLIENT.name: [Comparison(CLIENT, said, result("passed"))]})
    assert "| chat | **fail** |" in text
    assert "## Fails through the proxy only" in text
    assert f"| {CLIENT.name} | `a check` | `a \\| b 'c'xxx" in text
    assert "## Fails with vLLM too" not in text


def test_the_document_tells_what_was_not_checked_and_why() -> None:
    skipped = result("skipped", message="Skipped: there is no such model.")
    text = document({CLIENT.name: [Comparison(CLIENT, skipped, skipped)]})
    assert f"| there is no such model | {CLIENT.name}: `a check` |" in text


def test_every_client_is_told_with_its_versions() -> None:
    text = document({})
    for client in CLIENTS:
        assert isinstance(client, Client)
        assert all(version in text for version in client.versions().values())
