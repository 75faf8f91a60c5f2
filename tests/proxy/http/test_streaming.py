"""A stream through the proxy: comments while it is awaited, events as they come, one honest end."""

import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest

from tests.proxy.conftest import KEY, chat
from tests.proxy.scripted_runpod import Fault, Page, ScriptedRunPod
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
HEAD = {"seq": 0, "status": 200, "content_type": "text/event-stream"}


def event(text: str) -> str:
    delta = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return f"data: {msgspec.json.encode(delta).decode()}\n\n"


FRAMES: list[dict[str, Any]] = [
    HEAD | {"text": event("Grüße ")},
    {"seq": 1, "text": event("🌍, ") + event("\u2028")},
    {"seq": 2, "text": event("ok") + "data: [DONE]\n\n", "end": True},
]
BODY = "".join(frame["text"] for frame in FRAMES)

PATIENT = pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 30}], indirect=True)
"""The headers wait for the head of the answer, however slow the machine is."""


def stream(client: httpx.Client, **changes: Any) -> tuple[int, str]:
    """The status and the whole text of a streamed chat, comments left out."""
    with client.stream("POST", CHAT, json=chat(stream=True, **changes)) as response:
        text = b"".join(response.iter_bytes()).decode()
    return response.status_code, without_comments(text)


def without_comments(text: str) -> str:
    return "\n\n".join(part for part in text.split("\n\n") if not part.startswith(":"))


def parts_of(pieces: Iterable[bytes]) -> Iterator[str]:
    """The events and comments of a stream one by one, however many of them come at once."""
    unfinished = b""
    for piece in pieces:
        *whole, unfinished = (unfinished + piece).split(b"\n\n")
        yield from (part.decode() + "\n\n" for part in whole)
    if unfinished:
        yield unfinished.decode()


def last_error(text: str) -> dict[str, Any]:
    assert "[DONE]" not in text
    last = text.rstrip("\n").rpartition("\n\n")[2].removeprefix("data: ")
    error: dict[str, Any] = msgspec.json.decode(last)["error"]
    return error


@PATIENT
def test_a_stream_arrives_byte_for_byte(client: httpx.Client, runpod: ScriptedRunPod) -> None:
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in FRAMES]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        assert without_comments(response.read().decode()) == BODY
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-runpod-job-id"] == runpod.job_id
    assert response.headers["x-request-id"]


