"""Where RunPod exposes this container, as its environment tells."""

from collections.abc import Mapping
from typing import Final

PUBLIC_IP: Final = "RUNPOD_PUBLIC_IP"
PUBLIC_PORT: Final = "RUNPOD_TCP_PORT_"
"""Followed by a port of this container: the public one that RunPod maps to it."""


def public_address(environment: Mapping[str, str], port: int) -> tuple[str, int] | None:
    """Where this port of the container can be reached from outside; None if nowhere."""
    host = environment.get(PUBLIC_IP)
    public_port = environment.get(f"{PUBLIC_PORT}{port}", "")
    return (host, int(public_port)) if host and public_port.isdecimal() else None
