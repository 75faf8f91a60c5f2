"""Build hook: the extras of pyproject.toml, with vLLM's version read from Dockerfile.worker.

The version of vLLM stands once, in the `ARG VLLM_VERSION` line of Dockerfile.worker (a plain
`docker build` needs it there); the `vllm` extra reads that line.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def vllm_version(root: Path) -> str:
    """The version of vLLM named in Dockerfile.worker."""
    text = (root / "Dockerfile.worker").read_text()
    match = re.search(r"^ARG VLLM_VERSION=(\S+)$", text, re.MULTILINE)
    if match is None:
        raise ValueError("Dockerfile.worker has no 'ARG VLLM_VERSION=' line")
    return match[1]


class VLLMExtra(MetadataHookInterface):
    """Adds the extras `worker` and `vllm`."""

    def update(self, metadata: dict[str, Any]) -> None:
        extras = dict(self.config["extras"])
        extras["vllm"] = [f"vllm=={vllm_version(Path(self.root))}"]
        metadata["optional-dependencies"] = extras
