"""A request that comes again joins the job that runs for it; one that was left is cancelled."""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from proxy.api import retries
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.serving import several_readers, sharing
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.http.test_streaming import BODY, CHAT, FRAMES, HEAD, event, last_error, parts_of
from tests.proxy.node_clients import needs_node, node_clients, run_in_node
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

__all__ = ["node_clients"]

TEXT = '{"choices": [{"index": 0, "message": {"role": "assistant", "content": "Grüße"}}]}'
PLAIN = {"seq": 0, "status": 200, "content_type": "application/json", "text": TEXT, "end": True}
TWO_KEYS = {"api_keys": f"{KEY},sk-other"}


@pytest.fixture
def idempotent(request: pytest.FixtureRequest) -> dict[str, str]:
    """The header with a key of this test's own: the proxy is shared, and remembers."""
    return {"idempotency-key": request.node.name}


def sdk(url: str, attempts: list[Any], **options: Any) -> openai.OpenAI:
    """OpenAI's SDK, noting its attempts."""
    http_client = openai.DefaultHttpxClient(event_hooks={"request": [attempts.append]})
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http_client, **options)


def ask(client: openai.OpenAI) -> str | None:
    answer = client.chat.completions.create(**chat())
    content: str | None = answer.choices[0].message.content
    return content


def leave(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    headers: dict[str, str],
    *,
    after_seconds: float = 0,
) -> None:
    """Ask for a plain answer, and close the connection when its job waits, after that time."""
    request = client.build_request("POST", CHAT, json=chat(), headers=headers)
    connection = http.client.HTTPConnection(request.url.netloc.decode(), timeout=30)
    connection.request("POST", CHAT, request.content, dict(request.headers))
    time.sleep(after_seconds)
    wait_until(lambda: runpod.stream_calls > 0)
    connection.close()


@contextmanager
def streaming(client: httpx.Client, headers: dict[str, str]) -> Iterator[Iterator[bytes]]:
    """The pieces of a stream with an Idempotency-Key, the first one still to come."""
    body = chat(stream=True)
    with client.stream("POST", CHAT, json=body, headers=headers) as response:
        yield response.iter_bytes()


def events_of(pieces: Iterator[bytes]) -> Iterator[str]:
    """One by one, comments left out."""
    return (part for part in parts_of(pieces) if not part.startswith(":"))


def text(pieces: Iterator[bytes]) -> str:
    """All of it, comments left out."""
    return "".join(events_of(pieces))


