"""The command: its help, its check, the file .env, and what it says when it cannot start."""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, Response

from proxy import __version__
from proxy.config.settings import environment_names
from tests.proxy.scripted_runpod import ScriptedRunPod
from tests.proxy.scripted_server import Reply, ScriptedServer
from tests.redis_server import redis_server
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ENOUGH = {
    "RUNPOD_API_KEY": "rpa_SECRET",
    "RUNPOD_ENDPOINT_ID": "ep",
    "PROXY_API_KEYS": "sk-SECRET,sk-SECRET-2",
    "PROXY_MODELS": "small,large",
    "PROXY_PORT": "0",
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing that is about a proxy, and a folder of its own."""
    ours = {*environment_names(), "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    return kept | {"PROXY_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """The command, run to its end."""

    def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "proxy", *arguments],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=100,
        )

    return start


def test_what_was_made_at_start_is_not_looked_at_again_while_streams_run(
    environment: dict[str, str], tmp_path: Path
) -> None:
    program = (
        "import gc, proxy.__main__ as command\n"
        "command.Server.run = lambda *_: print(gc.get_freeze_count(), len(gc.get_objects()))\n"
        "command.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | ENOUGH,
        capture_output=True,
        text=True,
        timeout=100,
    )
    frozen, left = map(int, done.stdout.split())
    assert frozen > 100 * left


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_need_no_configuration(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 0
    assert ("RUNPOD_API_KEY" if "--help" in arguments else __version__) in ended.stdout


def test_a_wrong_command_line_is_told_apart(run: Run) -> None:
    assert run("--chekc").returncode == 2


def test_the_package_installs_a_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"runpod-openai-proxy": "proxy.__main__:main"}


def test_all_that_is_missing_is_asked_for_at_once_with_what_was_misspelt(run: Run) -> None:
    ended = run(PROXY_API_KEY="sk-SECRET")
    assert ended.returncode == 1
    for name in ("RUNPOD_API_KEY: ", "RUNPOD_ENDPOINT_ID: ", "PROXY_API_KEYS: "):
        assert f"  {name}" in ended.stderr
    assert "did you mean PROXY_API_KEYS?" in ended.stderr
    assert "SECRET" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PROXY_HOST": "no-such-host.invalid"}, "PROXY_HOST: "),
        ({"PROXY_HOST": "192.0.2.1"}, "PROXY_HOST: "),
        ({"RUNPOD_API_KEY": "rpa_SECRET\u200b"}, "RUNPOD_API_KEY: "),
        ({"PROXY_CONFIG": ".", "PROXY_MODELS": "", "RUNPOD_ENDPOINT_ID": ""}, "PROXY_CONFIG: "),
        ({"ALL_PROXY": "socks4://user:SECRET@127.0.0.1:1080"}, "ALL_PROXY: "),
        ({"https_proxy": "ftp://user:SECRET@127.0.0.1:1080"}, "https_proxy: "),
        ({"HTTPS_PROXY": "http://user:SECRET@127.0.0.1:99999"}, "HTTPS_PROXY: "),
        ({"SSL_CERT_FILE": "nowhere.pem"}, "SSL_CERT_FILE: "),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: "),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_BSP_SCHEDULE_DELAY": "0"}, "OTEL_*: "),
    ],
    ids=str,
)
def test_a_start_that_cannot_succeed_is_one_line_with_the_settings_name(
    run: Run, variables: dict[str, str], named: str
) -> None:
    ended = run(**(ENOUGH | variables))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") <= 3
    assert f"\n  {named}" in ended.stderr
    assert "SECRET" not in ended.stderr


def test_a_taken_port_is_told_before_anything_starts(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(**(ENOUGH | {"PROXY_PORT": str(port)}))
    assert ended.returncode == 1
    assert f"PROXY_PORT: {port} is taken at 127.0.0.1" in ended.stderr
    assert "Traceback" not in ended.stderr


class Running:
    """The command while it serves; `log` is what it has written."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._file = folder / "log"
        with self._file.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy"], cwd=folder, env=environment, stderr=output
            )

    @property
    def log(self) -> str:
        return self._file.read_text()

    def is_up(self) -> bool:
        return "startup complete" in self.log or self.process.poll() is not None


