"""What the proxy itself says on each API's routes is what that API's own clients read."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from proxy.api.dialects import CHAT as CHAT_DIALECT
from proxy.api.dialects import COMPLETIONS, MAX_KEPT_BYTES, MESSAGES, Dialect, StreamContext
from proxy.api.dialects import RESPONSES as DIALECT
from proxy.errors import WorkerFailed
from tests.proxy.conftest import KEY, chat
from tests.proxy.http.test_streaming import CHAT, HEAD, last_error, parts_of, without_comments
from tests.proxy.node_clients import needs_node, node_clients, run_in_node
from tests.proxy.scripted_runpod import Fault, Page, ScriptedRunPod
from tests.waiting import wait_until

__all__ = ["node_clients"]

RESPONSES = "/v1/responses"
CHUNKS = pytest.mark.parametrize("settings", [{"keep_alive_mode": "chunk"}], indirect=True)
PLAIN = {"seq": 0, "content_type": "application/json", "end": True}
ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hi"}],
}


def event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


RESPONSE: dict[str, Any] = {
    "id": "resp_0123",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "in_progress",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
BEGINNING = event("response.created", sequence_number=0, response=RESPONSE) + event(
    "response.in_progress", sequence_number=1, response=RESPONSE
)


@pytest.fixture
def sdk(proxy_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy_url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def claude(proxy_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=proxy_url, api_key=KEY, max_retries=0) as client:
        yield client


def breaks_off(runpod: ScriptedRunPod) -> None:
    """The stream begins, and its job is lost."""
    item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant"}
    item |= {"content": [], "status": "in_progress"}
    added = {"output_index": 0, "item": item}
    text = BEGINNING + event("response.output_item.added", sequence_number=7, **added)
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": text}]), Fault(404)]


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, each checked to be named by its type."""
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    events = []
    for part in parts:
        name, _, data = part.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.usefixtures("believed_at_once")