@pytest.mark.slow
def test_an_sdk_whose_timeout_passes_gets_the_first_jobs_answer(
    proxy_url: str, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proxy may see the request seconds after the SDK has begun to count its own.
    monkeypatch.setattr(retries, "TIMEOUT_SHARE", 0.05)
    hold, attempts = threading.Event(), list[Any]()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    with (
        ThreadPoolExecutor() as pool,
        sdk(proxy_url, attempts, timeout=4, max_retries=5) as client,
    ):
        asked = pool.submit(ask, client)
        wait_until(lambda: len(attempts) >= 2)
        hold.set()
        assert asked.result() == "Grüße"
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []


@pytest.mark.slow
def test_the_javascript_sdks_timeout_is_known_as_well(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    told = {"x-stainless-timeout": "1"}
    # Long after its second, for the proxy may begin to count it late.
    leave(client, runpod, told | {"x-stainless-retry-count": "0"}, after_seconds=4)
    time.sleep(0.5)  # nothing is to happen, so there is nothing to wait for
    assert runpod.cancelled == []
    hold.set()
    again = client.post(CHAT, json=chat(), headers=told | {"x-stainless-retry-count": "1"})
    assert again.text == TEXT
    assert len(runpod.jobs) == 1


JAVASCRIPT = {"x-stainless-lang": "js", "x-stainless-retry-count": "0"}


@pytest.fixture
def patient_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry that is slow to come is not too late."""
    monkeypatch.setattr(several_readers, "RETRY_MARGIN_SECONDS", 60)


class TestInNode:
    """Clients for Node.js whose timeout passes while their job is waiting."""

    pytestmark = needs_node

    @pytest.mark.parametrize("version", [6, 7])
    @pytest.mark.parametrize("is_of_call", [False, True])
    def test_openai_nodes_retry_gets_the_first_jobs_answer(
        self,
        proxy_url: str,
        runpod: ScriptedRunPod,
        node_clients: None,
        patient_margin: None,
        monkeypatch: pytest.MonkeyPatch,
        version: int,
        is_of_call: bool,
    ) -> None:
        monkeypatch.setattr(retries, "TIMEOUT_SHARE", 0.05)
        options = {"timeout": 3000, "maxRetries": 5}
        both = [{}, options] if is_of_call else [options, {}]
        outcome = self.told_late(runpod, "chat", proxy_url, version, chat(), *both)
        assert outcome == {"content": "Grüße"}
        assert len(runpod.jobs) == 1
        assert runpod.cancelled == []

    def test_langchains_retry_gets_the_first_jobs_answer(
        self,
        proxy_url: str,
        runpod: ScriptedRunPod,
        node_clients: None,
        patient_margin: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(retries, "TIMEOUT_SHARE", 0.05)
        outcome = self.told_late(
            runpod, "langchainChat", proxy_url, "m", "hi", {"timeout": 3000, "maxRetries": 5}
        )
        assert outcome == {"content": "Grüße"}
        assert len(runpod.jobs) == 1

    def test_a_request_that_is_aborted_in_node_is_cancelled(
        self, proxy_url: str, runpod: ScriptedRunPod, node_clients: None
    ) -> None:
        runpod.script = [Page("IN_QUEUE")]
        outcome = run_in_node("abortedChat", proxy_url, 7, chat(), 2)
        assert outcome["error"] == "APIUserAbortError"
        wait_until(lambda: runpod.job_id in runpod.cancelled)
        assert len(runpod.jobs) == 1

    @staticmethod
    def told_late(runpod: ScriptedRunPod, *call: Any) -> Any:
        """What a client is told whose first attempt has been given up."""
        hold = threading.Event()
        runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(run_in_node, *call)
            try:
                wait_until(lambda: bool(runpod.jobs))
                time.sleep(5)  # longer than the client's timeout
            finally:
                hold.set()
            return asked.result()


@pytest.mark.slow
@pytest.mark.parametrize("headers", [JAVASCRIPT, JAVASCRIPT | {"x-stainless-timeout": "0"}])
def test_a_javascript_client_whose_timeout_is_not_told_is_waited_for(
    client: httpx.Client, runpod: ScriptedRunPod, patient_margin: None, headers: dict[str, str]
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    leave(client, runpod, headers)
    time.sleep(0.5)  # nothing is to happen, so there is nothing to wait for
    assert runpod.cancelled == []
    hold.set()
    again = client.post(CHAT, json=chat(), headers=headers | {"x-stainless-retry-count": "1"})
    assert again.text == TEXT
    assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_nodes_own_timeout_counts_where_the_sdks_is_longer(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    patient_margin: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "NODE_HEADERS_TIMEOUT_SECONDS", 0.1)
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    headers = JAVASCRIPT | {"x-stainless-timeout": "600", "x-stainless-runtime": "node"}
    leave(client, runpod, headers, after_seconds=0.5)
    time.sleep(0.5)  # nothing is to happen, so there is nothing to wait for
    assert runpod.cancelled == []
    hold.set()
    again = client.post(CHAT, json=chat(), headers=headers | {"x-stainless-retry-count": "1"})
    assert again.text == TEXT
    assert len(runpod.jobs) == 1


def test_javascript_clients_that_ask_alike_have_a_job_each(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]

    def asked() -> str:
        return client.post(CHAT, json=chat(), headers=JAVASCRIPT).text

    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(asked) for _ in range(10)]
        try:
            wait_until(lambda: len(runpod.jobs) == 10)
            runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(10)]
        finally:
            hold.set()
        assert [answer.result() for answer in answers] == [TEXT] * 10


@pytest.mark.slow
def test_retries_that_come_alike_join_a_job_each(
    client: httpx.Client, runpod: ScriptedRunPod, patient_margin: None
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    with ThreadPoolExecutor(3) as pool:
        gone = [pool.submit(leave, client, runpod, JAVASCRIPT, after_seconds=1) for _ in range(3)]
        wait_until(lambda: len(runpod.jobs) == 3)
        assert [one.result() for one in gone] == [None] * 3
        time.sleep(1)  # the proxy learns that they have gone
        again = JAVASCRIPT | {"x-stainless-retry-count": "1"}
        post = lambda: client.post(CHAT, json=chat(), headers=again)  # noqa: E731
        answers = [pool.submit(post) for _ in range(3)]
        time.sleep(1)  # all of them have joined
        runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(3)]
        hold.set()
        ids = {answer.result().headers["x-runpod-job-id"] for answer in answers}
    assert len(ids) == len(runpod.jobs) == 3


@pytest.mark.parametrize(
    ("attempt", "seconds"), [("0", 0.5), ("1", 1), ("2", 2), ("4", 8), ("9", 8), ("999999999", 8)]
)
def test_a_retry_is_waited_for_as_long_as_sdks_pause(attempt: str, seconds: float) -> None:
    sender = retries.Sender.of({"x-stainless-retry-count": attempt}, began=0)
    assert sender.pause_seconds(times_left=0) == seconds


@pytest.mark.slow
def test_an_sdk_whose_timeout_passed_and_that_does_not_come_back_is_not_waited_for_long(
    proxy_url: str, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "TIMEOUT_SHARE", 0.05)
    monkeypatch.setattr(several_readers, "HOLD_SECONDS", 3600)
    runpod.script = [Page("IN_QUEUE")]
    with (
        sdk(proxy_url, [], timeout=2, max_retries=0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        ask(client)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


@pytest.mark.slow
def test_an_sdk_that_leaves_before_its_timeout_cancels_at_once(
    client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(several_readers, "RETRY_MARGIN_SECONDS", 3600)
    runpod.script = [Page("IN_QUEUE")]
    headers = {"x-stainless-retry-count": "0", "x-stainless-read-timeout": "600"}
    leave(client, runpod, headers)
    wait_until(lambda: runpod.job_id in runpod.cancelled)


def test_two_first_requests_of_sdks_with_equal_bodies_are_two_jobs(
    proxy_url: str, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]
    with ThreadPoolExecutor() as pool, sdk(proxy_url, [], timeout=15) as client:
        asked = [pool.submit(ask, client) for _ in range(2)]
        wait_until(lambda: len(runpod.jobs) == 2)
        runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(2)]
        hold.set()
        assert [one.result() for one in asked] == ["Grüße"] * 2


def test_a_repetition_does_not_join_a_client_that_still_waits(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]

    def ask_for_the(attempt: str) -> str:
        headers = {"x-stainless-retry-count": attempt, "x-stainless-read-timeout": "600"}
        return client.post(CHAT, json=chat(), headers=headers).text

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask_for_the, "0")
        wait_until(lambda: runpod.stream_calls == 1)
        again = pool.submit(ask_for_the, "1")
        try:
            wait_until(lambda: len(runpod.jobs) == 2)
            runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(2)]
        finally:
            hold.set()
        assert (first.result(), again.result()) == (TEXT, TEXT)


def test_a_stream_that_broke_is_given_again_from_the_beginning(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    hold = threading.Event()
    runpod.script = [
        Page("IN_PROGRESS", FRAMES[:1]),
        Page("IN_PROGRESS", FRAMES[1:2], hold=hold),
        Page("COMPLETED", FRAMES[2:]),
    ]
    with streaming(client, idempotent) as pieces:
        next(pieces)
        wait_until(lambda: runpod.stream_calls == 2)
    hold.set()  # its outputs come to a poll that nobody waits for
    with streaming(client, idempotent) as pieces:
        assert text(pieces) == BODY
    assert len(runpod.jobs) == 1
    assert runpod.cancelled == []


def test_two_requests_with_the_same_key_share_one_job(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    with streaming(client, idempotent) as one, streaming(client, idempotent) as other:
        both = events_of(one), events_of(other)
        firsts = next(both[0]), next(both[1])
        assert firsts[0] == firsts[1]
        hold.set()
        for first, rest in zip(firsts, both, strict=True):
            assert first + "".join(rest) == BODY
    assert len(runpod.jobs) == 1


@pytest.mark.slow
def test_the_one_that_stays_gets_the_whole_answer_when_the_other_leaves(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    idempotent: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(several_readers, "HOLD_SECONDS", 0)
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("IN_PROGRESS", FRAMES[1:], hold=hold)]
    with streaming(client, idempotent) as one:
        events = events_of(one)
        first = next(events)
        with streaming(client, idempotent) as other:
            next(other)
        time.sleep(0.3)  # nothing is to happen, so there is nothing to wait for
        hold.set()
        assert first + "".join(events) == BODY
    assert runpod.cancelled == []


def test_an_error_reaches_both(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    hold = threading.Event()
    runpod.script = [Page("IN_PROGRESS", FRAMES[:1]), Page("FAILED", hold=hold)]
    runpod.final = {"status": "FAILED", "error": "boom"}
    with streaming(client, idempotent) as one, streaming(client, idempotent) as other:
        both = events_of(one), events_of(other)
        firsts = next(both[0]), next(both[1])
        hold.set()
        errors = [
            last_error(first + "".join(rest)) for first, rest in zip(firsts, both, strict=True)
        ]
    assert [error["code"] for error in errors] == ["worker_failed"] * 2


def test_a_finished_answer_is_given_again_without_a_job(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    answers = [client.post(CHAT, json=chat(), headers=idempotent) for _ in range(2)]
    assert [answer.text for answer in answers] == [TEXT] * 2
    assert answers[0].headers["x-runpod-job-id"] == answers[1].headers["x-runpod-job-id"]
    assert len(runpod.jobs) == 1


def test_a_finished_answer_is_not_kept_for_ever(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
    idempotent: dict[str, str],
) -> None:
    monkeypatch.setattr(several_readers, "KEPT_SECONDS", 0.1)
    runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(100)]

    def is_asked_again() -> bool:
        assert client.post(CHAT, json=chat(), headers=idempotent).text == TEXT
        return len(runpod.jobs) > 1

    wait_until(is_asked_again)


def test_a_failed_answer_is_not_given_again(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.script = [Page("FAILED")]
    runpod.final = {"status": "FAILED", "error": "boom"}
    assert client.post(CHAT, json=chat(), headers=idempotent).status_code == 502
    runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN])]
    assert client.post(CHAT, json=chat(), headers=idempotent).text == TEXT


def test_an_error_of_vllm_is_not_given_again(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.scripts["ep"] = [
        Page("COMPLETED", [PLAIN | {"status": 503}]),
        Page("COMPLETED", [PLAIN]),
    ]
    answers = [client.post(CHAT, json=chat(), headers=idempotent) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]


def test_the_same_key_with_another_body_is_refused(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    client.post(CHAT, json=chat(), headers=idempotent)
    other = client.post(CHAT, json=chat(seed=1), headers=idempotent)
    assert other.status_code == 400
    assert error_of(other)["code"] == "idempotency_key_reused"
    assert len(runpod.jobs) == 1


def test_a_form_sent_again_with_another_boundary_is_the_same(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.script = [Page("COMPLETED", [PLAIN])]
    for _ in range(2):  # httpx makes up a boundary for each
        answer = client.post(
            "/v1/audio/transcriptions",
            data={"model": "m"},
            files={"file": ("a.wav", b"RIFF")},
            headers=idempotent,
        )
        assert answer.text == TEXT
    assert len(runpod.jobs) == 1


@pytest.mark.parametrize("settings", [TWO_KEYS], indirect=True)
def test_another_api_key_has_a_job_of_its_own(
    client: httpx.Client, runpod: ScriptedRunPod, idempotent: dict[str, str]
) -> None:
    runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(2)]
    for key in (KEY, "sk-other"):
        headers = idempotent | {"authorization": f"Bearer {key}"}
        assert client.post(CHAT, json=chat(), headers=headers).text == TEXT
    assert len(runpod.jobs) == 2


def test_a_configured_key_cannot_have_the_name_of_one_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(f'[endpoints.ep]\n[keys.key-1]\nsha256 = "{"0" * 64}"\n')
    with pytest.raises(ConfigError, match=r"line 2: keys\.key-1: a key of PROXY_API_KEYS"):
        load(settings_for("http://127.0.0.1:1", config=path, runpod_endpoint_id=None, models=""))


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_a_malformed_key_is_refused(client: httpx.Client, runpod: ScriptedRunPod, key: str) -> None:
    headers = {b"idempotency-key": key.encode("latin-1")}
    answer = client.post(CHAT, json=chat(), headers=headers)
    assert answer.status_code == 400
    assert runpod.jobs == []


@pytest.mark.slow
def test_an_answer_that_nobody_comes_back_for_is_cancelled(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
    idempotent: dict[str, str],
) -> None:
    monkeypatch.setattr(several_readers, "HOLD_SECONDS", 1)
    runpod.script = [Page("IN_QUEUE")]
    began = time.monotonic()
    leave(client, runpod, idempotent, after_seconds=0.5)
    wait_until(lambda: runpod.job_id in runpod.cancelled)
    assert time.monotonic() - began >= 0.5 + 1


@pytest.mark.parametrize("bound", ["MAX_KEPT_BYTES", "MAX_TOTAL_BYTES"])
def test_an_answer_too_large_to_keep_is_whole_for_those_who_read_it_and_joined_no_more(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
    idempotent: dict[str, str],
    bound: str,
) -> None:
    monkeypatch.setattr(several_readers, bound, 2_000)
    hold = threading.Event()
    frames: list[dict[str, Any]] = [HEAD | {"text": event("a")}]
    frames += [{"seq": n, "text": event("b" * 500)} for n in range(1, 20)]
    frames += [{"seq": 20, "text": "data: [DONE]\n\n", "end": True}]
    pages = [Page("IN_PROGRESS", [frame]) for frame in frames]
    pages[1].hold = hold
    runpod.script = pages
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        both = [stack.enter_context(streaming(client, idempotent)) for _ in range(2)]
        events = [events_of(pieces) for pieces in both]
        firsts = [next(one) for one in events]
        hold.set()
        rests = list(pool.map("".join, events))
        whole = "".join(frame["text"] for frame in frames)
        assert [first + rest for first, rest in zip(firsts, rests, strict=True)] == [whole] * 2
    runpod.scripts["ep"] = [Page("COMPLETED", FRAMES)]
    with streaming(client, idempotent) as pieces:
        assert text(pieces) == BODY
    assert len(runpod.jobs) == 2


def test_an_answer_whose_beginning_alone_is_too_large_to_keep_is_whole(
    client: httpx.Client,
    runpod: ScriptedRunPod,
    monkeypatch: pytest.MonkeyPatch,
    idempotent: dict[str, str],
) -> None:
    monkeypatch.setattr(several_readers, "MAX_KEPT_BYTES", 2_000)
    beginning, rest = '{"text": "' + "b" * 5_000, '"}'
    frames = [PLAIN | {"text": beginning, "end": False}, {"seq": 1, "text": rest, "end": True}]
    runpod.script = [Page("IN_PROGRESS", [frame]) for frame in frames]
    answer = client.post(CHAT, json=chat(), headers=idempotent)
    assert answer.text == beginning + rest


def test_beyond_its_bounds_the_oldest_finished_answer_is_given_up(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_ANSWERS", 1)
    runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(3)]
    for name in ("a", "b", "b", "a"):
        headers = {"idempotency-key": f"bounds-{name}"}
        assert fresh_client.post(CHAT, json=chat(), headers=headers).text == TEXT
    assert len(runpod.jobs) == 3


@pytest.mark.parametrize("settings", [{"keep_alive_seconds": 60}], indirect=True)
def test_beyond_its_bounds_a_running_answer_is_kept_and_the_next_one_not_shared(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_ANSWERS", 1)
    hold = threading.Event()
    runpod.script = [Page("IN_QUEUE", [PLAIN], hold=hold)]

    def ask_as(name: str) -> str:
        headers = {"idempotency-key": f"places-{name}"}
        return fresh_client.post(CHAT, json=chat(), headers=headers).text

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask_as, "a")
        try:
            wait_until(lambda: runpod.stream_calls == 1)
            runpod.scripts["ep"] = [Page("COMPLETED", [PLAIN]) for _ in range(3)]
            assert [ask_as("b"), ask_as("b")] == [TEXT] * 2
        finally:
            hold.set()
        assert first.result() == TEXT
    assert ask_as("a") == TEXT
    assert len(runpod.jobs) == 3


@pytest.mark.slow
def test_a_proxy_that_stops_cancels_what_it_holds(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    idempotent: dict[str, str],
) -> None:
    proxy = Proxy(scripted_runpod[1], drain_seconds=20, state_dir=tmp_path)
    try:
        runpod.script = [Page("IN_QUEUE")]
        leave(proxy.client, runpod, idempotent)
        proxy.client.close()
        proxy.process.terminate()
        assert proxy.process.wait(timeout=60) == 0
        assert runpod.job_id in runpod.cancelled
    finally:
        proxy.close()
