"""`make run`'s script as a process, with the scripted engine in vLLM's place."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.happenings import what_happens
from scripts.local_stack import STOP_SECONDS
from scripts.screen import Paint
from tests.scripts.conftest import ENGINE, Run, Start, runs, words_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that tests share: it is up, and nothing ends it."""
    with runs(lambda: tmp_path_factory.mktemp("up")) as start:
        run = start(VERBOSE="1", MAX_NUM_SEQS="7")
        run.wait_for("Up until Ctrl-C")
        yield run


def test_it_shows_a_chat_and_how_to_use_what_is_up(up: Run) -> None:
    assert re.search(r"vLLM loads some-model \.\.\.$", up.output, re.MULTILINE)
    assert re.search(r"first token after \d+\.\d s\n", up.output)
    up.wait_for("curl -N")
    up.wait_for('"Hello!"}]}')
    curl = up.output[up.output.index("curl -N") :].split("\n\n")[0]
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=100)
    assert answer.stdout.rstrip().endswith("data: [DONE]")


def test_the_page_that_it_tells_of_lets_its_key_in_and_floods_nobody(up: Run) -> None:
    up.wait_for("models    some-model")
    found = re.search(r"^  page      (\S+) .* with (\S+)$", up.output, re.MULTILINE)
    assert found is not None
    url, key = found.groups()
    with httpx.Client(base_url=url, timeout=100) as browser:
        assert browser.get("", headers={"accept": "text/html"}).status_code == 200
        headers = {"authorization": f"Bearer {key}"}
        assert browser.post("admin/session", headers=headers).status_code == 201
        status = browser.get("admin/status", headers={"sec-fetch-site": "same-origin"})
        assert status.status_code == 200
    line = "2026-11-29 12:00:00,000 INFO proxy.access: req_1 GET /admin/{} 200 completed 0.001s"
    plain = Paint(live=False)
    assert what_happens(Path("proxy.log"), line.format("keys"), plain) is not None
    assert what_happens(Path("proxy.log"), line.format("status"), plain) is None


def test_both_built_in_models_are_served_each_by_a_worker_started_when_asked(
    start: Start,
) -> None:
    run = start(MODEL="")
    run.wait_for('"prompt": "Hello!"}}')
    assert "models    tiny-chat, tiny-embed\n" in run.output
    assert run.served() == ["tiny-chat"]
    embed = next(part for part in run.output.split("\n\n") if "/embeddings" in part)
    answer = subprocess.run(embed, shell=True, capture_output=True, text=True, timeout=100)
    assert json.loads(answer.stdout)["model"] == "tiny-embed"
    assert sorted(run.served()) == ["tiny-chat", "tiny-embed"]


def test_it_tells_how_to_call_runpods_own_api(up: Run) -> None:
    up.wait_for('"prompt": "Hello!"}}')
    curl = re.findall(r"^curl \S+/runsync .*?\}\}'$", up.output, re.MULTILINE | re.DOTALL)[0]
    answer = subprocess.run(curl, shell=True, capture_output=True, timeout=100)
    assert json.loads(answer.stdout)["status"] == "COMPLETED"


def test_verbose_shows_what_all_three_write(up: Run) -> None:
    for line in ("emulator | ", "proxy | ", " | scripted engine is ready"):
        up.wait_for(line)


def test_the_workers_settings_pass_through(up: Run) -> None:
    (words,) = up.engines()
    assert words[words.index("--max-num-seqs") + 1] == "7"
    assert up.served() == ["some-model"]


def test_it_shows_each_request_and_what_becomes_of_workers(start: Start) -> None:
    run = start(IDLE_TIMEOUT="1")
    run.wait_for("Up until Ctrl-C")
    run.wait_for('"prompt": "Hello!"}}')
    wait_until(lambda: not run.engines(), seconds=60)
    curl = run.output[run.output.index("curl -N") :].split("\n\n")[0]
    subprocess.run(curl, shell=True, capture_output=True, timeout=100)
    run.wait_for("200  POST /v1/chat/completions")
    shown = run.output.partition('"prompt": "Hello!"}}')[2].splitlines()
    lines = "\n".join(line for line in shown if re.match(r"\d\d:\d\d:\d\d  ", line))
    for event in (r"stopping: \S+", r"stopped \(exit code 0\)", "started", "ready after"):
        assert re.search(rf"  worker of local  {event}", lines), event
    assert re.search(r"  endpoint local is (warming|ready): ", lines)
    assert re.search(
        r"  200  POST /v1/chat/completions  [\d.]+ s, some-model, cold start$", lines, re.M
    )
    assert "proxy.access" not in lines


