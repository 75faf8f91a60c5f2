"""Submission: what a client asks to be done, checked: input, policy, and what is passed through."""

from dataclasses import dataclass
from typing import Any, Final

from emulator.errors import BadRequest
from emulator.work.job import Policy

MAX_POLICY_MS: Final = 10**15
"""Of a time that a policy gives; no clock can count much more."""
PASSED_THROUGH: Final = ("webhook", "webhookV2", "s3Config")
"""Handed to the worker as it came."""


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
    extras = {key: body[key] for key in PASSED_THROUGH if body.get(key)}
    return Submission(job_input, _policy(body.get("policy", {}), default), extras)


def _policy(policy: Any, default: Policy) -> Policy:
    if not isinstance(policy, dict):
        raise BadRequest("policy must be an object")
    return Policy(
        _seconds(policy, "executionTimeout", default.execution_timeout_seconds),
        _seconds(policy, "ttl", default.ttl_seconds),
        bool(policy.get("lowPriority")),
    )


def _seconds(policy: dict[str, Any], name: str, default: float) -> float:
    milliseconds = policy.get(name)
    if milliseconds is None:
        return default
    is_number = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    if not is_number or not 0 < milliseconds < MAX_POLICY_MS:
        raise BadRequest(f"policy.{name} must be a positive number of milliseconds")
    return float(milliseconds) / 1000
