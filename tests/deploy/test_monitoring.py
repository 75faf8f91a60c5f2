"""The dashboard and the alert rules: Prometheus takes them, and they name what the proxy tells."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.app import create_app
from proxy.telemetry.metrics import Metrics
from tests.deploy.conftest import ROOT
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT, FRAMES
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.test_metrics import exposed
from tests.servers import free_port, serve
from tests.waiting import wait_until

DASHBOARD = json.loads((ROOT / "deploy/grafana/runpod-openai-proxy.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
DRAWN = {f"{p['title']}: {t['legendFormat']}": t["expr"] for p in PANELS for t in p["targets"]}
GIVEN = {rule["alert"]: rule["expr"] for rule in RULES}
OF_PROMETHEUS = {"le", "job", "instance"}
"""Labels that Prometheus puts on by itself, or that all histograms have."""
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
SERIES = {
    name + part: labels | OF_PROMETHEUS
    for name, (kind, labels) in exposed().items()
    for part in PARTS[kind]
} | {"up": OF_PROMETHEUS}


def program(name: str) -> str:
    if (path := shutil.which(name)) is None:
        message = "no Prometheus here: on Debian and Ubuntu `apt-get install prometheus`"
        if os.environ.get("REQUIRE_SERVICES"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def promtool(*arguments: str | Path, text: str = "") -> None:
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def as_prometheus_reads(expression: str) -> str:
    """With values for what Grafana puts in."""
    return expression.replace("$__rate_interval", "1m").replace("$job", "proxy").replace("$", "")


@pytest.mark.parametrize("expression", [*DRAWN.values(), *GIVEN.values()], ids=[*DRAWN, *GIVEN])
def test_what_is_drawn_and_watched_is_what_the_proxy_tells(expression: str) -> None:
    named = re.findall(r"\b((?:proxy_|runpod_|vllm:)\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert named
    assert {name for name, _ in named} <= SERIES.keys()
    for name, matchers in named:
        assert set(re.findall(r"(\w+)\s*[!=~]+", matchers)) <= SERIES[name]
    labels = set[str]().union(*(SERIES[name] for name, _ in named))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= labels


def test_the_menus_of_the_dashboard_are_of_labels_that_there_are() -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert asked is not None
        assert asked[2] in SERIES[asked[1]]
    menus = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    assert used - {"__rate_interval"} == menus


def test_no_panel_stands_on_another() -> None:
    taken = set[tuple[int, int]]()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert taken.isdisjoint(cells), panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_document_lists_every_alert() -> None:
    text = (ROOT / "docs/operate.md").read_text()
    assert re.findall(r"^\| `(Proxy\w+)` \|", text, re.MULTILINE) == list(GIVEN)
    for rule in RULES:
        assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in text


def test_prometheus_takes_the_rules_and_all_that_is_drawn(tmp_path: Path) -> None:
    promtool("check", "rules", ALERTS)
    rules = [
        {"record": f"drawn:number_{number}", "expr": as_prometheus_reads(expression)}
        for number, expression in enumerate(DRAWN.values())
    ]
    drawn = tmp_path / "drawn.yml"
    drawn.write_text(yaml.safe_dump({"groups": [{"name": "drawn", "rules": rules}]}))
    promtool("check", "rules", drawn)


def test_prometheus_takes_what_compose_gives_it(tmp_path: Path) -> None:
    text = (ROOT / "deploy/compose/prometheus.yml").read_text()
    here = {"/etc/prometheus/rules/": f"{ALERTS.parent}/", "/tmp/metrics_key": str(ALERTS)}
    for inside, outside in here.items():
        assert inside in text
        assert inside in (ROOT / "compose.yaml").read_text().replace("rules:ro", "rules/")
        text = text.replace(inside, outside)
    config = tmp_path / "prometheus.yml"
    config.write_text(text)
    promtool("check", "config", config)


def test_each_alert_is_given_where_it_should_be_and_nowhere_else() -> None:
    cases = ROOT / "tests/deploy/alerts_test.yml"
    promtool("test", "rules", cases)
    tried = re.findall(r"alertname: (\w+)", cases.read_text())
    assert set(tried) == set(GIVEN)


def test_the_names_of_our_own_numbers_are_as_prometheus_likes_them() -> None:
    lines = Metrics().page().decode().splitlines(keepends=True)
    promtool("check", "metrics", text="".join(line for line in lines if "vllm:" not in line))


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A server that reads a proxy's numbers each second, with the key, and has the rules."""
    port, config = free_port(), folder / "prometheus.yml"
    (folder / "key").write_text("scrape")
    scraped = {
        "job_name": "proxy",
        "authorization": {"credentials_file": str(folder / "key")},
        "static_configs": [{"targets": [target]}],
    }
    times = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config.write_text(
        yaml.safe_dump({"global": times, "rule_files": [str(ALERTS)], "scrape_configs": [scraped]})
    )
    options = (
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    process = subprocess.Popen([program("prometheus"), *options])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=30) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def result(client: httpx.Client, expression: str) -> list[Any]:
    """What Prometheus makes of it; nothing while it starts."""
    try:
        answer = client.get("query", params={"query": expression})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    told = answer.json()
    assert told["status"] == "success", (expression, told)
    found: list[Any] = told["data"]["result"]
    return found


@pytest.mark.slow
def test_prometheus_reads_a_running_proxy(tmp_path: Path) -> None:
    runpod = ScriptedRunPod()
    runpod.script = [Page("COMPLETED", FRAMES)]
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve(runpod.app) as runpod_url,
        serve(create_app(settings_for(runpod_url, metrics_key="scrape"))) as url,
        prometheus(tmp_path, url.removeprefix("http://")) as client,
        httpx.Client(base_url=url, headers=headers, timeout=30) as user,
    ):
        user.post(CHAT, json=chat(stream=True))
        counted = f'proxy_request_seconds_count{{model="m", key="key-1", route="POST {CHAT}"}}'
        wait_until(lambda: any(one["value"][1] == "1" for one in result(client, counted)))
        assert [one["value"][1] for one in result(client, "up")] == ["1"]
        assert len(result(client, 'vllm:num_requests_running{model_name="m"} == 0')) == 1
        for expression in DRAWN.values():
            result(client, as_prometheus_reads(expression))
        groups = client.get("rules").json()["data"]["groups"]
        states = {rule["name"]: rule["health"] for rule in groups[0]["rules"]}
        assert states.keys() == GIVEN.keys()
        assert "err" not in states.values()