def test_logs_of_others_in_its_folder_stay(start: Start, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in ("others.log", "proxy.log", "local-0123456789abcd.log"):
        (logs / name).write_text("of before\n")
    run = start("--start-seconds 600")
    run.wait_for("cold start")
    assert (logs / "others.log").read_text() == "of before\n"
    assert "of before" not in (logs / "proxy.log").read_text()
    assert not (logs / "local-0123456789abcd.log").exists()
    run.interrupt()
    assert run.process.wait(100) == 0


def test_after_sigterm_nothing_is_left(start: Start) -> None:
    run = start()
    run.wait_for("Up until Ctrl-C")
    run.process.terminate()
    assert run.process.wait(100) == 0
    assert "Stopped." in run.output
    wait_until(lambda: not run.left())


def test_ctrl_c_ends_it_while_the_model_is_loading(start: Start) -> None:
    run = start("--start-seconds 600")
    wait_until(lambda: any(str(ENGINE) in words_of(p) for p in run.left()), seconds=120)
    run.interrupt()
    assert run.process.wait(100) == 0
    assert "Stopped." in run.output
    wait_until(lambda: not run.left())


def test_a_second_ctrl_c_does_not_wait_for_running_requests(start: Start) -> None:
    run = start(PROXY_DRAIN_SECONDS="600")
    run.wait_for("Up until Ctrl-C")
    body = {"model": "some-model", "messages": [{"role": "user", "content": "x"}], "stream": True}
    url = f"http://127.0.0.1:{run.ports['PROXY_PORT']}/v1/chat/completions"
    headers = {"Authorization": "Bearer sk-local"}
    hanging = body | {"script": {"hang_after": 1}}
    with httpx.stream("POST", url, json=hanging, headers=headers, timeout=100) as answer:
        lines = answer.iter_lines()  # kept: without it the connection would be closed
        next(lines)
        run.interrupt()
        run.wait_for("Stopping")
        run.interrupt()
        # By itself the proxy would be given more time than this to end the request.
        assert run.process.wait(STOP_SECONDS - 3) == 0
    wait_until(lambda: not run.left())


def test_nothing_is_left_when_it_is_killed_hard(start: Start) -> None:
    run = start()
    run.wait_for("Up until Ctrl-C")
    assert len(run.left()) > 4
    run.process.kill()
    wait_until(lambda: not run.left(), seconds=60)


@pytest.mark.parametrize("name", ["proxy", "emulator"])
def test_a_part_that_dies_is_reported_and_ends_the_run(start: Start, name: str) -> None:
    run = start()
    run.wait_for("Up until Ctrl-C")
    command = f"-m {name}"
    next(p for p in run.left() if command in " ".join(words_of(p)[:3])).kill()
    assert run.process.wait(100) == 1
    assert f"the {name} ended with exit code 137" in run.output
    wait_until(lambda: not run.left())


def test_a_worker_that_cannot_start_is_reported_with_its_last_lines(start: Start) -> None:
    run = start("--die-at-start")
    assert run.process.wait(100) == 1
    assert "the worker has died" in run.output
    assert "vLLM exited with code" in run.output
    wait_until(lambda: not run.left())


@pytest.mark.parametrize("name", ["PROXY_PORT", "EMULATOR_PORT"])
def test_a_port_that_is_taken_is_named(start: Start, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = start(**{name: str(port)})
        assert run.process.wait(100) == 1
    assert f"port {port} is taken" in run.output
    assert f"set {name}" in run.output
    assert "Starting" not in run.output
    wait_until(lambda: not run.left())


def test_a_model_that_is_not_there_is_named(start: Start) -> None:
    run = start(MODEL="./no-such-folder")
    assert run.process.wait(100) == 1
    assert "./no-such-folder" in run.output
