"""What became of what clients sent: the jobs at RunPod, and the load on the GPU."""

import re
from typing import Any

import httpx

from scripts.local_stack import LocalStack


class Jobs:
    """The emulator's jobs for the model to chat with, and what stands in them."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._url = stack.runpod_url.removesuffix("/v2") + "/_emulator"
        self._headers = {"authorization": f"Bearer {stack.runpod_api_key}"}

    def control(self, method: str, path: str) -> Any:
        """A call of the emulator's control API."""
        answer = httpx.request(
            method, self._url + path, headers=self._headers, timeout=30, trust_env=False
        )
        return answer.raise_for_status().json()

    def all(self) -> list[dict[str, Any]]:
        """Every job since the last `forget`, the oldest first."""
        endpoint = self.control("GET", "")["endpoints"][self._stack.chat.id]
        jobs: list[dict[str, Any]] = endpoint["jobs"]
        return jobs

    def status(self, job_id: str) -> str:
        """The status of one of them."""
        (found,) = [job["status"] for job in self.all() if job["id"] == job_id]
        return str(found)

    def forget(self) -> None:
        """Start with none."""
        self.control("POST", "/reset")


def body_of(job: dict[str, Any]) -> dict[str, Any]:
    """The body that a job stands for, as the UI sent it."""
    body: dict[str, Any] = job["input"].get("openai_input", {})
    return body


def prompt(body: dict[str, Any]) -> str:
    """The first message of a chat's body."""
    text: str = body["messages"][0]["content"]
    return text


def metric(stack: LocalStack, name: str) -> float:
    """One of vLLM's own metrics."""
    text = httpx.get(f"{stack.chat.vllm_url}/metrics", timeout=60, trust_env=False).text
    return sum(map(float, re.findall(rf"^vllm:{name}\{{[^}}]*\}} (\S+)", text, re.MULTILINE)))
