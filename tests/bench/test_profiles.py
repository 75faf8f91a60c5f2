"""Own time is read from py-spy's stacks."""

from tests.bench.profiles import own_time


def test_time_belongs_to_the_innermost_function() -> None:
    text = (
        "run (asyncio/runners.py:190);send (proxy/http/sse.py:12) 30\n"
        "run (asyncio/runners.py:190);send (proxy/http/sse.py:99) 10\n"
        "run (asyncio/runners.py:190) 20\n"
        "run (asyncio/runners.py:190);send (proxy/http/sse.py:12);<genexpr> (a b.py:1) 40\n"
    )
    assert own_time(text) == (
        100,
        [
            ("send (proxy/http/sse.py)", 0.4),
            ("<genexpr> (a b.py)", 0.4),
            ("run (asyncio/runners.py)", 0.2),
        ],
    )
