"""Which workers may open a channel to this proxy: each job has a token that is good once."""

import hashlib
import secrets


class Tokens:
    """Tokens in force, by their SHA-256: how long a wrong one takes to refuse tells nothing."""

    def __init__(self) -> None:
        self._endpoints: dict[bytes, str] = {}

    def issue(self, endpoint: str) -> str:
        """A token for the worker that takes a job of this endpoint."""
        token = secrets.token_urlsafe(32)
        self._endpoints[_digest(token)] = endpoint
        return token

    def redeem(self, token: str) -> str | None:
        """The endpoint of a token in force, which it is no longer."""
        return self._endpoints.pop(_digest(token), None)

    def withdraw(self, token: str) -> None:
        """Its job has ended."""
        self._endpoints.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
