"""vLLM's two gauges for those who choose between model servers."""

import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.app import create_app
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

CONFIG = """
[endpoints.ep]
[models.base]
endpoint = "ep"
loras = ["sql"]
[models.idle]
endpoint = "ep"
"""


def gauges(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Both gauges of each model, by their last word."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.labels["model_name"], sample.name.rpartition("_")[2]): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("vllm:num_requests_")
    }


@pytest.mark.slow
def test_requests_are_counted_where_they_are_and_with_the_model_that_serves_them(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    path, taken, done = tmp_path / "proxy.toml", threading.Event(), threading.Event()
    path.write_text(CONFIG)
    runpod.script = [
        Page("IN_QUEUE"),
        Page("IN_PROGRESS", FRAMES[:1], hold=taken),
        Page("COMPLETED", FRAMES[1:], hold=done),
    ]
    nothing = {("base", "waiting"): 0, ("base", "running"): 0}
    nothing |= {("idle", "waiting"): 0, ("idle", "running"): 0}
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve(create_app(settings_for(scripted_runpod[1], config=path))) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        assert gauges(client) == nothing
        with client.stream("POST", CHAT, json=chat(model="sql", stream=True)) as response:
            wait_until(lambda: gauges(client) == nothing | {("base", "waiting"): 1})
            taken.set()
            wait_until(lambda: gauges(client) == nothing | {("base", "running"): 1})
            done.set()
            response.read()
        wait_until(lambda: gauges(client) == nothing)
