"""How long vLLM works on for a client that has left is measured at the engine."""

import pytest

from tests.bench.ground import ground
from tests.bench.leaving import TIMES, leaving
from tests.bench.stacks import Opened, direct

pytestmark = pytest.mark.slow


def test_each_client_that_leaves_is_noticed_by_the_engine() -> None:
    with ground() as there, direct(there) as opened:
        found = leaving("direct", opened)
    assert found.error == ""
    assert found.seconds is not None
    assert found.seconds.count == TIMES


def test_a_target_that_does_not_answer_is_told() -> None:
    found = leaving("nobody", Opened("http://127.0.0.1:9/v1", engine_url="http://127.0.0.1:9"))
    assert found.seconds is None
    assert "refused" in found.error
