"""Starts that fail: what clients are told, and what is not tried again."""

from typing import Any

import httpx
import msgspec
import pytest

from tests.proxy.conftest import chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_requests import error_of

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
