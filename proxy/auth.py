"""Who may call: the client's API key, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from proxy.errors import InvalidAPIKey


class Keys:
    """The API keys that clients may use; with none, everybody may call."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def check(self, connection: HTTPConnection) -> None:
        """Raise InvalidAPIKey unless the request carries one of the keys.

        The key is read from `Authorization: Bearer KEY`, as OpenAI's clients send it.
        """
        if not self._digests:
            return
        key = _bearer(connection.headers.get("authorization", ""))
        if not key:
            raise InvalidAPIKey(
                "You didn't provide an API key. Provide it in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        digest = _digest(key)
        # All digests are compared, so the time taken does not tell which one matched.
        if not sum(hmac.compare_digest(digest, known) for known in self._digests):
            raise InvalidAPIKey("Incorrect API key provided.")


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
