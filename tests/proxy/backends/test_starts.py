"""Starts that fail: what clients are told, and what is not tried again."""

from typing import Any

import httpx
import msgspec
import pytest

from proxy.app import create_app
from proxy.backends.health import GONE_SECONDS, ILL_AFTER_WORK_SECONDS, Health, StartHistory
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve

CAUSE = "Lower MAX_MODEL_LEN."
OURS = {
    "seq": 0,
    "run": "r",
    "status": 503,
    "content_type": "application/json",
    "start_failed": "context_too_long",
    "text": msgspec.json.encode(
        {"error": {"message": CAUSE, "type": "server_error", "code": "model_start_failed"}}
    ).decode(),
    "end": True,
}
STARTUP_ERROR = {"message": CAUSE, "type": "startup_error", "code": None}
PLAIN = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
PRESTART = {"event": "prestart_failed", "error_type": "ValueError", "error_message": CAUSE}
FORMS: dict[str, tuple[list[Page], dict[str, Any] | None]] = {
    "our worker": ([Page("COMPLETED", [OURS])], None),
    "worker-vllm": ([Page("FAILED")], {"status": "FAILED", "error": str(STARTUP_ERROR)}),
    "worker-vllm, an output": ([Page("COMPLETED", [{"error": STARTUP_ERROR}])], None),
    "worker-vllm, a result": (
        [Page("COMPLETED")],
        {"status": "COMPLETED", "output": {"error": STARTUP_ERROR}},
    ),
    "runpod 2": (
        [Page("FAILED")],
        {"status": "FAILED", "error": msgspec.json.encode(PRESTART).decode()},
    ),
}


@pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 20}], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_failed_start_is_told_with_its_cause_and_not_to_be_repeated(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, form: str, stream: bool
) -> None:
    runpod.script, runpod.final = FORMS[form]
    answer = fresh_client.post("/v1/chat/completions", json=chat(stream=stream))
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (503, "model_start_failed")
    assert answer.headers["x-should-retry"] == "false"
    assert CAUSE in error["message"]


