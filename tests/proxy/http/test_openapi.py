"""The service, fuzzed by its own OpenAPI page: never a 500, always the error envelope."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.api.route_table import ROUTES
from tests.proxy.conftest import KEY
from tests.proxy.scripted_runpod import Page, ScriptedRunPod

pytestmark = pytest.mark.slow
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
MODES = st.sampled_from(schemathesis.GenerationMode)
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


OWN = [
    *("GET /v1/models", "GET /v1/models/{id}", "POST /v1/models/{id}/warm", "GET /metrics"),
    *("GET /admin/keys", "POST /admin/keys", "GET /admin/keys/{name}", "PATCH /admin/keys/{name}"),
    *("DELETE /admin/keys/{name}", "POST /admin/keys/{name}/rotate"),
    *("POST /admin/session", "GET /admin/session", "DELETE /admin/session"),
    *("GET /admin/status", "POST /admin/chat", "GET /admin/usage"),
]


@pytest.fixture(scope="module")
def schema(proxies: Callable[..., str]) -> Any:
    return schemathesis.openapi.from_url(f"{proxies(models='')}/openapi.json")


@pytest.mark.parametrize("route", [*ROUTES, *OWN])
@given(data=st.data())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_is_sent_the_answer_is_the_workers_or_an_error_envelope(
    schema: Any, runpod: ScriptedRunPod, route: str, data: st.DataObject
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    method, path = route.split()
    case = data.draw(schema[path][method].as_strategy(generation_mode=data.draw(MODES)))
    response = case.call(headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    case.validate_response(response, checks=CHECKS)
    assert "Traceback" not in response.text


def test_the_page_has_every_route_and_no_key_is_needed_for_it(proxy_url: str) -> None:
    paths = httpx.get(f"{proxy_url}/openapi.json").json()["paths"]
    listed = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(ROUTES) < listed
