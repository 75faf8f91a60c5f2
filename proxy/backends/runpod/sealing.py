"""Sealed jobs: RunPod keeps their input and outputs, and only the proxy and the worker read them.

AES-256-GCM under keys that are the job's alone: HKDF-SHA256 makes them of the endpoint's secret and
a random salt, one for the input and one for the frames of each run. A frame's number is its nonce,
and whether it is the last one is authenticated as well, so that frames cannot be changed, moved,
repeated or left out. Blanks behind the JSON hide its exact length; nothing is compressed, since
then the length would tell what is in it. `docs/worker.md` has the format.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.api.answer import is_name
from proxy.backends.runpod.failure import NOT_SEALED
from proxy.errors import SealingFailed

PROTOCOL: Final = 2
"""What a job's `proxy.protocol` says in place of 1, so that an older worker refuses it."""
SALT_BYTES: Final = 16
BLOCK_BYTES: Final = 256
"""The length of what is sealed is a multiple of this."""
INPUT: Final = b"runpod-openai-proxy sealed input"
FRAMES: Final = b"runpod-openai-proxy sealed frames "
INPUT_NONCE: Final = bytes(12)
"""Its key seals nothing else."""
CHANGED: Final = "A part of the worker's answer was changed on its way: it does not open."


class Seal:
    """One job's: seals its input, and opens the frames of its answer.

    Its salt is made at random unless one is given.
    """

    def __init__(self, secret: bytes, salt: bytes | None = None) -> None:
        self._secret = secret
        self._salt = os.urandom(SALT_BYTES) if salt is None else salt
        self._run: str | None = None
        self._frames: AESGCM | None = None

    def input(self, job_input: Mapping[str, Any]) -> dict[str, Any]:
        """The input as RunPod gets it."""
        plain = msgspec.json.encode(job_input)
        plain = plain.ljust(-(-len(plain) // BLOCK_BYTES) * BLOCK_BYTES)
        data = self._key(INPUT).encrypt(INPUT_NONCE, plain, None)
        return {"sealed": {"salt": self._salt, "data": data}, "proxy": {"protocol": PROTOCOL}}

    def open(self, frame: dict[str, Any]) -> dict[str, Any]:
        """The frame as the worker made it.

        One that ends the answer before it has begun may be in the clear: the model did not start,
        or the worker cannot open the job. No client is shown such a frame as an answer.

        Raises:
            SealingFailed: it is not sealed for this job, or was changed on its way.
        """
        seq, run, sealed = frame["seq"], frame.get("run"), frame.get("sealed")
        is_refusal = is_name(frame.get("start_failed")) or "seal_refused" in frame
        if sealed is None and seq == 0 and is_refusal:
            return frame
        if not (isinstance(sealed, str) and isinstance(run, str)):
            raise SealingFailed(NOT_SEALED)
        is_last = frame.get("end") is True
        try:
            data = base64.b64decode(sealed, validate=True)
            plain = self._frames_of(run).decrypt(seq.to_bytes(12), data, b"end" if is_last else b"")
            opened = msgspec.json.decode(plain, type=dict[str, Any])
        except (ValueError, OverflowError, binascii.Error, InvalidTag) as exc:
            raise SealingFailed(CHANGED) from exc
        return opened | {"seq": seq, "run": run, "end": is_last}

    def _frames_of(self, run: str) -> AESGCM:
        if self._frames is None or run != self._run:
            self._run, self._frames = run, self._key(FRAMES + run.encode())
        return self._frames

    def _key(self, purpose: bytes) -> AESGCM:
        return AESGCM(HKDF(SHA256(), 32, self._salt, purpose).derive(self._secret))
