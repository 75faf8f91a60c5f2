"""A worker whose start fails, in the way that STYLE names.

    exits         ends after a moment, as any image may
    startup-error stays up and ends each job as RunPod's worker-vllm does (August 2026)
    ours          stays up and answers each job with our worker's frame
    prestart      takes jobs, fails those it has when its start fails, and ends: runpod 2's hooks
    hook          the same, but its start goes well; a job that says "hang" is never answered

It writes what SAYS holds to its log first. With GOOD, the name of a file, the first worker that
comes and finds none makes it, and is well: it answers each job with an output.
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

CAUSE = "MAX_MODEL_LEN does not fit. Lower it."
START_SECONDS = float(os.environ.get("START_SECONDS", "0.3"))
STYLE = os.environ.get("STYLE", "exits")
WORKER_ID = os.environ.get("RUNPOD_POD_ID", "")


def take() -> Any:
    """A job, or None if there was none for a while."""
    return call(os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", WORKER_ID))


def post(kind: str, job_id: str, body: Any) -> None:
    """Post an OUTPUT or a part of a STREAM."""
    url = os.environ[f"RUNPOD_WEBHOOK_POST_{kind}"].replace("$RUNPOD_POD_ID", WORKER_ID)
    call(url.replace("$ID", job_id), body)


def call(url: str, body: Any = None) -> Any:
    """One call with the worker's key; the parsed answer, or None when it is empty."""
    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def answer(job_id: str, output: Any) -> None:
    """End the job with one output."""
    post("STREAM", job_id, {"output": output})
    post("OUTPUT", job_id, {"output": [output]})


def frame(status: int, body: Any, **fields: Any) -> dict[str, Any]:
    """The one frame of our worker's answer."""
    head = {"seq": 0, "run": "r", "status": status, "content_type": "application/json"}
    return head | {"text": json.dumps(body), "end": True} | fields


def good_frame(job_input: dict[str, Any]) -> dict[str, Any]:
    """A short chat, streamed if that was asked for."""
    chunk = {
        "id": f"chatcmpl-{job_input['proxy']['request_id']}",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": WORKER_ID}, "finish_reason": "stop"}],
    }
    if not job_input.get("openai_input", {}).get("stream"):
        return frame(200, chunk)
    text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    return frame(200, None) | {"content_type": "text/event-stream", "text": text}


def fail(job_id: str) -> None:
    """End the job for the reason that the start failed."""
    error: dict[str, Any]
    if STYLE == "ours":
        error = {"message": CAUSE, "type": "server_error", "code": "model_start_failed"}
        answer(job_id, frame(503, {"error": error}, start_failed="context_too_long"))
    elif STYLE == "startup-error":
        post(
            "OUTPUT",
            job_id,
            {"error": str({"message": CAUSE, "type": "startup_error", "code": None})},
        )
    else:
        event = {"event": "prestart_failed", "error_type": "ValueError", "error_message": CAUSE}
        post(
            "OUTPUT",
            job_id,
            {"error": json.dumps(event | {"logs": "a secret prompt", "hook": "load"})},
        )


def is_good() -> bool:
    """Whether this is the one worker that is well."""
    if "GOOD" not in os.environ:
        return False
    try:
        Path(os.environ["GOOD"]).open("x").close()
    except FileExistsError:
        return False
    return True


def main() -> None:
    """Start, fail, and do what the style does then."""
    good = is_good()
    sys.stdout.write(os.environ.get("SAYS", ""))
    sys.stdout.flush()
    good = good or STYLE == "hook"
    job = take() if STYLE in ("prestart", "hook") else None
    time.sleep(START_SECONDS)
    if STYLE == "exits" and not good:
        sys.exit(1)
    while True:
        job = job or take()
        if job is not None and "hang" in json.dumps(job["input"]):
            time.sleep(600)
        if job is not None and good:
            answer(job["id"], good_frame(job["input"]))
        elif job is not None:
            fail(job["id"])
        if STYLE == "prestart" and not good:
            sys.exit(1)
        job = None


if __name__ == "__main__":
    main()
