"""The ways the emulator says no.

EmulatorError
├── BadRequest            400
│   ├── NotRetryable      400  only FAILED and TIMED_OUT jobs can be retried
│   ├── TooLarge          400  a body above the payload limit
│   ├── WrongKind         400  a queue's operation on a load-balancing endpoint, or the reverse
│   └── NoWorker          400  no worker was there for a relayed request in time
├── Unauthorized          401
├── Forbidden             403  a good key without this right
├── NotFound              404  no such job, or its retention has passed; no such endpoint
│   └── WorkerGone        404  the one worker that a relayed request insists on
├── RequestTooLarge       413  a relayed body above the payload limit
├── TooManyRequests       429
├── BadGateway            502  the worker of a relayed request does not answer, or too much
└── GatewayTimeout        524  the worker of a relayed request takes too long
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


class WrongKind(BadRequest):
    """The operation is one of the other kind of endpoint."""


class NoWorker(BadRequest):
    """No worker could take the request in time."""


class Unauthorized(EmulatorError):
    """No key, or not ours."""

    status = 401


class Forbidden(EmulatorError):
    """The key is a good one, but not for this."""

    status = 403


class TooManyRequests(EmulatorError):
    """One call too many; another may be made after `retry_after_seconds`."""

    status = 429

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = math.ceil(retry_after_seconds)


class NotFound(EmulatorError):
    """No such endpoint or job, or the job is too old to be kept."""

    status = 404


class WorkerGone(NotFound):
    """The one worker the request insists on is not there, or no more."""


class RequestTooLarge(EmulatorError):
    """The body of a request to a worker is above the payload limit."""

    status = 413


class BadGateway(EmulatorError):
    """A healthy worker does not answer, breaks off, or answers more than may be passed on."""

    status = 502


class GatewayTimeout(EmulatorError):
    """The worker did not finish in the time there is for one request."""

    status = 524
