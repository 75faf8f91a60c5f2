"""Sealed jobs: RunPod keeps their input and outputs, and only our proxy and this worker read them.

AES-256-GCM under keys that are the job's alone: HKDF-SHA256 makes them of a secret that proxy and
worker share and of the job's salt, one for the input and one for the frames of each run. A frame's
number is its nonce, and whether it is the last one is authenticated as well. Blanks behind the JSON
hide its exact length; nothing is compressed, since then the length would tell what is in it.
"""

import base64
import json
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from worker.errors import InvalidInput, SealRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROTOCOL: Final = 2
"""What a sealed job's `proxy.protocol` says in place of 1."""
BLOCK_BYTES: Final = 256
"""The length of what is sealed is a multiple of this."""
SHOWN: Final = frozenset({"seq", "run", "end"})
"""What of a frame is not sealed, since RunPod and the direct channel's outbox go by it."""
INPUT: Final = b"runpod-openai-proxy sealed input"
FRAMES: Final = b"runpod-openai-proxy sealed frames "
INPUT_NONCE: Final = bytes(12)
"""Its key seals nothing else."""


class Seal:
    """Seals the frames of one run of a job."""

    def __init__(self, secret: bytes, salt: bytes) -> None:
        self.run = secrets.token_hex(16)
        """Another one for each run: a second one must not seal other frames by the same key."""
        self._frames = _cipher(secret, salt, FRAMES + self.run.encode())

    def frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        """The frame as RunPod gets it: its number, its run, and whether it is the last."""
        shown = {"seq": frame["seq"], "run": self.run}
        if ends := frame.get("end", False):
            shown["end"] = True
        hidden = {key: value for key, value in frame.items() if key not in SHOWN}
        # What vLLM's headers hold need not be text.
        text = json.dumps(hidden, ensure_ascii=False, separators=(",", ":"))
        plain = text.encode(errors="replace")
        plain = plain.ljust(-(-len(plain) // BLOCK_BYTES) * BLOCK_BYTES)
        nonce = frame["seq"].to_bytes(12)
        data = self._frames.encrypt(nonce, plain, b"end" if ends else b"")
        return shown | {"sealed": base64.b64encode(data).decode()}


class Seals:
    """The secrets that sealed jobs may be sealed by, and whether others are taken as well."""

    def __init__(self, shared: Iterable[str] = (), *, allow_unsealed: bool = False) -> None:
        self._secrets = [secret.encode() for secret in shared]
        self._takes_unsealed = allow_unsealed or not self._secrets

    def prepare(self) -> None:
        """Import what it takes, where it is needed: that takes a fifteenth of a second."""
        if self._secrets:
            import cryptography.hazmat.primitives.ciphers.aead
            import cryptography.hazmat.primitives.kdf.hkdf  # noqa: F401

    def open(self, job: dict[str, Any]) -> tuple[dict[str, Any], Seal | None]:
        """The job with an input that can be read, and what to seal its frames with, if it was.

        Raises:
            SealRefused: it is not sealed and has to be, or no secret opens it.
            InvalidInput: it is sealed in a way that this worker does not know.
        """
        job_input = job.get("input")
        if not (isinstance(job_input, dict) and "sealed" in job_input):
            if not self._takes_unsealed:
                raise SealRefused("unsealed")
            return job, None
        told = job_input.get("proxy")
        if not (isinstance(told, dict) and told.get("protocol") == PROTOCOL):
            raise InvalidInput(f"This worker seals by protocol {PROTOCOL}.", "proxy.protocol")
        if not self._secrets:
            raise SealRefused("no_secret")
        return self._opened(job, job_input["sealed"])

    def _opened(self, job: dict[str, Any], sealed: Any) -> tuple[dict[str, Any], Seal]:
        from cryptography.exceptions import InvalidTag

        try:
            salt, data = (base64.b64decode(sealed[key], validate=True) for key in ("salt", "data"))
        except (TypeError, KeyError, ValueError):
            raise SealRefused("wrong_secret") from None
        for secret in self._secrets:
            try:
                plain = _cipher(secret, salt, INPUT).decrypt(INPUT_NONCE, data, None)
            except InvalidTag:
                continue
            return job | {"input": json.loads(plain)}, Seal(secret, salt)
        raise SealRefused("wrong_secret")


def _cipher(secret: bytes, salt: bytes, purpose: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, salt, purpose).derive(secret))
