"""The ways the emulator says no.

EmulatorError
├── BadRequest            400
│   ├── NotRetryable      400  only FAILED and TIMED_OUT jobs can be retried
│   └── TooLarge          400  a body above the payload limit
├── Unauthorized          401
└── NotFound              404  no such job, or its retention has passed; no such endpoint
"""


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


class NotFound(EmulatorError):
    """No such endpoint or job, or the job is too old to be kept."""

    status = 404
