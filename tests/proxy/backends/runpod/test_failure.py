"""Why a job failed, told from the worker's `error` in each form it comes in."""

import msgspec
import pytest

from proxy.backends.runpod.failure import error_from
from proxy.backends.runpod.wire import reader_for
from proxy.errors import ModelStartFailed, StartCancelled, VLLMError, WorkerFailed

VLLM_404 = '{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}'


def test_worker_vllms_python_literal_tells_vllms_status_and_body() -> None:
    message = f"vLLM returned HTTP 404: {VLLM_404}"
    error = error_from(str({"message": message, "type": "worker_error", "code": None}))
    assert isinstance(error, VLLMError)
    assert (error.status, error.body) == (404, VLLM_404.encode())


def test_vllms_error_in_json_keeps_its_status() -> None:
    error = error_from(VLLM_404)
    assert isinstance(error, VLLMError)
    assert error.status == 404
    assert msgspec.json.decode(error.body) == msgspec.json.decode(VLLM_404)


def test_a_plain_text_of_vllm_is_put_in_the_envelope() -> None:
    error = error_from(str({"message": "vLLM returned HTTP 500: oh <b>no</b>"}))
    assert error.status == 500
    assert msgspec.json.decode(error.body)["error"]["message"] == "oh <b>no</b>"


@pytest.mark.parametrize(
    "error",
    [
        None,
        "",
        "job timed out after 1 retries",
        "handler: secret prompt \ntraceback: File '/src/handler.py'",
        '{"error_type": "<class \'ValueError\'>", "error_message": "secret prompt"}',
        str({"message": "CUDA error: secret prompt", "type": "worker_error", "code": None}),
        "[" * 200_000,
        ["secret prompt"],
    ],
)
def test_any_other_failure_is_the_workers_and_tells_no_secret(error: object) -> None:
    told = error_from(error)
    assert isinstance(told, WorkerFailed)
    assert told.status == 502
    assert b"secret" not in told.body


STARTUP = {
    "message": "MAX_MODEL_LEN=9999 is larger than the context length Qwen/Qwen3-8B declares in its "
    "config.json. Lower MAX_MODEL_LEN (or unset it to use the model's own limit).",
    "type": "startup_error",
    "code": None,
}


def prestart(**fields: object) -> dict[str, object]:
    """What runpod 2 says of a prestart hook that failed."""
    return {
        "event": "prestart_failed",
        "error_type": "RuntimeError",
        "error_message": "boom",
        "error_traceback": 'Traceback ...\n  File "/src/secret.py", line 3',
        "worker_id": "w1",
        "runpod_version": "2.0.0rc2",
        "hook": "load_model",
        "logs": "secret prompt",
    } | fields


@pytest.mark.parametrize(
    "error",
    [
        str(STARTUP),
        STARTUP,
        msgspec.json.encode(STARTUP).decode(),
        {"error": STARTUP},
        {"error": str(STARTUP)},
        msgspec.json.encode({"error": STARTUP}).decode(),
    ],
)
def test_worker_vllms_startup_error_tells_its_cause_and_what_to_change(error: object) -> None:
    told = error_from(error)
    assert isinstance(told, ModelStartFailed)
    assert (told.status, told.code) == (503, "model_start_failed")
    assert told.headers == {"x-should-retry": "false"}
    assert str(STARTUP["message"]) in told.message


@pytest.mark.parametrize("wants_stream", [False, True])
@pytest.mark.parametrize("error", [STARTUP, str(STARTUP)])
def test_a_startup_error_that_comes_as_an_output_is_a_failed_start(
    error: object, wants_stream: bool
) -> None:
    outputs = [{"error": error}]
    for read in ("feed", "complete"):
        reader = reader_for(outputs[0], wants_stream=wants_stream, ends=(b"data: [DONE]",))
        with pytest.raises(ModelStartFailed, match="Lower MAX_MODEL_LEN"):
            getattr(reader, read)(outputs)


def test_runpod_2s_failed_prestart_hook_tells_its_name_and_the_exception_alone() -> None:
    message = 'CUDA out of memory. Tried to allocate 2 GiB\n\n  File "/src/secret.py" secret'
    details = prestart(error_type="OutOfMemoryError", error_message=message)
    told = error_from(msgspec.json.encode(details).decode())
    assert isinstance(told, ModelStartFailed)
    assert told.message == (
        "The model could not be started: the prestart hook 'load_model' of the worker failed: "
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. "
        "Use a GPU with more memory, a smaller or quantized model, or a shorter context."
    )


def test_a_prestart_hook_that_takes_too_long_is_a_failed_start() -> None:
    message = "prestart hook 'load_model' exceeded prestart_timeout of 20s"
    details = prestart(error_type="PrestartTimeout", error_message=message)
    told = error_from(msgspec.json.encode(details).decode())
    assert isinstance(told, ModelStartFailed)
    assert "of 20s. Allow the hook more time (prestart_timeout)" in told.message


def test_a_prestart_that_was_cancelled_is_a_shutdown_and_may_be_tried_again() -> None:
    details = prestart(event="prestart_cancelled", error_type="PrestartCancelled")
    told = error_from(msgspec.json.encode(details).decode())
    assert isinstance(told, StartCancelled)
    assert told.headers == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"error_message": None, "hook": None, "error_type": 7},
        {"error_message": ["secret"], "hook": "secret prompt, with blanks"},
        {"error_message": "no " + "x" * 100_000},
        {"error_type": "<class 'secret'>"},
        {"error_message": "token=secret1234 in /home/secret/x"},
    ],
)
def test_a_failed_prestart_hook_in_any_state_tells_no_secret(fields: dict[str, object]) -> None:
    told = error_from(msgspec.json.encode(prestart(**fields)).decode())
    assert isinstance(told, ModelStartFailed)
    assert "secret" not in told.message
    assert len(told.message) < 700
