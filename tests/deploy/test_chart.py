"""The Helm chart, as Helm renders it and Kubernetes' own schemas judge it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import proxy
from proxy.config.load import load
from proxy.config.settings import Settings, environment_names
from proxy.http.routes import health
from tests.deploy.conftest import BARE, ROOT, output_of

pytestmark = pytest.mark.slow

CHART = ROOT / "deploy/helm/runpod-openai-proxy"
OLDEST, NEWEST = "1.27", "1.37"
"""Of Kubernetes; the chart says the former, and the schemas end with the latter."""
EVERYTHING = """
config: |
  [endpoints.chat]
  id = "abc"
  [models.small]
  endpoint = "chat"
autoscaling: {enabled: true, maxReplicas: 5}
state: {existingClaim: shared}
networkPolicy:
  enabled: true
  from: [{namespaceSelector: {matchLabels: {name: ingress}}}]
  egress: [{ports: [{port: 5432}], to: [{podSelector: {matchLabels: {app: postgres}}}]}]
image: {digest: "sha256:%s", pullSecrets: [{name: registry}]}
podAnnotations: {team: chat}
podLabels: {team: chat}
nodeSelector: {disk: fast}
tolerations: [{key: spot, operator: Exists}]
settings: {PROXY_MAX_BODY_BYTES: 9000000, PROXY_FIRST_BYTE_HOLD_SECONDS: 0.5, PROXY_DIRECT: true}
""" % ("0" * 64)

Object = dict[str, Any]


def rendered(programs: Path, *options: str | Path) -> str:
    return output_of(programs / "helm", "template", "chat", CHART, *options)


def objects(text: str) -> dict[str, Object]:
    """What would be made, by kind; the chart makes no two of one kind."""
    found = [one for one in yaml.safe_load_all(text) if one]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def pod_of(text: str) -> Object:
    spec: Object = objects(text)["Deployment"]["spec"]["template"]["spec"]
    return spec


def environment_of(text: str) -> dict[str, str]:
    [container] = pod_of(text)["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.fixture(scope="module")
def everything(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The chart with all that can be wished for."""
    values = tmp_path_factory.mktemp("chart") / "values.yaml"
    values.write_text(EVERYTHING)
    return rendered(programs, "-f", values)


@pytest.fixture(scope="module")
def usual(programs: Path) -> str:
    """The chart as it is."""
    return rendered(programs)


def test_helm_finds_nothing_to_say_against_it(programs: Path) -> None:
    assert "0 chart(s) failed" in output_of(programs / "helm", "lint", "--strict", CHART)