@pytest.mark.parametrize("settings", [{"first_byte_hold_seconds": 0}], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_a_failed_start_is_an_event_of_a_stream_that_has_begun(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, form: str
) -> None:
    runpod.script, runpod.final = FORMS[form]
    answer = fresh_client.post("/v1/chat/completions", json=chat(stream=True))
    last = answer.text.rstrip().splitlines()[-1]
    error = msgspec.json.decode(last.removeprefix("data: "))["error"]
    assert (answer.status_code, error["code"]) == (200, "model_start_failed")
    assert CAUSE in error["message"]


def test_an_answer_that_has_ended_speaks_for_no_worker(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.backends.starts.GOOD_SECONDS", 0.0)
    runpod.script = [Page("COMPLETED", [PLAIN])]
    assert fresh_client.post("/v1/chat/completions", json=chat()).status_code == 200
    runpod.reset()
    runpod.script, runpod.final = FORMS["our worker"]
    for _ in range(2):
        answer = fresh_client.post("/v1/chat/completions", json=chat())
        assert error_of(answer)["code"] == "model_start_failed"
    assert len(runpod.jobs) == 1


def test_a_failed_start_is_tried_again_when_the_configuration_is_read_again(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod
) -> None:
    runpod.script, runpod.final = FORMS["worker-vllm"]
    app = create_app(settings_for(scripted_runpod[1]))
    headers = {"authorization": f"Bearer {KEY}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        for _ in range(3):
            answer = client.post("/v1/chat/completions", json=chat())
            assert error_of(answer)["code"] == "model_start_failed"
        assert len(runpod.jobs) == 1
        app.state.services.reload()
        client.post("/v1/chat/completions", json=chat())
        assert len(runpod.jobs) == 2


Workers = dict[str, int]
NONE: Workers = {}
STARTING, THREE, UP = {"initializing": 1}, {"initializing": 3}, {"idle": 1}
ILL, THROTTLED = {"unhealthy": 1}, {"throttled": 1}
MIXED = {"initializing": 2, "unhealthy": 1}
RUNS_IDLE = {"running": 1}


def failures(*looks: tuple[dict[str, int], int], apart: float = 0.5) -> int:
    """How many of these looks, at workers and at jobs in the queue, tell of a failed start."""
    history = StartHistory()
    told = 0
    for number, (workers, in_queue) in enumerate(looks):
        answer = {"workers": workers, "jobs": {"inQueue": in_queue, "inProgress": 0}}
        told += history.note(Health.of(answer), 100 + number * apart)
    return told


@pytest.mark.parametrize(
    ("workers", "in_queue"),
    [
        ([STARTING, ILL], 1),
        ([NONE, ILL], 1),  # started and ended between two looks
        ([THREE, MIXED], 9),
        ([UP, ILL, STARTING, ILL], 1),
        ([STARTING, NONE, STARTING, NONE], 1),
        ([STARTING, *[NONE] * int(2 + GONE_SECONDS / 0.5)], 1),
        ([ILL] * 30, 1),
        ([STARTING, THROTTLED] * 3, 1),
    ],
)
def test_a_start_that_comes_to_nothing_while_jobs_wait_has_failed(
    workers: list[dict[str, int]], in_queue: int
) -> None:
    assert failures(*((counters, in_queue) for counters in workers))


@pytest.mark.parametrize(
    "looks",
    [
        [(STARTING, 1), (UP, 1), (NONE, 1)],
        [(STARTING, 1), (NONE, 1), (UP, 0)],  # counters that change one after the other
        [(STARTING, 1), (NONE, 1), (STARTING, 1), (UP, 0)],
        [(STARTING, 1), (NONE, 0), (STARTING, 1), (NONE, 0)],  # given up: the queue got empty
        [(STARTING, 1), (NONE, 0), (NONE, 1), (STARTING, 1)],
        [(THREE, 9), (STARTING, 9), (STARTING, 9)],  # scaled down
        [(STARTING, 1), (THROTTLED, 1), (STARTING, 1), (THROTTLED, 1)],
        [(THROTTLED, 1)] * 300,
        [(NONE, 1)] * 300,  # no worker is started at all
        [(UP, 1), (ILL, 1), (ILL, 1), (STARTING, 1), (UP, 1)],  # lost while it was at work
        [(UP, 1)] + [(ILL, 1)] * int(ILL_AFTER_WORK_SECONDS / 0.5),
        [(ILL, 0)] * 300,  # nobody waits for it
        [(ILL, 1), ({"unhealthy": 1, "initializing": 1}, 1)] * 30,  # an old one, and a new one
        [(RUNS_IDLE, 1)] * 300,
        [({"running": 1, "initializing": 1}, 0), (NONE, 0)],
    ],
)
def test_a_worker_that_goes_for_another_reason_is_no_failed_start(
    looks: list[tuple[dict[str, int], int]],
) -> None:
    assert failures(*looks) == 0


def test_a_worker_that_runs_and_takes_nothing_is_not_up() -> None:
    jobs = {"inQueue": 2, "inProgress": 0}
    assert Health.of({"workers": RUNS_IDLE, "jobs": jobs}).up == 0
    assert Health.of({"workers": RUNS_IDLE, "jobs": jobs | {"inProgress": 1}}).up == 1
    assert Health.of({"workers": RUNS_IDLE, "jobs": {"inQueue": 2}}).up == 1
    assert Health.of({"workers": RUNS_IDLE, "jobs": jobs | {"inQueue": 0}}).up == 1


def test_a_good_worker_that_dies_unnoticed_is_no_failed_start() -> None:
    history = StartHistory()
    looks = [
        {"workers": {"ready": 1, "running": 1}, "jobs": {"inQueue": 0, "inProgress": 1}},
        {"workers": {"running": 1}, "jobs": {"inQueue": 1, "inProgress": 0}},
        {"workers": {"unhealthy": 1}, "jobs": {"inQueue": 1, "inProgress": 0}},
    ]
    assert not any(history.note(Health.of(look), now) for now, look in enumerate(looks))
