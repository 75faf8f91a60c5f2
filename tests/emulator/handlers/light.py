"""A worker that starts in a blink: takes one job after another with the standard library alone.

Input `{"exit": n}` ends the process with that code, `{"begun": path}` creates the file and
`{"until": path}` waits for one; then the input is handed back as output. Of the proxy's jobs the
client's body counts. For tests of the scaler, where the SDK's seconds of start-up would add up.
"""

import http.client
import json
import os
import time
import urllib.parse
from pathlib import Path
from typing import Any


def call(method: str, url: str, body: Any = None) -> Any:
    """One HTTP call with the worker's key; the parsed answer, or None when it is empty."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    content = None if body is None else json.dumps(body)
    connection.request(method, f"{parts.path}?{parts.query}", content, headers)
    answer = connection.getresponse().read()
    connection.close()
    return json.loads(answer) if answer else None


def main() -> None:
    """Take jobs for ever."""
    worker_id = os.environ["RUNPOD_POD_ID"]
    take = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", worker_id)
    done = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", worker_id)
    while True:
        job = call("GET", take)
        if job is None:
            continue
        job_input = job["input"].get("openai_input", job["input"])
        if "exit" in job_input:
            os._exit(job_input["exit"])
        if "begun" in job_input:
            Path(job_input["begun"]).touch()
        while "until" in job_input and not Path(job_input["until"]).exists():
            time.sleep(0.02)
        call("POST", done.replace("$ID", job["id"]), {"output": job_input})


if __name__ == "__main__":
    main()
