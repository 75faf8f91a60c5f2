"""Submission: what a client asks to be done, checked: an input, a policy, and what rides along."""

from dataclasses import dataclass
from typing import Any, Final

from emulator.errors import BadRequest
from emulator.work.job import Policy

FOR_EVER_MS: Final = 10**15
RIDES_ALONG: Final = ("webhook", "webhookV2", "s3Config")


@dataclass(frozen=True, slots=True)
class Submission:
    """One job to be queued."""

    input: dict[str, Any]
    policy: Policy
    extras: dict[str, Any]


def parse(body: dict[str, Any], default: Policy) -> Submission:
    """The submission in a body of /run or its like; what it leaves out is as in `default`.

    Raises:
        BadRequest: something in it makes no sense.
    """
    job_input = body.get("input")
    if not isinstance(job_input, dict):
        raise BadRequest("input is required and must be an object")
    extras = {key: body[key] for key in RIDES_ALONG if body.get(key)}
    return Submission(job_input, _policy(body.get("policy", {}), default), extras)


def _policy(asked: Any, default: Policy) -> Policy:
    if not isinstance(asked, dict):
        raise BadRequest("policy must be an object")
    return Policy(
        _seconds(asked, "executionTimeout", default.execution_timeout_seconds),
        _seconds(asked, "ttl", default.ttl_seconds),
        bool(asked.get("lowPriority")),
    )


def _seconds(asked: dict[str, Any], name: str, default: float) -> float:
    milliseconds = asked.get(name)
    if milliseconds is None:
        return default
    is_number = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    if not is_number or not 0 < milliseconds < FOR_EVER_MS:
        raise BadRequest(f"policy.{name} must be a positive number of milliseconds")
    return float(milliseconds) / 1000