def test_kubernetes_knows_every_field(
    programs: Path, usual: str, everything: str, tmp_path: Path
) -> None:
    for name, text in (("usual", usual), ("everything", everything)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        for version in (OLDEST, NEWEST):
            said = output_of(programs / "kubernetes-validate", "--strict", "-k", version, file)
            assert said.count("passed") == len(objects(text))
    assert f'">={OLDEST}.0-0"' in (CHART / "Chart.yaml").read_text()
    kinds = {"Deployment", "Service", "PodDisruptionBudget"}
    assert set(objects(usual)) == kinds
    more = {"ConfigMap", "HorizontalPodAutoscaler", "NetworkPolicy"}
    assert set(objects(everything)) == kinds | more


def test_it_is_the_chart_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == proxy.__version__


def test_pods_are_found_by_all_that_look_for_them(everything: str) -> None:
    made = objects(everything)
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        made["Deployment"]["spec"]["selector"]["matchLabels"],
        made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(
            spread["labelSelector"]["matchLabels"]
            for spread in pod_of(everything)["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert selector == selectors[0]
        assert selector.items() <= labels.items()
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == made["Deployment"]["metadata"]["name"]


def test_nothing_runs_as_root_or_writes_to_its_own_files(usual: str) -> None:
    pod = pod_of(usual)
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in (ROOT / "Dockerfile.proxy").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/tmp", "/var/lib/proxy"}


def test_probes_ask_routes_that_need_no_key(usual: str) -> None:
    [container] = pod_of(usual)["containers"]
    open_routes = {route.path for route in health.router.routes}  # type: ignore[attr-defined]
    asked = {
        name: container[name]["httpGet"]["path"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert asked == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    assert set(asked.values()) <= open_routes


@pytest.mark.parametrize("drain", ["30", "600"])
def test_a_pod_is_given_time_to_drain(programs: Path, drain: str) -> None:
    text = rendered(programs, "--set", f"drainSeconds={drain},config=x")
    settings = environment_of(text)
    delay, drained = settings["PROXY_SHUTDOWN_DELAY_SECONDS"], settings["PROXY_DRAIN_SECONDS"]
    assert drained == drain
    longest = Settings.model_construct(
        config=Path(settings["PROXY_CONFIG"]), drain_seconds=float(drained)
    ).longest_drain_seconds
    assert pod_of(text)["terminationGracePeriodSeconds"] >= float(delay) + longest + 30


def test_every_variable_of_the_proxy_is_a_setting(usual: str, everything: str) -> None:
    for text in (usual, everything):
        assert set(environment_of(text)) <= set(environment_names())
    values = (CHART / "values.yaml").read_text()
    named = set(re.findall(r"\b(?:PROXY|RUNPOD)_[A-Z_]+\b", values))
    assert named <= set(environment_names())


def test_settings_reach_the_proxy_as_they_are_written(everything: str) -> None:
    settings = environment_of(everything)
    assert settings["PROXY_MAX_BODY_BYTES"] == "9000000"
    assert settings["PROXY_FIRST_BYTE_HOLD_SECONDS"] == "0.5"
    assert settings["PROXY_DIRECT"] == "true"
    assert settings["PROXY_CONFIG"] == "/etc/proxy/proxy.toml"
    file = objects(everything)["ConfigMap"]["data"]["proxy.toml"]
    assert file.splitlines()[0] == "[endpoints.chat]"


def test_the_proxy_starts_with_what_it_is_given(
    everything: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "proxy.toml"
    file.write_text(objects(everything)["ConfigMap"]["data"]["proxy.toml"])
    secret = {"RUNPOD_API_KEY": "rpa_test", "PROXY_API_KEYS": "sk-test"}
    for name, value in (environment_of(everything) | secret).items():
        monkeypatch.setenv(name, str(file) if name == "PROXY_CONFIG" else value)
    assert list(load(Settings()).endpoints) == ["chat"]


def test_each_copy_knows_how_many_there_may_be(usual: str, everything: str) -> None:
    assert environment_of(usual)["PROXY_COPIES"] == "2"
    assert environment_of(everything)["PROXY_COPIES"] == "5"
    assert "replicas" not in objects(everything)["Deployment"]["spec"]


def test_secrets_are_named_and_not_made(programs: Path, usual: str) -> None:
    [container] = pod_of(usual)["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "runpod-openai-proxy"}}]
    monitored = objects(rendered(programs, "--set", "metrics.podMonitor=true"))
    [endpoint] = monitored["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == "runpod-openai-proxy"
    assert "Secret" not in monitored


def test_a_changed_configuration_rolls_out(programs: Path) -> None:
    def checksum(config: str) -> str:
        made = objects(rendered(programs, "--set", f"config={config}"))
        annotations = made["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["checksum/config"])

    assert checksum("a") != checksum("b")


@pytest.mark.parametrize("mistake", ["replica=3", "settings.PORXY_MODELS=x", "existingSecret="])
def test_a_value_that_means_nothing_is_refused(programs: Path, mistake: str) -> None:
    ended = subprocess.run(
        [programs / "helm", "template", "chat", CHART, "--set", mistake],
        capture_output=True,
        text=True,
        timeout=60,
        env=BARE,
    )
    assert ended.returncode != 0
    assert "values don't meet the specifications of the schema" in ended.stderr
