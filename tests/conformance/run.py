"""Runs one client's checks against one target, each in a process of the client's environment."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.environments import Environment
from scripts.installer import ROOT
from scripts.progress import SetUpError
from tests.conformance.clients import PYTHON, Client
from tests.conformance.features import FEATURES

PLUGIN = "tests.conformance.python.plugin"
SHOWN_LINES = 40


@dataclass(frozen=True)
class Result:
    """What became of one check."""

    feature: str
    check: str
    outcome: str
    """`passed`, `failed` or `skipped`."""
    message: str


@dataclass(frozen=True)
class Target:
    """Where the checks send their requests; `tests/conformance/python/target.py` reads it."""

    name: str
    base_url: str
    api_key: str
    model: str
    vllm_url: str
    asks_for_keys: bool
    embeddings_model: str
    embeddings_url: str
    vllm_embeddings_url: str

    def environment(self) -> dict[str, str]:
        """What a check is told."""
        return {
            "CONFORMANCE_BASE_URL": self.base_url,
            "CONFORMANCE_API_KEY": self.api_key,
            "CONFORMANCE_MODEL": self.model,
            "CONFORMANCE_VLLM_URL": self.vllm_url,
            "CONFORMANCE_ASKS_FOR_KEYS": "yes" if self.asks_for_keys else "no",
            "CONFORMANCE_EMBEDDINGS_MODEL": self.embeddings_model,
            "CONFORMANCE_EMBEDDINGS_URL": self.embeddings_url,
            "CONFORMANCE_VLLM_EMBEDDINGS_URL": self.vllm_embeddings_url,
        }


def run_checks(client: Client, environment: Environment, target: Target, log: Path) -> list[Result]:
    """What became of each of the client's checks, in the order of its file.

    Raises:
        SetUpError: the file could not be run to its end, or has a feature that is not listed.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "results.jsonl"
        told.touch()
        with log.open("wb") as output:
            code = subprocess.run(
                _command(client, environment),
                cwd=ROOT,
                env=_environment(target, folder, told),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            ).returncode
        lines = [json.loads(line) for line in told.read_text().splitlines()]
    if not lines or lines.pop() != "end" or not lines:
        last = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        raise SetUpError("\n".join([f"{client.checks.name} ended with exit code {code}:", *last]))
    results = [Result(**line) for line in lines]
    if unknown := {result.feature for result in results} - set(FEATURES):
        raise SetUpError(f"{client.checks.name} has unlisted features: {', '.join(unknown)}")
    return results


def _command(client: Client, environment: Environment) -> list[str | Path]:
    if client.is_for_node:
        node = environment.folder / "bin" / "node"
        return [node, "--test", "--test-force-exit", client.checks]
    settings = ("-c", PYTHON / "pytest.ini", "--rootdir", ROOT, "-p", PLUGIN)
    return [environment.python, "-m", "pytest", *settings, "--tb=short", client.checks]


def _environment(target: Target, home: str, told: Path) -> dict[str, str]:
    """Ours, without what would make a client ask somebody else, or find its user's own settings."""
    named = ("OPENAI_", "ANTHROPIC_", "LITELLM_", "LANGCHAIN_", "LANGSMITH_", "LLM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    return {
        **kept,
        **target.environment(),
        "CONFORMANCE_RESULTS": str(told),
        "HOME": home,
        "NO_PROXY": "127.0.0.1,localhost",
        # Clients that would fetch lists, report, or cache beside us.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
