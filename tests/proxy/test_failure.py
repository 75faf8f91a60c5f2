"""Why a job failed, told from the worker's `error` in each form it comes in."""

import msgspec
import pytest

from proxy.errors import VLLMError, WorkerFailed
from proxy.failure import error_from

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
