"""What settings change in answers, and that nothing else changes."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api.rewriting import MAX_HELD_BYTES, Rewriter
from tests.proxy.conftest import chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import value
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
HEAD = {"seq": 0, "status": 200, "content_type": "text/event-stream"}
PATIENT = {"first_byte_hold_seconds": 30}  # no comment comes before the answer
BOTH = pytest.mark.parametrize("settings", [PATIENT | {"reasoning_fields": "both"}], indirect=True)
COUNTED = pytest.mark.parametrize("settings", [PATIENT | {"count_tokens": True}], indirect=True)


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def plain(text: str) -> list[dict[str, Any]]:
    return [HEAD | {"content_type": "application/json", "text": text, "end": True}]


@BOTH
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_told_under_both_names(
    client: httpx.Client, runpod: ScriptedRunPod, name: str
) -> None:
    odd = 'data: {"choices":[{"index":0,"delta":{"content":"a \\"reasoning\\" b"}}],  "x":1.50}\n\n'
    told = event(**delta(**{name: "hm 🤔"})) + odd + "data: [DONE]\n\n"
    runpod.script = [Page("COMPLETED", [HEAD | {"text": told, "end": True}])]
    text = client.post(CHAT, json=chat(stream=True)).text
    first, *rest = text.split("\n\n")
    changed = json.loads(first.removeprefix("data: "))["choices"][0]["delta"]
    assert changed == {"reasoning": "hm 🤔", "reasoning_content": "hm 🤔"}
    assert "\n\n".join(rest) == odd + "data: [DONE]\n\n"
    message = {"choices": [{"message": {"content": "x", name: "hm"}}]}
    runpod.reset()
    runpod.script = [Page("COMPLETED", plain(json.dumps(message)))]
    answer = client.post(CHAT, json=chat()).json()
    assert answer["choices"][0]["message"] == {
        "content": "x",
        "reasoning": "hm",
        "reasoning_content": "hm",
    }


@BOTH
@pytest.mark.parametrize(
    "told",
    [
        'data:{"choices":[{"index":0,"delta":{"reasoning":"hm"}}]}\n\n',
        'data: {"choices":[{"index":0,\ndata: "delta":{"reasoning":"hm"}}]}\n\n',
        'id: 1\ndata:{"choices":[{"index":0,"delta":{"reasoning":"hm"}}]}\nretry: 5\n\n',
    ],
)
def test_an_event_is_changed_however_its_lines_are_written(
    client: httpx.Client, runpod: ScriptedRunPod, told: str
) -> None:
    text = told + "data: [DONE]\n\n"
    runpod.script = [Page("COMPLETED", [HEAD | {"text": text, "end": True}])]
    first, done, _ = client.post(CHAT, json=chat(stream=True)).text.split("\n\n")
    delta = json.loads(first.removeprefix("data: "))["choices"][0]["delta"]
    assert delta == {"reasoning": "hm", "reasoning_content": "hm"}
    assert done == "data: [DONE]"


@COUNTED
def test_usage_is_kept_from_who_did_not_ask_for_it_without_a_blank_after_data(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    text = STREAM.replace("data: ", "data:")
    runpod.script = [Page("COMPLETED", [HEAD | {"text": text, "end": True}])]
    shown = client.post(CHAT, json=chat(stream=True)).text
    assert shown == text.replace(LAST.replace("data: ", "data:"), "")


@BOTH
@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"reasoning": "hm", "reasoning_content": ""}, "hm"),
        ({"reasoning": "", "reasoning_content": "hm"}, "hm"),
        ({"reasoning": None, "reasoning_content": "hm"}, "hm"),
        ({"reasoning": "hm", "reasoning_content": None}, "hm"),
        ({"reasoning": "one", "reasoning_content": "another"}, "one"),
        ({"reasoning": "", "reasoning_content": None}, ""),
    ],
)
def test_both_names_have_the_same_text_whatever_each_had(
    client: httpx.Client, runpod: ScriptedRunPod, said: dict[str, Any], text: str
) -> None:
    events = event(**delta(content="x", **said)) + "data: [DONE]\n\n"
    runpod.script = [Page("COMPLETED", [HEAD | {"text": events, "end": True}])]
    first = client.post(CHAT, json=chat(stream=True)).text.partition("\n\n")[0]
    changed = json.loads(first.removeprefix("data: "))["choices"][0]["delta"]
    assert changed == {"content": "x", "reasoning": text, "reasoning_content": text}


USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
LAST = event(choices=[], usage=USAGE)
STREAM = event(**delta(content="hi")) + LAST + "data: [DONE]\n\n"


@COUNTED
@pytest.mark.parametrize(
    ("options", "asked", "is_shown"),
    [
        (None, {"include_usage": True}, False),
        ({"include_usage": False}, {"include_usage": True}, False),
        ({"include_usage": True}, {"include_usage": True}, True),
        ({"x": 1}, {"x": 1, "include_usage": True}, False),
        (
            {"continuous_usage_stats": True},
            {"continuous_usage_stats": False, "include_usage": True},
            False,
        ),
    ],
)
def test_usage_is_counted_and_shown_only_to_who_asked(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    options: dict[str, Any] | None,
    asked: dict[str, Any],
    is_shown: bool,
) -> None:
    runpod.script = [Page("COMPLETED", [HEAD | {"text": STREAM, "end": True}])]
    fields = {} if options is None else {"stream_options": options}
    text = fresh_client.post(CHAT, json=chat(stream=True, **fields)).text
    assert text == (STREAM if is_shown else STREAM.replace(LAST, ""))
    assert runpod.jobs[0]["input"]["openai_input"]["stream_options"] == asked

    def counted(direction: str) -> float:
        return value(fresh_client, "proxy_tokens_total", model="m", direction=direction)

    wait_until(lambda: (counted("in"), counted("out")) == (7, 5))


@COUNTED
@pytest.mark.parametrize(
    "options",
    [
        [],
        "x",
        0,
        False,
        [1],
        {"include_usage": []},
        {"include_usage": "no"},
        {"continuous_usage_stats": "x"},
        {"include_usage": False, "continuous_usage_stats": 3},
        {"x" * 20_000: 1},
    ],
)
def test_stream_options_that_vllm_refuses_or_reads_in_its_own_way_reach_it_as_they_are(
    client: httpx.Client, runpod: ScriptedRunPod, options: Any
) -> None:
    runpod.script = [Page("COMPLETED", [HEAD | {"text": STREAM, "end": True}])]
    body = chat(stream=True, stream_options=options)
    assert client.post(CHAT, json=body).text == STREAM
    assert runpod.jobs[0]["input"]["openai_input"] == body


def said_by_vllm(**fields: Any) -> str:
    """As vLLM writes it: without blanks, and with nothing that is unset."""
    return f"data: {json.dumps({'id': 'chatcmpl-1'} | fields, separators=(',', ':'))}\n\n"


def chunk(index: int, content: str, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": None}
    return {"choices": [choice | fields]}


BEGINNING = said_by_vllm(**chunk(0, "hi")) + said_by_vllm(**chunk(1, "ho"))
ENDS = [chunk(0, "", finish_reason="stop"), chunk(1, "", finish_reason="length")]
PRINT = {"system_fingerprint": "vllm-0.32.0-abc"}
DONE = "data: [DONE]\n\n"


@COUNTED
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_stream_whose_usage_is_counted_keeps_its_fingerprint_where_it_would_be(
    client: httpx.Client, runpod: ScriptedRunPod, is_cut: bool
) -> None:
    between = said_by_vllm(**chunk(1, "ho"))
    usage = said_by_vllm(choices=[], usage=USAGE, **PRINT)
    said = [BEGINNING, said_by_vllm(**ENDS[0]), between, said_by_vllm(**ENDS[1]), usage, DONE]
    texts = said if is_cut else ["".join(said)]
    frames: list[dict[str, Any]] = [{"seq": n, "text": text} for n, text in enumerate(texts)]
    frames[0] |= HEAD
    frames[-1]["end"] = True
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in frames]
    text = client.post(CHAT, json=chat(stream=True)).text
    ends = [said_by_vllm(**end, **PRINT) for end in ENDS]
    assert text == "".join([BEGINNING, between, *ends, DONE])


@COUNTED
@pytest.mark.parametrize(
    "rest",
    [
        DONE,
        said_by_vllm(choices=[], usage=USAGE) + DONE,
        said_by_vllm(error={"message": "engine died"}) + DONE,
        "",
    ],
)
def test_a_stream_that_ends_without_a_fingerprint_loses_no_chunk(
    client: httpx.Client, runpod: ScriptedRunPod, rest: str
) -> None:
    text = BEGINNING + said_by_vllm(**ENDS[0])
    runpod.script = [Page("COMPLETED", [HEAD | {"text": text + rest, "end": True}])]
    answer = client.post(CHAT, json=chat(stream=True)).text
    assert answer == text + rest.replace(said_by_vllm(choices=[], usage=USAGE), "")


@COUNTED
def test_a_stream_that_breaks_off_shows_what_was_held_back_before_its_error(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    text = BEGINNING + said_by_vllm(**ENDS[0])
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": text}]), Page("FAILED")]
    answer = client.post(CHAT, json=chat(stream=True)).text
    assert answer.startswith(text + 'data: {"error":')


@COUNTED
def test_a_fingerprint_in_every_chunk_stays_there(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    text = said_by_vllm(**chunk(0, "hi"), **PRINT) + said_by_vllm(**ENDS[0], **PRINT)
    usage = said_by_vllm(choices=[], usage=USAGE, **PRINT)
    frame = HEAD | {"text": text + usage + DONE, "end": True}
    runpod.script = [Page("COMPLETED", [frame])]
    assert client.post(CHAT, json=chat(stream=True)).text == text + DONE


@COUNTED
@pytest.mark.parametrize(
    ("path", "usage", "counts"),
    [
        (CHAT, USAGE, (7, 5)),
        ("/v1/embeddings", {"prompt_tokens": 7, "total_tokens": 7}, (7, 0)),
        ("/v1/messages", {"input_tokens": 3, "output_tokens": 4}, (3, 4)),
        ("/v1/responses", {"input_tokens": 3, "output_tokens": 4}, (3, 4)),
    ],
)
def test_a_plain_answer_is_counted_and_not_changed(
    fresh_client: httpx.Client,
    runpod: ScriptedRunPod,
    path: str,
    usage: dict[str, int],
    counts: tuple[int, int],
) -> None:
    text = json.dumps({"usage": usage, "x": 1}, indent=3)
    runpod.script = [Page("COMPLETED", plain(text))]
    body = chat(input="hi")
    assert fresh_client.post(path, json=body).text == text
    assert runpod.jobs[0]["input"]["openai_input"] == body

    def counted(direction: str) -> float:
        return value(fresh_client, "proxy_tokens_total", model="m", direction=direction)

    assert (counted("in"), counted("out")) == counts


@COUNTED
def test_anthropics_stream_is_counted_once(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": {"usage": {"input_tokens": 9, "output_tokens": 0}}}),
        ("message_delta", {"usage": {"input_tokens": 9, "output_tokens": 2}}),
        ("message_stop", {}),
    ]
    text = "".join(f"event: {kind}\n{event(type=kind, **fields)}" for kind, fields in events)
    runpod.script = [Page("COMPLETED", [HEAD | {"text": text, "end": True}])]
    assert fresh_client.post("/v1/messages", json=chat(stream=True)).text == text
    wait_until(lambda: value(fresh_client, "proxy_tokens_total", model="m", direction="in") == 9)
    assert value(fresh_client, "proxy_tokens_total", model="m", direction="out") == 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PARTS = st.sampled_from(["content", "role", "reasoning", "usage", "tool_calls"])


@given(st.lists(st.dictionaries(PARTS, TEXT, max_size=3), max_size=4), st.integers(0, 30))
def test_nothing_is_lost_whatever_the_events_hold(deltas: list[dict[str, str]], cut: int) -> None:
    whole = "".join(event(**delta(**fields)) for fields in deltas).encode()
    piece = whole[: len(whole) - cut]  # an event that was too large for one output is cut
    sent = Rewriter(both_names=True, on_tokens=lambda *_: None).events(piece)
    assert sent.count(b"data: ") == piece.count(b"data: ")
    kept = [json.loads(line[6:]) for line in sent.split(b"\n\n") if line.endswith(b"}]}")]
    for got, fields in zip(kept, deltas, strict=False):
        told = got["choices"][0]["delta"]
        assert {name: told[name] for name in fields} == fields
        assert told.keys() - fields.keys() <= {"reasoning_content"}
    if not any("reasoning" in fields for fields in deltas):
        assert sent == piece


def test_chunks_that_wait_for_a_fingerprint_that_never_comes_are_held_within_bounds() -> None:
    ends = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x": "x" * 100_000}
    chunk = json.dumps(ends, separators=(",", ":")).encode().join([b"data: ", b"\n\n"])
    rewriter = Rewriter(both_names=False, hides_usage=True, on_tokens=lambda *_: None)
    sent = b""
    for number in range(1, 30):
        sent += rewriter.events(chunk)
        assert number * len(chunk) - len(sent) <= MAX_HELD_BYTES
    assert sent + rewriter.rest() == 29 * chunk
