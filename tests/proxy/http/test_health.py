"""What /health and /ready say, and what they do not depend on."""

import httpx
from starlette.responses import Response

from tests.proxy.conftest import chat
from tests.proxy.http.test_requests import CHAT, error_of
from tests.proxy.scripted_runpod import ScriptedRunPod


def test_a_proxy_whose_key_runpod_refuses_is_ready_all_the_same(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.run_answers = [Response(status_code=401)]
    assert error_of(fresh_client.post(CHAT, json=chat()))["code"] == "upstream_misconfigured"
    ready = fresh_client.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