def test_a_responses_stream_that_breaks_off_ends_with_both_forms_of_an_error(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    breaks_off(runpod)
    *_, error, failed = events_of(client.post(RESPONSES, json=asks()).text)
    assert error["error"]["code"] == error["code"] == "worker_failed"
    assert error["error"]["message"] == error["message"]
    assert failed["type"] == "response.failed"
    assert (error["sequence_number"], failed["sequence_number"]) == (8, 9)
    reason = {"code": "worker_failed", "message": error["message"]}
    assert failed["response"] == RESPONSE | {"status": "failed", "error": reason}


def test_a_responses_stream_that_never_began_ends_with_a_response_of_our_own(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("IN_QUEUE")]
    headers = {"x-cold-start-timeout": "0.5", "x-request-id": "req_abc"}
    error, failed = events_of(client.post(RESPONSES, json=asks(), headers=headers).text)
    assert error["error"]["code"] == "cold_start_timeout"
    assert (error["sequence_number"], failed["sequence_number"]) == (0, 1)
    assert failed["response"]["id"] == "resp_abc"
    assert failed["response"]["error"]["code"] == "cold_start_timeout"


def test_vllms_late_error_on_the_responses_route_has_text_in_each_field(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    said = {"message": "too long", "type": "BadRequestError", "param": "input", "code": 400}
    hold = threading.Event()
    body = json.dumps({"error": said})
    frame = PLAIN | {"status": 400, "text": body}
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", [frame])]
    with client.stream("POST", RESPONSES, json=asks()) as response:
        hold.set()
        error, failed = events_of(response.read().decode())
    assert error["error"] == said | {"code": "BadRequestError"}
    assert failed["response"]["error"] == {"code": "BadRequestError", "message": "too long"}


@pytest.mark.parametrize(
    "said",
    [
        'data: {"error": {"message": "engine died", "type": "InternalServerError"}}',
        'data: { "error" : {"message": "engine died"}}',
        'data: {\ndata: "error": {"message": "engine died"}}',
        'event: error\ndata: {"error": {"message": "engine died"}}',
        "event: error\ndata: engine died",
        'data: {"id": "1", "choices": [], "error": {"message": "engine died"}}',
    ],
)
def test_an_error_that_a_worker_says_in_the_form_of_a_chats_is_said_in_both_forms(
    client: httpx.Client, runpod: ScriptedRunPod, said: str
) -> None:
    said += "\n\n"
    runpod.script = [Page("COMPLETED", [HEAD | {"text": BEGINNING + said, "end": True}])]
    *_, error, failed = events_of(client.post(RESPONSES, json=asks()).text)
    assert (error["message"], failed["response"]["error"]["message"]) == ("engine died",) * 2
    assert (error["sequence_number"], failed["sequence_number"]) == (2, 3)
    assert failed["response"]["id"] == "resp_0123"


ERROR_ALONE = event("error", sequence_number=2, code="x", message="engine died", param=None)
FAILED = event("response.failed", sequence_number=3, response=RESPONSE | {"status": "failed"})


@pytest.mark.parametrize(
    "said",
    [
        ERROR_ALONE,
        event("error", sequence_number=2, error={"code": "x", "message": "engine died"}),
        f"event: error\ndata: {json.dumps({'sequence_number': 2, 'code': 'x'})[:-1]}, "
        '"message": "engine died", "type": "error"}\n\n',
    ],
)
def test_an_error_of_the_responses_api_is_followed_by_the_response_that_failed(
    client: httpx.Client, runpod: ScriptedRunPod, said: str
) -> None:
    runpod.script = [Page("COMPLETED", [HEAD | {"text": BEGINNING + said, "end": True}])]
    text = client.post(RESPONSES, json=asks()).text
    assert said in text
    error, failed = events_of(text)[-2:]
    assert (error["type"], failed["type"], failed["sequence_number"]) == (
        "error",
        "response.failed",
        3,
    )
    reason = {"code": "x", "message": "engine died"}
    assert failed["response"] == RESPONSE | {"status": "failed", "error": reason}


def test_a_response_that_failed_in_the_servers_own_words_stays_as_it_is(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    for texts in ([BEGINNING, ERROR_ALONE, FAILED], [BEGINNING, ERROR_ALONE + FAILED]):
        frames = [{"seq": number, "text": text} for number, text in enumerate(texts)]
        frames[0] |= HEAD
        frames[-1]["end"] = True
        runpod.script = [Page("IN_PROGRESS", [frame]) for frame in frames] + [Page("COMPLETED")]
        assert without_comments(client.post(RESPONSES, json=asks()).text) == "".join(texts)


def test_of_a_large_piece_is_kept_what_an_error_behind_it_needs() -> None:
    added = event("response.output_text.delta", sequence_number=7, delta="x" * 2**20)
    added += event("response.output_text.delta", sequence_number=8, delta="")
    context = StreamContext("req_1", "m")
    context.note_sent((BEGINNING + added).encode())
    assert len(context.first) + len(context.last) <= 2 * MAX_KEPT_BYTES
    *_, error, failed = events_of(DIALECT.error(WorkerFailed("gone"), context).decode())
    assert (error["sequence_number"], failed["response"]["id"]) == (9, "resp_0123")


def test_an_error_behind_half_an_event_is_an_event_of_its_own(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    half = f"data: {chunks('x').partition('}')[0].removeprefix('data: ')}"
    runpod.script = [Page("IN_PROGRESS", [HEAD | {"text": half}]), Page("FAILED")]
    text = client.post(CHAT, json=chat(stream=True)).text
    assert last_error(text)["code"] == "worker_failed"


def asks(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": "hi", "stream": True} | fields


@pytest.mark.usefixtures("believed_at_once")
def test_openais_client_raises_the_reason_in_a_responses_stream(
    sdk: openai.OpenAI, runpod: ScriptedRunPod
) -> None:
    breaks_off(runpod)
    stream = sdk.responses.create(**asks())
    with pytest.raises(openai.APIError, match="RunPod") as caught:
        list(stream)
    assert caught.value.code == "worker_failed"


@pytest.mark.usefixtures("believed_at_once")
def test_openais_helper_for_responses_raises_the_reason(
    sdk: openai.OpenAI, runpod: ScriptedRunPod
) -> None:
    breaks_off(runpod)
    with (
        pytest.raises(openai.APIError, match="RunPod"),
        sdk.responses.stream(model="m", input="hi") as stream,
    ):
        stream.until_done()


class TestInNode:
    """The same in Node.js."""

    pytestmark = needs_node

    @pytest.mark.usefixtures("believed_at_once")
    def test_openai_node_raises_the_reason_in_a_responses_stream(
        self, proxy_url: str, runpod: ScriptedRunPod, node_clients: None
    ) -> None:
        breaks_off(runpod)
        outcome = run_in_node("streamedResponse", proxy_url, 7, asks())
        assert (outcome["code"], outcome["kind"]) == ("worker_failed", "APIError")
        assert "RunPod" in outcome["message"]

    @pytest.mark.usefixtures("believed_at_once")
    def test_the_ai_sdk_is_told_the_reason_in_a_responses_stream(
        self, proxy_url: str, runpod: ScriptedRunPod, node_clients: None
    ) -> None:
        breaks_off(runpod)
        outcome = run_in_node("aiSdkResponse", proxy_url, "m", "hi")
        assert "RunPod" in outcome["errors"][0]
        assert len(outcome["errors"][0]) < 500

    @CHUNKS
    def test_openai_nodes_helper_for_chats_has_the_answers_id(
        self, proxy_url: str, runpod: ScriptedRunPod, node_clients: None
    ) -> None:
        begins_late(runpod, "chatcmpl-of-another-server")
        outcome = run_in_node("streamedChat", proxy_url, 7, chat())
        assert outcome["content"] == "Hello"
        assert outcome["id"].startswith("chatcmpl-req_")


def begins_late(runpod: ScriptedRunPod, chunk_id: str) -> None:
    """After some signs of life come two chunks of this id, and the end."""
    hold = threading.Event()
    runpod.script = [
        Page("IN_QUEUE", hold=hold),
        Page("COMPLETED", [HEAD | {"text": chunks(chunk_id), "end": True}]),
    ]

    def release() -> None:
        wait_until(lambda: bool(runpod.jobs))
        time.sleep(1.5)  # longer than the headers are held
        hold.set()

    threading.Thread(target=release, daemon=True).start()


def chunks(chunk_id: str) -> str:
    common = {"id": chunk_id, "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [({"role": "assistant", "content": "Hel"}, None), ({"content": "lo"}, "stop")]
    events = [
        common | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    return "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"


@CHUNKS
@pytest.mark.slow
@pytest.mark.parametrize("chunk_id", ["chatcmpl-req_mine", "chatcmpl-of-another-server"])
def test_every_chunk_of_a_stream_has_one_id_when_empty_ones_came_first(
    sdk: openai.OpenAI, runpod: ScriptedRunPod, chunk_id: str
) -> None:
    begins_late(runpod, chunk_id)
    headers = {"x-request-id": "req_mine"}
    stream = sdk.chat.completions.create(**chat(stream=True), extra_headers=headers)
    ids = [chunk.id for chunk in stream]
    assert len(ids) > 2
    assert set(ids) == {"chatcmpl-req_mine"}


@pytest.mark.parametrize(
    "settings",
    [{"keep_alive_mode": "chunk"}, {"cold_start_notice": "reasoning", "reasoning_fields": "both"}],
    indirect=True,
)
@pytest.mark.slow
def test_openais_helper_keeps_the_answers_id_when_empty_chunks_came_first(
    sdk: openai.OpenAI, runpod: ScriptedRunPod
) -> None:
    begins_late(runpod, "chatcmpl-req_mine")
    headers = {"x-request-id": "req_mine"}
    with sdk.chat.completions.stream(**chat(), extra_headers=headers) as stream:
        answer = stream.get_final_completion()
    assert answer.id == "chatcmpl-req_mine"
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", "Hello")


@CHUNKS
def test_an_answer_that_comes_at_once_keeps_its_own_id(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    text = chunks("chatcmpl-of-another-server")
    runpod.script = [Page("COMPLETED", [HEAD | {"text": text, "end": True}])]
    said = client.post(CHAT, json=chat(stream=True)).text
    assert said.endswith(text)


@CHUNKS
@pytest.mark.slow
def test_responses_are_kept_alive_with_events(sdk: openai.OpenAI, runpod: ScriptedRunPod) -> None:
    hold = threading.Event()
    end = event("response.completed", sequence_number=2, response=RESPONSE)
    frame = HEAD | {"text": BEGINNING + end, "end": True}
    runpod.script = [Page("IN_QUEUE", hold=hold), Page("COMPLETED", [frame])]
    stream = sdk.responses.create(**asks())
    first: Any = next(stream)
    assert (first.type, first.sequence_number) == ("keepalive", 0)
    hold.set()
    kinds = [one.type for one in stream]
    assert [kind for kind in kinds if kind != "keepalive"] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_the_request_id_is_where_anthropics_clients_look(
    client: httpx.Client, runpod: ScriptedRunPod, path: str
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN | {"status": 200, "text": "{}"}])]
    good = client.post(path, json=ASKED)
    assert good.headers["request-id"] == good.headers["x-request-id"]
    bad = client.post(path, json=ASKED | {"model": "other"})
    assert bad.json()["request_id"] == bad.headers["request-id"] == bad.headers["x-request-id"]


def test_anthropics_client_knows_the_request_id(
    claude: anthropic.Anthropic, runpod: ScriptedRunPod
) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(
            **ASKED | {"model": "other"}, extra_headers={"x-request-id": "req_x"}
        )
    assert caught.value.request_id == "req_x"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("GET", "//v1/messages/batches/one/results", 404, "not_found_error"),
        ("POST", "/messages/nothing", 404, "not_found_error"),
    ],
)
def test_what_is_not_served_below_messages_is_refused_in_anthropics_form(
    client: httpx.Client, method: str, path: str, status: int, kind: str
) -> None:
    refused = client.request(method, path)
    assert refused.status_code == status
    body = refused.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == refused.headers["request-id"]


def test_routes_that_only_look_like_messages_have_openais_form(client: httpx.Client) -> None:
    assert client.post("/v1/messagesx").json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"type": "error", "error": {"type": "BadRequestError"}}, "invalid_request_error"),
        (
            404,
            {"error": {"type": "NotFoundError", "param": "model", "code": 404}},
            "not_found_error",
        ),
        (413, {"error": {"type": "RequestTooLarge"}}, "request_too_large"),
        (422, {"detail": "said"}, "invalid_request_error"),
        (500, {"error": {"type": "InternalServerError", "code": 500}}, "api_error"),
        (501, {"type": "error", "error": {"type": "NotImplementedError"}}, "api_error"),
        (503, {"type": "error", "error": {"type": "ServiceUnavailableError"}}, "overloaded_error"),
        (503, {"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
    ],
)
def test_vllms_errors_on_messages_have_anthropics_form_and_types(
    claude: anthropic.Anthropic, runpod: ScriptedRunPod, status: int, body: Any, kind: str
) -> None:
    if "error" in body:
        body = body | {"error": body["error"] | {"message": "said"}}
    frame = PLAIN | {"status": status, "text": json.dumps(body)}
    runpod.script = [Page("COMPLETED", [frame])]
    with pytest.raises(anthropic.APIStatusError) as caught:
        claude.messages.create(**ASKED)
    said: Any = caught.value.body
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert said["error"] == {"type": kind, "message": "said"}
    assert said["request_id"] == caught.value.request_id


@pytest.mark.parametrize("text", ["Internal Server Error", "", "[]"])
def test_an_error_of_vllms_that_has_no_form_is_given_one_on_messages(
    client: httpx.Client, runpod: ScriptedRunPod, text: str
) -> None:
    frame = {"seq": 0, "status": 500, "content_type": "text/plain", "text": text, "end": True}
    runpod.script = [Page("COMPLETED", [frame])]
    answer = client.post("/v1/messages", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    assert answer.headers["content-type"] == "application/json"


def test_vllms_error_in_a_stream_of_messages_has_a_type_that_is_known(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    ping = 'event: ping\ndata: {"type": "ping"}\n\n'
    said = event("error", error={"type": "internal_error", "message": "engine died"})
    runpod.script = [Page("COMPLETED", [HEAD | {"text": ping + said, "end": True}])]
    answer = client.post("/v1/messages", json=ASKED | {"stream": True})
    error = events_of(answer.text)[-1]
    assert error["error"] == {"type": "api_error", "message": "engine died"}
    assert error["request_id"] == answer.headers["request-id"]


@pytest.mark.usefixtures("believed_at_once")
def test_an_error_in_a_chats_stream_is_openais(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    frame = HEAD | {"text": chunks("x").removesuffix("data: [DONE]\n\n")}
    runpod.script = [Page("IN_PROGRESS", [frame]), Fault(404)]
    text = "".join(parts_of([client.post(CHAT, json=chat(stream=True)).content]))
    assert last_error(text)["code"] == "worker_failed"


def compact(value: Any) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


def spaced(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def delta(**fields: Any) -> Any:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def text(said: str) -> Any:
    return {"choices": [{"index": 0, "text": said, "logprobs": {"top_logprobs": [{"text": -1}]}}]}


TRICK = '"delta":{"x":"text":".delta\n event: content_block_delta\n'


@pytest.mark.parametrize("written", [compact, spaced])
@pytest.mark.parametrize(
    ("dialect", "values", "tokens"),
    [
        (CHAT_DIALECT, [delta(role="assistant", content=""), delta(content=TRICK)], 1),
        (CHAT_DIALECT, [delta(role="assistant", content="a"), delta(reasoning=TRICK)], 2),
        (CHAT_DIALECT, [delta(tool_calls=[{"arguments": TRICK}]), delta()], 1),
        (CHAT_DIALECT, [{"choices": [], "usage": {"completion_tokens": 5}}], 0),
        (COMPLETIONS, [text(TRICK), text(""), text("b"), {"choices": []}], 2),
    ],
)
def test_each_event_that_brings_something_of_a_chat_or_completion_is_a_token_at_least(
    written: Callable[[Any], str], dialect: Dialect, values: list[Any], tokens: int
) -> None:
    assert dialect.tokens_of is not None
    assert dialect.tokens_of("".join(map(written, values)).encode()) == tokens


def test_each_delta_of_a_response_or_a_message_is_a_token_at_least() -> None:
    of_responses, of_messages = DIALECT.tokens_of, MESSAGES.tokens_of
    assert of_responses is not None
    assert of_messages is not None
    begun = event("response.created", response=RESPONSE)
    brings = [event(f"response.{kind}.delta", delta=TRICK) for kind in ("output_text", "reasoning")]
    assert of_responses((begun + "".join(brings)).encode()) == 2
    deltas = [{"type": "text_delta", "text": TRICK}, {"type": "signature_delta", "signature": "x"}]
    told = "".join(event("content_block_delta", delta=one) for one in deltas)
    assert of_messages((event("message_start", message={}) + told).encode()) == 1