def test_the_frames_that_come_with_the_last_status_are_not_lost(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [
        Page("IN_QUEUE"),
        Page("IN_PROGRESS", FRAMES[:1]),
        Page("COMPLETED", FRAMES[1:]),
    ]
    assert stream(client) == (200, BODY)


def test_the_end_frame_ends_the_stream_before_runpod_says_so(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES), Page("IN_PROGRESS", hold=threading.Event())]
    assert stream(client) == (200, BODY)
    assert runpod.stream_calls == 1
    assert runpod.cancelled == []


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
def test_lost_frames_make_a_pause_and_no_hole(
    client: httpx.Client, runpod: ScriptedRunPod, lost: list[int]
) -> None:
    kept = [frame for frame in FRAMES if frame["seq"] not in lost]
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in kept] + [Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    assert stream(client) == (200, BODY)


def test_frames_lost_with_a_broken_answer_are_recovered(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [
        Page("IN_PROGRESS", FRAMES[:1]),
        Fault(0, loses=[FRAMES[1]]),
        Page("COMPLETED", FRAMES[2:]),
        Page("COMPLETED"),
    ]
    assert stream(client) == (200, BODY)


def test_a_frame_that_is_lost_for_good_is_an_error_and_no_end(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", [FRAMES[0], FRAMES[2]]), Page("COMPLETED")]
    status, text = stream(client)
    assert status == 200
    assert last_error(text)["code"] == "worker_failed"
    assert text.startswith(FRAMES[0]["text"])


def test_a_plain_answer_has_vllms_status_and_bytes(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    body = '{"id": "x",  "choices": [], "e": 1e-7, "t": "🌍"}'
    head = {"seq": 0, "status": 200, "content_type": "application/json", "text": body[:20]}
    runpod.script = [
        Page("IN_QUEUE"),
        Page("COMPLETED", [head, {"seq": 1, "text": body[20:], "end": True}]),
    ]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.text) == (200, body)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-runpod-job-id"] == runpod.job_id


@PATIENT
@pytest.mark.parametrize("wants_stream", [True, False])
@pytest.mark.parametrize("status", [400, 404, 422, 503])
def test_vllms_own_error_keeps_its_status_and_body(
    client: httpx.Client, runpod: ScriptedRunPod, status: int, wants_stream: bool
) -> None:
    body = '{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}'
    frame = {"seq": 0, "status": status, "content_type": "application/json", "text": body}
    runpod.script = [Page("COMPLETED", [frame | {"end": True}])]
    response = client.post(CHAT, json=chat(stream=wants_stream))
    assert (response.status_code, response.text) == (status, body)
    assert response.headers["x-should-retry"] == "false"


def test_an_error_of_vllm_after_the_hold_is_an_event(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    body = '{"error":\n {"message": "too long", "type": "BadRequestError", "code": 400}}'
    frame = {"seq": 0, "status": 400, "content_type": "application/json", "text": body, "end": True}
    runpod.script = [Page("COMPLETED", [frame], hold=hold)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        hold.set()
        text = response.read().decode()
    assert response.status_code == 200
    assert last_error(text)["message"] == "too long"


@pytest.mark.parametrize(
    ("path", "ends"), [(CHAT, ["data: [DONE]"]), ("/v1/messages", []), ("/v1/responses", [])]
)
def test_a_plain_answer_after_the_hold_is_one_event(
    client: httpx.Client, runpod: ScriptedRunPod, path: str, ends: list[str]
) -> None:
    hold = threading.Event()
    body = '{\r\n"object": "list",\n"data": []}'
    frame = {"seq": 0, "status": 200, "content_type": "application/json", "text": body, "end": True}
    runpod.script = [Page("IN_QUEUE", [frame], hold=hold)]
    asked = chat(stream=True, input="hi")
    with client.stream("POST", path, json=asked) as response:
        hold.set()
        lines = response.read().decode().splitlines()
    answer, *rest = [line for line in lines if line and not line.startswith(":")]
    assert msgspec.json.decode(answer.removeprefix("data: ")) == {"object": "list", "data": []}
    assert rest == ends


def test_an_empty_answer_after_the_hold_is_an_error(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    frame = {"seq": 0, "status": 204, "content_type": "", "end": True}
    runpod.script = [Page("IN_QUEUE", [frame], hold=hold)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        hold.set()
        text = response.read().decode()
    assert last_error(text)["code"] == "worker_failed"
    assert "data: \n" not in text


@pytest.fixture
def sdk(proxy_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy_url}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


def test_the_sdk_reads_a_stream_that_began_with_comments(
    sdk: openai.OpenAI, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES, hold=hold)]
    threading.Timer(1.5, hold.set).start()
    chunks = sdk.chat.completions.create(**chat(stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Grüße 🌍, \u2028ok"


@pytest.mark.slow
def test_comments_come_while_nothing_else_does(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", FRAMES)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        parts = parts_of(response.iter_bytes())
        comments = [next(parts) for _ in range(3)]
        # With how long starts take, if one was seen in a test before this.
        assert all(re.fullmatch(r": queued( \d+ s, usually \d+ s)?\n\n", one) for one in comments)
        hold.set()
        rest = "".join(parts)
    assert rest.endswith(BODY)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"keep_alive_mode": "chunk"}], indirect=True)
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_empty_chunks_come_in_place_of_comments(
    sdk: openai.OpenAI, runpod: ScriptedRunPod, route: str
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", FRAMES)]
    if route == "chat":
        chunks = sdk.chat.completions.create(**chat(stream=True))
        first = [next(chunks) for _ in range(2)]
        assert [chunk.choices[0].delta.content for chunk in first] == [None, None]
        assert len({chunk.id for chunk in first}) == 1
    else:
        stream = sdk.completions.create(model="m", prompt="hi", stream=True)
        assert [next(stream).choices[0].text for _ in range(2)] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"keep_alive_mode": "off"}], indirect=True)
def test_nothing_comes_but_the_answer_when_keep_alives_are_off(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", FRAMES)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:  # so the headers came
        time.sleep(1.5)  # nothing is to come, so there is nothing to wait for
        hold.set()
        assert response.read().decode() == BODY


@pytest.mark.slow
@PATIENT
def test_comments_come_between_the_events_of_a_slow_stream(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        parts = parts_of(response.iter_bytes())
        assert next(parts) == FRAMES[0]["text"]
        assert [next(parts) for _ in range(2)] == [": running\n\n"] * 2
        hold.set()
        assert "".join(parts).endswith("data: [DONE]\n\n")


@PATIENT
def test_an_event_in_two_frames_has_no_comment_inside_it(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    beginning, rest = BODY[:20], BODY[20:]
    runpod.script = [
        Page("IN_PROGRESS", [HEAD | {"text": beginning}]),
        Page("IN_PROGRESS", [{"seq": 1, "text": rest, "end": True}], hold=hold),
    ]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        parts = parts_of(response.iter_bytes())
        assert next(parts) == ": running\n\n"
        hold.set()
        assert "".join(parts).replace(": running\n\n", "") == BODY


def test_a_job_that_breaks_off_inside_an_event_ends_with_an_error_event(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    beginning = event("a") + event("b")[:20]
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": beginning}]), Page("FAILED")]
    _, text = stream(client)
    assert text.startswith(event("a") + "data: {")
    assert last_error(text)["code"] == "worker_failed"


@PATIENT
@pytest.mark.parametrize(
    ("final", "status", "code"),
    [
        ({"status": "FAILED", "error": "job timed out after 1 retries"}, 502, "worker_failed"),
        ({"status": "FAILED", "error": str({"message": "boom"})}, 502, "worker_failed"),
        ({"status": "CANCELLED"}, 502, "worker_failed"),
        ({"status": "TIMED_OUT"}, 504, "timeout"),
        ({"status": "COMPLETED"}, 502, "worker_failed"),
        ({"status": "COMPLETED", "output": []}, 502, "worker_failed"),
    ],
)
@pytest.mark.parametrize("wants_stream", [True, False])
def test_a_job_that_ends_without_an_answer_is_an_http_error(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    final: dict[str, Any],
    status: int,
    code: str,
    wants_stream: bool,
) -> None:
    runpod.script, runpod.final = [Page(final["status"])], final
    response = client.post(CHAT, json=chat(stream=wants_stream))
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-runpod-job-id"] == runpod.job_id


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED", "TIMED_OUT", "COMPLETED"])
def test_a_job_that_breaks_off_mid_stream_ends_with_an_error_event(
    client: httpx.Client, runpod: ScriptedRunPod, end: str
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page(end)]
    runpod.final = {"status": end, "output": FRAMES[:1]}
    status, text = stream(client)
    assert status == 200
    assert text.startswith(FRAMES[0]["text"])
    assert last_error(text)["type"] == "server_error"


def test_the_sdk_raises_its_own_error_for_a_stream_that_breaks_off(
    sdk: openai.OpenAI, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("FAILED")]
    chunks = sdk.chat.completions.create(**chat(stream=True))
    assert next(chunks).choices[0].delta.content == "Grüße "
    with pytest.raises(openai.APIError, match="failed"):
        next(chunks)


@pytest.mark.parametrize(
    "fault", [Fault(500), Fault(503), Fault(429, {"retry-after": "1"}), Fault(0)]
)
def test_a_poll_that_fails_is_repeated(
    client: httpx.Client, runpod: ScriptedRunPod, fault: Fault
) -> None:
    runpod.script = [fault, Page("IN_PROGRESS", FRAMES[:1]), fault, Page("COMPLETED", FRAMES[1:])]
    assert stream(client) == (200, BODY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "script", "status", "code"),
    [
        ({"queue_timeout_seconds": 1}, [Page("IN_QUEUE")], 503, "cold_start_timeout"),
        ({"first_token_timeout_seconds": 1}, [Page("IN_PROGRESS")], 504, "first_token_timeout"),
        ({"total_timeout_seconds": 1}, [Page("IN_QUEUE")], 504, "total_timeout"),
        # Long enough that RunPod has answered once by then, even if the machine stalls.
        ({"queue_timeout_seconds": 4}, [Fault(500)], 503, "upstream_unavailable"),
    ],
    indirect=["settings"],
)
def test_a_missed_deadline_is_an_error_and_cancels_the_job(
    client: httpx.Client, runpod: ScriptedRunPod, script: list[Page | Fault], status: int, code: str
) -> None:
    runpod.script = script
    response = client.post(CHAT, json=chat())
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert ("retry-after" in response.headers) == (code == "cold_start_timeout")
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@PATIENT
@pytest.mark.slow
def test_comments_come_while_runpod_wants_no_calls(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    refusal = Fault(429, {"retry-after": "5"})
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), refusal, Page("COMPLETED", FRAMES[1:])]
    text = fresh_client.post(CHAT, json=chat(stream=True)).text
    assert text.count(": running\n\n") >= 1  # more of them, unless the machine stalls
    assert text.replace(": running\n\n", "") == BODY


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"first_token_timeout_seconds": 2}], indirect=True)
def test_a_deadline_does_not_wait_for_a_poll_whose_answer_comes_byte_by_byte(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    dripping = Page("IN_PROGRESS", FRAMES, drips=threading.Event())
    runpod.script = [Page("IN_PROGRESS"), dripping]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (504, "first_token_timeout")
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"total_timeout_seconds": 3}], indirect=True)
def test_a_deadline_does_not_wait_for_an_aggregate_whose_answer_comes_byte_by_byte(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    runpod.status_drips = threading.Event()
    text = client.post(CHAT, json=chat(stream=True)).text
    assert last_error(text)["code"] == "total_timeout"
    assert ": running\n\n" in text


# It is longer than the machine may stall before RunPod's refusal has come.
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"idle_timeout_seconds": 4}], indirect=True)
def test_a_deadline_does_not_wait_until_runpod_wants_calls_again(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Fault(429, {"retry-after": "60"})]
    began = time.monotonic()
    _, text = stream(fresh_client)
    assert last_error(text)["code"] == "upstream_unavailable"
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"idle_timeout_seconds": 1}], indirect=True)
def test_a_worker_that_falls_silent_ends_the_stream_and_its_job(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS")]
    _, text = stream(client)
    assert last_error(text)["code"] == "idle_timeout"
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_a_status_that_goes_backwards_does_not_bring_a_job_back(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [
        Page("IN_PROGRESS", FRAMES[:1]),
        Page("COMPLETED", FRAMES[1:2]),
        Page("IN_PROGRESS"),
    ]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    assert stream(client) == (200, BODY)
    assert runpod.stream_calls == 3
    assert runpod.cancelled == []


def test_a_status_that_lags_behind_the_stream_is_asked_for_again(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("COMPLETED")]
    runpod.states = [{"status": "IN_PROGRESS"}]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    assert stream(client) == (200, BODY)


@PATIENT
@pytest.mark.slow
def test_comments_come_while_lost_frames_are_recovered(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", FRAMES[:1] + FRAMES[2:])]
    runpod.final = {"status": "COMPLETED", "output": FRAMES}
    runpod.status_delay_seconds = 4
    text = client.post(CHAT, json=chat(stream=True)).text
    assert text.count(": running\n\n") >= 1  # more of them, unless the machine stalls
    assert text.replace(": running\n\n", "") == BODY


def test_pieces_of_worker_vllm_arrive_as_whole_events(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    pieces = [BODY[i : i + 7] for i in range(0, len(BODY), 7)]
    runpod.script = [Page("IN_PROGRESS", [p]) for p in pieces] + [Page("COMPLETED")]
    assert stream(client) == (200, BODY)


def test_a_piece_that_its_worker_failed_to_post_is_an_error_and_no_end(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    events = [event("a"), event("b"), event("c"), "data: [DONE]\n\n"]
    runpod.script = [Page("IN_PROGRESS", [events[0], *events[2:]]), Page("COMPLETED")]
    runpod.final = {"status": "COMPLETED", "output": events}
    _, text = stream(client)
    assert last_error(text)["code"] == "worker_failed"


@pytest.mark.slow
def test_the_end_of_a_stream_without_numbers_does_not_wait_for_long(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_PROGRESS", [BODY]), Page("IN_PROGRESS")]
    assert stream(client) == (200, BODY)


def test_pieces_lost_with_a_broken_answer_come_from_the_aggregate(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    pieces = [BODY[i : i + 20] for i in range(0, len(BODY), 20)]
    runpod.script = [
        Page("IN_PROGRESS", pieces[:4]),
        Fault(0, loses=pieces[4:6]),
        Page("IN_PROGRESS", pieces[6:]),
        Page("COMPLETED"),
    ]
    assert stream(client) == (200, BODY)


def test_one_parsed_object_of_worker_vllm_is_the_answer(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [{"id": "x", "choices": []}])]
    response = client.post(CHAT, json=chat())
    assert (response.status_code, response.json()) == (200, {"id": "x", "choices": []})


@PATIENT
@pytest.mark.parametrize("wants_stream", [True, False])
def test_the_failure_of_worker_vllm_tells_vllms_status(
    client: httpx.Client, runpod: ScriptedRunPod, wants_stream: bool
) -> None:
    body = '{"error": {"message": "no", "type": "NotFoundError", "code": 404}}'
    error = str({"message": f"vLLM returned HTTP 404: {body}", "type": "worker_error"})
    runpod.script, runpod.final = [Page("FAILED")], {"status": "FAILED", "error": error}
    response = client.post(CHAT, json=chat(stream=wants_stream))
    assert (response.status_code, response.text) == (404, body)


@pytest.mark.slow
def test_a_platform_that_does_not_hold_its_polls_is_not_hammered(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [*[Page("IN_QUEUE") for _ in range(200)], Page("COMPLETED", FRAMES)]
    with client.stream("POST", CHAT, json=chat(stream=True)) as response:
        pieces = response.iter_bytes()
        for _ in range(4):
            next(pieces)
    assert runpod.stream_calls < 40
