"""Starts that fail, with RunPod's emulator: told in seconds, and paid for once."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.emulator.running import API_KEY, Client, emulator
from tests.end_to_end.conftest import endpoint_settings
from tests.end_to_end.failing_worker import CAUSE
from tests.proxy.conftest import KEY, chat, settings_for
from tests.servers import serve
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
WORKER = f"{sys.executable} {Path(__file__).with_name('failing_worker.py')}"
STYLES = ["exits", "startup-error", "ours", "prestart"]
PAUSE: dict[str, Any] = {"min_backoff_seconds": 15, "max_backoff_seconds": 15}
"""After a crash RunPod starts no other worker before all must have been told."""
REQUESTS = 20


@contextmanager
def stack(
    style: str, settings: dict[str, Any] | None = None, **endpoint: Any
) -> Iterator[tuple[httpx.Client, Client]]:
    """A client of a proxy in front of an endpoint whose workers fail in this style."""
    env = {"STYLE": style} | endpoint.pop("env", {})
    values = {"worker": WORKER, "env": env, "take_hold_seconds": 2} | endpoint
    with ExitStack() as running:
        runpod = running.enter_context(emulator(ep=values))("ep")
        base = runpod.url.removesuffix("/v2/ep")
        changes: dict[str, Any] = {"runpod_api_key": API_KEY, "queue_timeout_seconds": 100}
        changes |= {"rest_base_url": base} | (settings or {})
        app = create_app(settings_for(runpod.url.removesuffix("/v2/ep"), **changes))
        url = running.enter_context(serve(app))
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {KEY}"}
        client = httpx.Client(base_url=url, headers=headers, timeout=110, limits=limits)
        yield running.enter_context(client), runpod


def starts_of(runpod: Client) -> list[dict[str, Any]]:
    """Every start of a worker so far."""
    starts: list[dict[str, Any]] = runpod.control("GET", "")["endpoints"]["ep"]["starts"]
    return starts


def ask(client: httpx.Client, number: int = 0) -> tuple[httpx.Response, float]:
    """A chat, every other one as a stream; its answer, and when that was there."""
    body = chat(stream=True) if number % 2 else chat()
    return client.post("/v1/chat/completions", json=body), time.time()


def code_of(answer: httpx.Response) -> str:
    """The code of an error, wherever it stands."""
    return "model_start_failed" if "model_start_failed" in answer.text else answer.text


def model_of(client: httpx.Client) -> dict[str, Any]:
    """What the list tells of the model."""
    entry: dict[str, Any] = client.get("/v1/models/m").json()
    return entry


def wait_for_the_pause(runpod: Client) -> None:
    """Until every worker that crashed could have been started again."""
    wait_until(lambda: not runpod.workers("unhealthy"))


def has_no_jobs(runpod: Client) -> bool:
    """Whether nothing is queued or running."""
    jobs = runpod.health()["jobs"]
    return not jobs["inQueue"] and not jobs["inProgress"]


@pytest.mark.parametrize("max_workers", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_failed_start_is_told_in_seconds_and_paid_for_once(style: str, max_workers: int) -> None:
    with stack(style, max_workers=max_workers, **PAUSE) as (client, runpod):
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(lambda number: ask(client, number), range(REQUESTS)))
        assert {code_of(answer) for answer, _ in answers} == {"model_start_failed"}
        wait_until(lambda: has_no_jobs(runpod))
        began = starts_of(runpod)
        ends = [start["ended_at"] or start["ready_at"] for start in began]
        first_failure = min(end for end in ends if end)
        assert min(at for _, at in answers) - first_failure < 15
        assert len(began) <= max_workers
        assert "secret" not in "".join(answer.text for answer, _ in answers)
        if style != "exits":
            assert all(CAUSE in answer.text for answer, _ in answers)

        jobs = len(runpod.control("GET", "")["endpoints"]["ep"]["jobs"])
        refused, _ = ask(client)
        assert (refused.status_code, code_of(refused)) == (503, "model_start_failed")
        assert refused.headers["x-should-retry"] == "false"
        assert 0 < int(refused.headers["retry-after"]) <= 300
        assert len(runpod.control("GET", "")["endpoints"]["ep"]["jobs"]) == jobs
        assert model_of(client)["state"] == "unhealthy"
        assert (CAUSE if style != "exits" else "console") in model_of(client)["state_reason"]
        wait_for_the_pause(runpod)
        assert len(starts_of(runpod)) == len(began)


@pytest.mark.parametrize("style", ["exits", "prestart"])
def test_a_worker_that_is_started_again_at_once_is_paid_for_twice_at_most(style: str) -> None:
    with stack(style) as (client, runpod):
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(lambda number: ask(client, number), range(REQUESTS)))
        assert {code_of(answer) for answer, _ in answers} == {"model_start_failed"}
        wait_until(lambda: has_no_jobs(runpod))
        wait_for_the_pause(runpod)
        assert len(starts_of(runpod)) <= 2


WORDS = {
    "a full disk": ("OSError: [Errno 28] No space left on device", "before they are ready"),
    "too little memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 108.00 MiB.",
        "memory",
    ),
    "a context too long": (
        "User-specified max_model_len (100000) is greater than the derived max_model_len "
        "(max_position_embeddings=2048.0)",
        "Set MAX_MODEL_LEN to 2048 or less",
    ),
}


@pytest.mark.parametrize("cause", WORDS)
@pytest.mark.parametrize("max_workers", [1, 3])
def test_our_workers_failed_start_is_told_in_seconds_and_paid_for_once(
    cause: str, max_workers: int, tmp_path: Path
) -> None:
    said, told = WORDS[cause]
    (tmp_path / "words").write_text(said)
    real = endpoint_settings() | {"scaler_value": 4, "max_workers": max_workers} | PAUSE
    env = real.pop("env") | {"VLLM_EXTRA_ARGS": f"--die-saying {tmp_path / 'words'}"}
    env.pop("WORKER_VLLM_PORT")
    with stack("", env=env, **real) as (client, runpod):
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = list(pool.map(lambda number: ask(client, number), range(REQUESTS)))
        began = starts_of(runpod)
        assert {code_of(answer) for answer, _ in answers} == {"model_start_failed"}
        assert all(told in answer.text for answer, _ in answers)
        assert len(began) <= max_workers
        ends = [start["ended_at"] or start["ready_at"] for start in began]
        assert min(at for _, at in answers) - min(end for end in ends if end) < 15


@pytest.mark.parametrize("style", ["exits", "startup-error"])
def test_after_the_pause_a_start_is_tried_again(style: str, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.touch()  # nobody is, at first
    env = {"GOOD": str(good)}
    pause = {"failed_start_pause_seconds": 1}
    with stack(style, pause, env=env, idle_timeout_seconds=0.5) as (client, runpod):
        assert code_of(ask(client)[0]) == "model_start_failed"
        wait_until(lambda: not runpod.control("GET", "")["endpoints"]["ep"]["workers"])
        good.unlink()
        wait_until(lambda: ask(client)[0].status_code == 200)


def test_a_call_to_warm_up_tries_a_start_at_once(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.touch()
    with stack("exits", env={"GOOD": str(good)}) as (client, _):
        assert code_of(ask(client)[0]) == "model_start_failed"
        good.unlink()
        assert code_of(ask(client)[0]) == "model_start_failed"
        assert client.post("/v1/models/m/warm").status_code == 202
        wait_until(lambda: ask(client)[0].status_code == 200)


@pytest.mark.parametrize("style", ["exits", "ours"])
def test_a_worker_that_is_well_is_asked_on_while_others_fail(style: str, tmp_path: Path) -> None:
    env = {"GOOD": str(tmp_path / "good")}
    with stack(style, env=env, max_workers=2, scaler_value=1) as (client, runpod):
        wait_until(lambda: ask(client)[0].status_code == 200)
        with ThreadPoolExecutor(8) as pool:
            codes = [answer.status_code for answer, _ in pool.map(lambda _: ask(client), range(40))]
        # One that takes jobs to tell its cause cannot answer them; the endpoint is asked on.
        assert set(codes) == {200} if style == "exits" else 200 in codes
        wait_until(lambda: ask(client)[0].status_code == 200)
        assert model_of(client)["state"] == "ready"
        assert len(starts_of(runpod)) >= 2


def test_a_worker_that_takes_jobs_while_it_loads_is_still_a_cold_start() -> None:
    deadlines = {"first_token_timeout_seconds": 2, "first_byte_hold_seconds": 0}
    # Its first job is taken at once, and answered after three times what a first token may take.
    env = {"START_SECONDS": "6"}
    with stack("hook", deadlines, env=env, idle_timeout_seconds=60) as (client, runpod):
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
            pieces = response.iter_text()
            text = next(pieces)
            wait_until(lambda: runpod.health()["jobs"]["inProgress"] == 1)
            states = set()
            for piece in pieces:
                text += piece
                if "choices" not in text:
                    states.add(model_of(client)["state"])
        assert "choices" in text
        assert ": running" not in text
        assert "ready" not in states
        assert model_of(client)["state"] == "ready"
        # The same worker is known to be up now.
        hangs = chat(messages=[{"role": "user", "content": "hang"}])
        refused = client.post("/v1/chat/completions", json=hangs)
        assert refused.json()["error"]["code"] == "first_token_timeout"


def test_a_clients_own_patience_covers_the_time_a_worker_loads() -> None:
    with stack("hook", env={"START_SECONDS": "60"}) as (client, runpod):
        headers = {"x-cold-start-timeout": "3"}
        refused = client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert refused.json()["error"]["code"] == "cold_start_timeout"
        assert "a worker is starting" in refused.json()["error"]["message"]
        wait_until(lambda: has_no_jobs(runpod))
