"""The format of sealed jobs, written down once more: what both sides' tests hold them against."""

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET = "the-secret-that-both-sides-share"
SALT = bytes(range(16))


def cipher(purpose: str, secret: str = SECRET, salt: bytes = SALT) -> AESGCM:
    """What seals one thing of one job."""
    kdf = HKDF(SHA256(), 32, salt, f"runpod-openai-proxy sealed {purpose}".encode())
    return AESGCM(kdf.derive(secret.encode()))


def sealed_input(job_input: Any, secret: str = SECRET, salt: bytes = SALT) -> dict[str, Any]:
    """A job's input as the proxy seals it."""
    plain = json.dumps(job_input).encode()
    data = cipher("input", secret, salt).encrypt(bytes(12), plain, None)
    told = {"salt": base64.b64encode(salt).decode(), "data": base64.b64encode(data).decode()}
    return {"sealed": told, "proxy": {"protocol": 2}}


def opened_input(job_input: dict[str, Any], secret: str = SECRET) -> Any:
    """What a sealed input holds."""
    salt, data = (base64.b64decode(job_input["sealed"][key]) for key in ("salt", "data"))
    assert len(salt) == 16
    assert len(data) % 256 == 16
    return json.loads(cipher("input", secret, salt).decrypt(bytes(12), data, None))


def sealed_frame(
    frame: dict[str, Any], run: str = "r", secret: str = SECRET, salt: bytes = SALT
) -> dict[str, Any]:
    """A frame as the worker seals it."""
    ends = frame.get("end", False)
    nonce = frame["seq"].to_bytes(12, "big")
    hidden = {key: value for key, value in frame.items() if key not in ("seq", "run", "end")}
    plain = json.dumps(hidden).encode()
    data = cipher(f"frames {run}", secret, salt).encrypt(nonce, plain, b"end" if ends else b"")
    sealed = {"seq": frame["seq"], "run": run, "sealed": base64.b64encode(data).decode()}
    return sealed | ({"end": True} if ends else {})


def opened_frame(frame: dict[str, Any], secret: str = SECRET, salt: bytes = SALT) -> dict[str, Any]:
    """What a sealed frame holds; nothing else may stand beside it."""
    assert set(frame) - {"end"} == {"seq", "run", "sealed"}
    data = base64.b64decode(frame["sealed"])
    assert len(data) % 256 == 16
    nonce, ends = frame["seq"].to_bytes(12, "big"), b"end" if "end" in frame else b""
    opened = json.loads(cipher(f"frames {frame['run']}", secret, salt).decrypt(nonce, data, ends))
    assert not {"seq", "run", "end"} & set(opened)
    return {**opened, **{key: frame[key] for key in ("seq", "run", "end") if key in frame}}
