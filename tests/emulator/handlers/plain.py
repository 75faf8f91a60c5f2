"""A worker whose handler is a plain function: what it returns is its input's `return`."""

from typing import Any

import runpod


def handler(job: dict[str, Any]) -> Any:
    """Hand the `return` of the input back, after the progress it asks for, or fail."""
    job_input = job["input"]
    if "progress" in job_input:
        runpod.serverless.progress_update(job, job_input["progress"])
    if "raise" in job_input:
        raise RuntimeError(job_input["raise"])
    return job_input.get("return")


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
