"""Whatever JSON a worker or RunPod says, it becomes an answer or one of the proxy's errors."""

import re
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api.answer import Head
from proxy.api.dialects import CHAT, MESSAGES, RESPONSES, Dialect, StreamContext
from proxy.backends.health import Health
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.runpod.endpoint import JobState, JobStatus, StreamPage, job_id_of
from proxy.backends.runpod.failure import error_from
from proxy.backends.runpod.wire import FrameReader, ObjectReader, PieceReader, reader_for
from proxy.backends.starts import Starts
from proxy.errors import ProxyError

pytestmark = pytest.mark.slow

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(categories=["Cs", "Cc"]), max_size=5)
    | st.sampled_from(["error", "[DONE]", "data: [DONE]\n\n", "COMPLETED", "text/event-stream"])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "object", "id", "output"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ANYTHING = JSON | st.sampled_from([nested(700), {"a": nested(700)}, 10**1000])


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Good values, and now and then anything else."""
    return st.integers(0, 5).flatmap(lambda n: strategy if n else ANYTHING)


FRAME = st.fixed_dictionaries(
    {"seq": mostly(st.integers(0, 5))},
    optional={
        "status": mostly(st.integers(90, 610)),
        "content_type": mostly(
            st.sampled_from(
                ["text/event-stream", "application/json", "a/b\n", "", "é/x", "x" * 999]
            )
        ),
        "text": mostly(st.text(max_size=30)),
        "base64": mostly(st.sampled_from(["", "AAAA", "?"])),
        "headers": mostly(
            st.dictionaries(st.sampled_from(["metadata", "Retry-After", "x"]), mostly(st.text()))
        ),
        "models": mostly(st.lists(mostly(st.fixed_dictionaries({"id": mostly(st.text())})))),
        "run": mostly(st.sampled_from(["a", "b"])),
        "end": mostly(st.booleans()),
    },
)
OUTPUTS = st.lists(mostly(FRAME), max_size=8)
DIALECTS = st.sampled_from([CHAT, RESPONSES, MESSAGES])


def check_head(head: Head | None) -> None:
    """It can be sent as it is."""
    if head is not None:
        assert 200 <= head.status <= 599
        for value in (head.content_type, *head.headers.values()):
            assert value.isascii()
            assert value.isprintable()
        assert all(isinstance(model["id"], str) for model in head.models)


@given(polls=st.lists(OUTPUTS, max_size=4), aggregate=OUTPUTS | ANYTHING)
def test_any_frames_give_an_answer_or_an_error(polls: list[list[Any]], aggregate: Any) -> None:
    reader = FrameReader()
    with suppress(ProxyError):
        for outputs in polls:
            assert isinstance(reader.feed(outputs), bytes)
            check_head(reader.head)
        assert isinstance(reader.complete(aggregate), bytes)
        assert reader.head is not None
    check_head(reader.head)


@given(
    outputs=st.lists(ANYTHING | FRAME, min_size=1, max_size=5),
    aggregate=ANYTHING,
    wants_stream=st.booleans(),
    dialect=DIALECTS,
)
def test_any_outputs_give_an_answer_or_an_error(
    outputs: list[Any], aggregate: Any, wants_stream: bool, dialect: Dialect
) -> None:
    with suppress(ProxyError):
        reader = reader_for(outputs[0], wants_stream=wants_stream, ends=dialect.ends)
        assert isinstance(reader.feed(outputs), bytes)
        assert isinstance(reader.complete(aggregate), bytes)
        check_head(reader.head)


@pytest.mark.parametrize("reader", [PieceReader(CHAT.ends), ObjectReader()])
@given(outputs=st.lists(ANYTHING, max_size=5))
def test_any_aggregate_gives_an_answer_or_an_error(
    reader: PieceReader | ObjectReader, outputs: list[Any]
) -> None:
    with suppress(ProxyError):
        assert isinstance(reader.complete(outputs), bytes)


@given(
    error=ANYTHING
    | JSON.map(str)
    | JSON.map(lambda value: str({"message": value}))
    | st.builds("vLLM returned HTTP {}: {}".format, st.integers(0, 999), st.text()).map(
        lambda message: str({"message": message})
    )
    | st.fixed_dictionaries({"error": ANYTHING}).map(str)
    | st.fixed_dictionaries({"message": ANYTHING, "code": st.integers(0, 999) | ANYTHING})
)
def test_any_reason_of_a_failed_job_is_an_error_that_can_be_sent(error: Any) -> None:
    found = error_from(error)
    assert 400 <= found.status <= 599
    for dialect in (CHAT, RESPONSES, MESSAGES):
        error = msgspec.json.decode(dialect.body(found, "req_1"))["error"]
        assert isinstance(error["message"], str)
        assert dialect.error(found, StreamContext("req_1", "m")).endswith(b"\n\n")


@given(
    answer=st.fixed_dictionaries(
        {},
        optional={
            "status": ANYTHING | st.sampled_from(["COMPLETED", "IN_QUEUE"]),
            "stream": ANYTHING | st.lists(st.fixed_dictionaries({"output": ANYTHING}) | ANYTHING),
            "output": ANYTHING,
            "error": ANYTHING,
            "delayTime": ANYTHING,
            "executionTime": ANYTHING,
            "id": ANYTHING,
            "jobs": ANYTHING | st.fixed_dictionaries({"inQueue": ANYTHING}),
            "workers": ANYTHING | st.fixed_dictionaries({"ready": ANYTHING, "idle": ANYTHING}),
        },
    )
)
def test_any_object_of_runpods_is_read_or_refused(answer: dict[str, Any]) -> None:
    with suppress(ProxyError):
        page = StreamPage.of(answer)
        assert isinstance(page.status, JobStatus)
        assert isinstance(page.outputs, list)
    with suppress(ProxyError):
        assert re.fullmatch(r"\w[\w.:~-]{0,199}", job_id_of(answer), re.ASCII)
    state = JobState.of(answer)
    assert isinstance(state.status, JobStatus)
    for value in (state.delay_ms, state.execution_ms):
        assert value is None or type(value) is int
    HealthMonitor("ep", never, Starts("ep", pause_seconds=1)).observe(Health.of(answer), 0.0)


async def never() -> dict[str, Any]:
    return {}
