"""The ways the emulator says no.

EmulatorError
├── BadRequest            400
│   ├── NotRetryable      400  only FAILED and TIMED_OUT jobs can be retried
│   └── TooLarge          400  a body above the payload limit
├── Unauthorized          401
├── NotFound              404  no such job, or its retention has passed; no such endpoint
└── TooManyRequests       429
"""

import math


class EmulatorError(Exception):
    """A call the emulator refuses; `str()` is what the caller is told."""

    status = 500


class BadRequest(EmulatorError):
    """The call makes no sense as it is."""

    status = 400


class NotRetryable(BadRequest):
    """Only a FAILED or TIMED_OUT job can be retried."""


class TooLarge(BadRequest):
    """The body is above the payload limit."""


class Unauthorized(EmulatorError):
    """No key, or not ours."""

    status = 401


class TooManyRequests(EmulatorError):
    """One call too many; another may be made after `retry_after_seconds`."""

    status = 429

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = math.ceil(retry_after_seconds)


class NotFound(EmulatorError):
    """No such endpoint or job, or the job is too old to be kept."""

    status = 404