@pytest.fixture
def running(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """A command that serves until the test ends, with what it wrote until it was up."""
    started: list[Running] = []

    def start(**variables: str) -> Running:
        started.append(Running(environment | variables, tmp_path))
        wait_until(started[-1].is_up, seconds=60)
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def test_what_is_served_is_said_at_start_without_a_key(
    running: Callable[..., Running], scripted_runpod: tuple[ScriptedRunPod, str]
) -> None:
    url = f"{scripted_runpod[1]}/v2"
    proxy = running(**ENOUGH, RUNPOD_ENDPOINT_BASE_URL=url, PROXY_MAX_WAITING="2000")
    assert "queue endpoint ep, key from RUNPOD_API_KEY: small, large" in proxy.log
    assert "2 keys may call" in proxy.log
    assert re.search(r"listening at http://127\.0\.0\.1:\d+/v1", proxy.log)
    assert "PROXY_MAX_WAITING (2000) is above PROXY_MAX_REQUESTS (1000)" in proxy.log
    assert "SECRET" not in proxy.log
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(timeout=60) == 0


def test_a_wrong_file_on_sighup_is_one_line_in_the_log(
    running: Callable[..., Running],
    scripted_runpod: tuple[ScriptedRunPod, str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text("[endpoints.ep]\n[models.m]\nendpoint = 'ep'\n")
    proxy = running(
        RUNPOD_API_KEY="rpa_SECRET",
        PROXY_API_KEYS="sk-SECRET",
        PROXY_PORT="0",
        PROXY_CONFIG=str(path),
        RUNPOD_ENDPOINT_BASE_URL=f"{scripted_runpod[1]}/v2",
    )
    wrong = (f"x = {'[' * 2000}", "[endpoints.a]\nx = 1\ny = 2\n", "caf\u00e9", "\0")
    told: list[str] = []

    def is_told_again() -> bool:
        return len(re.findall("the configuration stays as it was", proxy.log)) > len(told)

    for text in wrong:
        path.write_text(text, encoding="latin-1")
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(is_told_again)
        told.append(text)
    assert len(re.findall("the configuration stays as it was", proxy.log)) == len(wrong)
    assert all(re.match(r"\d{4}-\d\d-\d\d |INFO: ", line) for line in proxy.log.splitlines())
    path.unlink()
    path.mkdir()
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "is not a file" in proxy.log)
    assert "Traceback" not in proxy.log


def test_a_file_of_variables_is_read_and_the_environment_wins(
    running: Callable[..., Running],
    scripted_runpod: tuple[ScriptedRunPod, str],
    tmp_path: Path,
) -> None:
    (tmp_path / ".env").write_text(
        "RUNPOD_API_KEY='rpa_SECRET'\n"
        'PROXY_API_KEYS="sk-SECRET"\n'
        "PROXY_CONFIG=proxy.toml # the tables\n"
        "OTHER_KEY=rpa_SECRET\n"
        "PROXY_PORT=1\n"
    )
    (tmp_path / "proxy.toml").write_text("[endpoints.two]\napi_key_env = 'OTHER_KEY'\n")
    proxy = running(PROXY_PORT="0", RUNPOD_ENDPOINT_BASE_URL=f"{scripted_runpod[1]}/v2")
    assert ".env has been read; the environment's own values stay for PROXY_PORT" in proxy.log
    assert "queue endpoint two, key from OTHER_KEY: no model" in proxy.log
    assert "SECRET" not in proxy.log


def test_a_file_of_variables_that_cannot_be_read_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PROXY_MODELS=caf\xe9\n")
    ended = run(**ENOUGH)
    assert (ended.returncode, ".env cannot be read" in ended.stderr) == (1, True)
    assert "Traceback" not in ended.stderr
    ended = run("--env-file", "nowhere", **ENOUGH)
    assert (ended.returncode, "nowhere cannot be read" in ended.stderr) == (1, True)


CONFIG = """
[endpoints.good]
direct = true
[endpoints.balanced]
kind = "load-balancing"
[endpoints.unknown]
[endpoints.refused]
api_key_env = "OTHER_KEY"

[models.m]
endpoint = "good"
fallback = {{ url = "{server}/v1", model = "m", api_key_env = "OTHER_KEY" }}
[models.n]
endpoint = "good"
fallback = {{ url = "{runpod}/good/openai/v1", model = "n", api_key_env = "RUNPOD_API_KEY" }}
"""


class CheckedRunPod:
    """RunPod as a check meets it: it knows `good` and `balanced`, and takes one key."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        if scope["type"] == "http":
            await self._answer(scope)(scope, receive, send)

    def _answer(self, scope: dict) -> Response:  # type: ignore[type-arg]
        self.calls.append(f"{scope['method']} {scope['path']}")
        name = scope["path"].split("/")[2]
        if dict(scope["headers"]).get(b"authorization") != b"Bearer rpa_SECRET":
            return Response(status_code=401)
        if name == "unknown":
            return Response(status_code=404)
        return JSONResponse({"workers": {"ready": 1}, "jobs": {"inQueue": 2}})


def test_the_check_asks_every_endpoint_and_names_each_fault_by_its_setting(
    run: Run, tmp_path: Path
) -> None:
    server = ScriptedServer()
    server.replies = [Reply(pieces=[b"{}"])]
    runpod = CheckedRunPod()
    with serve(runpod) as runpod_url, serve(server.app) as server_url:
        base_url = f"{runpod_url}/v2"
        (tmp_path / "proxy.toml").write_text(CONFIG.format(server=server_url, runpod=base_url))
        ended = run(
            "--check",
            RUNPOD_API_KEY="rpa_SECRET",
            OTHER_KEY="other_SECRET",
            PROXY_API_KEYS="sk-SECRET",
            PROXY_CONFIG="proxy.toml",
            RUNPOD_ENDPOINT_BASE_URL=base_url,
        )
    lines = {line.split("  ")[0]: line for line in ended.stdout.splitlines()}
    assert ended.returncode == 1
    assert "ok: 1 workers ready, 2 jobs in the queue; workers with port 8899/tcp" in lines["good"]
    assert "ok: " in lines["balanced"]
    assert "fault: endpoints.unknown: RunPod knows no endpoint of this id" in lines["unknown"]
    assert "fault: OTHER_KEY: RunPod refuses this key" in lines["refused"]
    assert "ok: " in lines["fallback of m"]
    assert "ok: " in lines["fallback of n"]
    assert "SECRET" not in ended.stdout + ended.stderr
    assert {call.rpartition("/")[2] for call in runpod.calls} == {"health"}
    assert [request["path"] for request in server.requests] == ["/v1/models"]


def test_a_check_without_a_fault_ends_with_0(run: Run) -> None:
    with serve(CheckedRunPod()) as url:
        ended = run("--check", **ENOUGH, RUNPOD_ENDPOINT_BASE_URL=f"{url}/v2")
    assert ended.returncode == 0
    assert "RUNPOD_API_KEY" in ended.stdout


def test_a_check_that_reaches_nothing_names_the_address(run: Run) -> None:
    ended = run("--check", **ENOUGH, RUNPOD_ENDPOINT_BASE_URL="http://127.0.0.1:1/v2")
    assert ended.returncode == 1
    assert "fault: RUNPOD_ENDPOINT_BASE_URL: nothing listens there (127.0.0.1:1)" in ended.stdout


def test_a_check_asks_the_database_and_redis_and_tells_no_password(
    run: Run, tmp_path: Path
) -> None:
    with redis_server() as server, serve(CheckedRunPod()) as url:
        variables = ENOUGH | {"RUNPOD_ENDPOINT_BASE_URL": f"{url}/v2"}
        database = f"sqlite:///{tmp_path}/keys.sqlite3"
        good = run("--check", **variables, PROXY_DATABASE_URL=database, PROXY_REDIS_URL=server.url)
    away = "postgresql://proxy:SECRET@127.0.0.1:1/proxy", "redis://:SECRET@127.0.0.1:1/0"
    bad = run("--check", **variables, PROXY_DATABASE_URL=away[0], PROXY_REDIS_URL=away[1])
    assert good.returncode == 0, good.stdout
    assert good.stdout.count("ok: it answers") == 2
    assert bad.returncode == 1
    for variable in ("PROXY_DATABASE_URL", "PROXY_REDIS_URL"):
        assert f"fault: {variable}: " in bad.stdout
    assert "SECRET" not in bad.stdout + bad.stderr


def test_what_only_a_direct_channel_needs_is_not_loaded_before() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, proxy.app; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "proxy.backends.runpod.direct.road" in loaded
    assert not {"aiohttp", "cryptography"} & set(loaded)
