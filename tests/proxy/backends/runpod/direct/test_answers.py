"""Answers by the direct channel, with a real proxy and a worker that a test drives.

In each script a poll that should not have been made ends the job as FAILED.
"""

import json
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.backends.runpod import job
from proxy.backends.runpod.direct.inbox import WINDOW_BYTES
from tests.leaving import call_to_leave
from tests.proxy.backends.runpod.direct.conftest import DIRECT, Direct, event, frame
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_streaming import CHAT
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.proxy.scripted_worker import ScriptedWorker
from tests.servers import free_port, serve
from tests.waiting import wait_until

SUMMARY = {"run": "r1", "summary": {"frames": 4, "posted": 1, "seconds": 0.1}}


def whole(last: int) -> str:
    return "".join(map(event, range(last + 1)))


def test_an_answer_comes_by_the_channel_once_it_is_open(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.send(frame(2), frame(3, end=True))
        assert answer.read_all() == whole(3)
    wait_until(lambda: direct.worker.acknowledged(direct.nonce) == (4, 4))
    assert direct.runpod.cancelled == []


def test_polls_end_with_the_first_frame_by_the_channel(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.polled.set()  # the poll that was held ends by itself; another would find FAILED
        for number in range(2, 20):
            direct.send(frame(number))
            answer.read_to(event(number))
            time.sleep(0.01)
        direct.send(frame(20, end=True))
        assert answer.read_all() == whole(20)
    assert direct.runpod.stream_calls == 2


def test_the_last_poll_of_an_answer_may_end_by_itself(direct: Direct) -> None:
    polls = {"endpoint": "ep", "operation": "stream", "outcome": "200"}
    before = direct.metric("runpod_calls_total", **polls)
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        assert answer.read_all() == whole(1)
    direct.polled.set()
    wait_until(lambda: direct.metric("runpod_calls_total", **polls) == before + 2)


def test_the_next_jobs_frames_come_by_the_same_connection_before_run_is_answered(
    direct: Direct,
) -> None:
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        assert answer.read_all() == whole(1)
    direct.runpod.run_hold = held = threading.Event()

    def answer_at_once(job: dict[str, Any]) -> None:
        direct.worker.take_job(job)
        direct.send(frame(0), frame(1), frame(2, end=True))
        wait_until(lambda: direct.worker.acknowledged(direct.nonce)[0] == 3)
        held.set()

    direct.runpod.on_job = answer_at_once
    direct.runpod.script, direct.runpod.stream_calls = [Page("FAILED")], 0
    with direct.client.stream("POST", CHAT, json=chat(stream=True)) as response:
        assert response.read().decode() == whole(2)
    assert direct.runpod.stream_calls == 0
    assert direct.worker.dials == 1


def test_the_queue_takes_over_where_the_channel_breaks(direct: Direct) -> None:
    rest = [Page("IN_PROGRESS", [frame(3)]), Page("COMPLETED", [[frame(4), frame(5, end=True)]])]
    lost = direct.metric("proxy_roads_total", road="queue", reason="lost")
    with direct.connected(*rest) as answer:
        direct.send(frame(1), frame(2))
        answer.read_to(event(2))
        direct.worker.close_door()
        direct.worker.cut()
        direct.polled.set()
        assert answer.read_all() == whole(5)
    wait_until(lambda: direct.metric("proxy_roads_total", road="queue", reason="lost") == lost + 1)


def test_the_channel_takes_over_again_from_the_number_that_was_reached(direct: Direct) -> None:
    polled, failed = threading.Event(), Page("FAILED")
    by_queue = [Page("IN_PROGRESS", [frame(3)]), Page("IN_PROGRESS", [], hold=polled), failed]
    with direct.connected(*by_queue) as answer:
        direct.send(frame(1), frame(2))
        answer.read_to(event(2))
        direct.worker.running = [direct.nonce]
        direct.worker.cut()
        wait_until(lambda: ["take", direct.nonce, 3] in direct.worker.items)
        direct.polled.set()
        answer.read_to(event(3))
        direct.send(frame(3), frame(4))
        answer.read_to(event(4))
        polled.set()
        direct.send(frame(5, end=True))
        assert answer.read_all() == whole(5)


def test_a_frame_that_was_lost_on_the_queue_comes_by_the_channel(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(2), frame(3))  # number 1 was posted, and nobody has it
        wait_until(lambda: direct.worker.acknowledged(direct.nonce)[1] == 4)
        assert direct.worker.acknowledged(direct.nonce)[0] == 1
        direct.send(frame(1))
        answer.read_to(event(3))
        direct.send(frame(4, end=True))
        assert answer.read_all() == whole(4)


def test_what_was_not_acknowledged_comes_from_the_aggregate(direct: Direct) -> None:
    direct.runpod.final = {
        "status": "COMPLETED",
        "output": [frame(0), [frame(2), frame(3, end=True)], SUMMARY],
    }
    with direct.connected(Page("COMPLETED")) as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.worker.close_door()
        direct.worker.cut()
        direct.polled.set()
        assert answer.read_all() == whole(3)


def test_frames_that_come_while_runpod_is_asked_how_the_job_ended_are_part_of_the_answer(
    direct: Direct,
) -> None:
    direct.runpod.final = {"status": "COMPLETED", "output": [frame(0), SUMMARY]}
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        held = direct.runpod.script[1]
        assert isinstance(held, Page)
        held.status = "COMPLETED"  # as RunPod knows before the last frames are here
        direct.runpod.status_drips = told = threading.Event()
        asked = direct.runpod.status_calls
        direct.polled.set()
        wait_until(lambda: direct.runpod.status_calls > asked)
        direct.send(frame(2), frame(3, end=True))
        wait_until(lambda: direct.worker.acknowledged(direct.nonce)[0] == 4)
        told.set()
        assert answer.read_all() == whole(3)


def test_a_summary_on_the_queue_is_no_frame(direct: Direct) -> None:
    held = Page("IN_PROGRESS", [], hold=threading.Event())
    with direct.connected(Page("IN_PROGRESS", [SUMMARY]), held) as answer:
        direct.polled.set()
        wait_until(lambda: direct.runpod.stream_calls > 2)
        direct.send(frame(1, end=True))
        assert answer.read_all() == whole(1)


@pytest.mark.parametrize("message", ["no JSON", "[[1]]", '[["frame", "n"]]', "[" * 10_000])
def test_a_worker_that_sends_garbage_is_heard_by_the_queue_alone(
    direct: Direct, message: str
) -> None:
    with direct.connected(Page("COMPLETED", [frame(2, end=True)])) as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.worker.close_door()
        direct.worker.send_text(message)
        wait_until(lambda: not direct.worker.is_connected)
        direct.polled.set()
        assert answer.read_all() == whole(2)


def test_a_second_run_is_never_mixed_with_what_was_passed_on(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.send(frame(0, "data: other\n\n", run="r2"), frame(1, "data: other\n\n", run="r2"))
        text = answer.read_all()
    assert text.startswith(whole(1))
    assert "worker_failed" in text
    assert "other" not in text
    wait_until(lambda: ["cancel", direct.nonce] in direct.worker.items)


def test_a_client_that_leaves_is_told_to_the_worker_at_once(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
    wait_until(lambda: ["cancel", direct.nonce] in direct.worker.items)
    wait_until(lambda: direct.runpod.cancelled == [direct.runpod.job_id])
    direct.send(frame(2))
    wait_until(lambda: direct.worker.items.count(["cancel", direct.nonce]) == 2)


def test_a_client_that_leaves_before_anything_has_come_is_told_to_the_worker_too(
    direct: Direct,
) -> None:
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        answer.read_all()
    direct.polled.clear()
    direct.runpod.script = [Page("IN_PROGRESS", [], hold=direct.polled)]
    direct.runpod.stream_calls = 0
    url = str(direct.client.base_url.join(CHAT))
    with call_to_leave(url, key=KEY, body=chat(stream=True)):
        wait_until(lambda: len(direct.worker.nonces) == 2)
        wait_until(lambda: direct.runpod.job_id != "")
    wait_until(lambda: ["cancel", direct.nonce] in direct.worker.items)


def test_a_job_whose_submission_broke_off_is_stopped_by_the_channel(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        answer.read_all()
    direct.runpod.drops_run = True  # RunPod has the job, and nobody hears its id
    assert direct.client.post(CHAT, json=chat(stream=True)).status_code == 503
    direct.runpod.drops_run = False
    assert len(direct.worker.nonces) == 2
    direct.send(frame(0))
    wait_until(lambda: ["cancel", direct.nonce] in direct.worker.items)
    assert direct.runpod.cancelled == []


def test_a_job_that_others_cancel_is_noticed_while_frames_come(
    direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "LOOK_SECONDS", 0.1)
    direct.runpod.final = {"status": "CANCELLED"}
    with direct.connected(Page("CANCELLED")) as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.polled.set()
        text = answer.read_all()
    assert text.startswith(whole(1))
    assert "cancelled on RunPod's side" in text


def test_a_job_that_the_worker_has_no_more_is_asked_for_at_once(direct: Direct) -> None:
    direct.runpod.final = {"status": "FAILED", "error": "out of memory"}
    with direct.connected(Page("FAILED")) as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.polled.set()
        direct.worker.send(["gone", direct.nonce])
        assert "worker_failed" in answer.read_all()


def by_queue(direct: Direct, **channel: Any) -> None:
    """An answer comes by the queue alone."""
    with direct.asked(Page("COMPLETED", [frame(1, end=True)]), **channel) as answer:
        answer.read_to(event(0))
        time.sleep(0.2)  # for the dial to be in vain
        direct.polled.set()
        assert answer.read_all() == whole(1)
    assert direct.worker.bytes_received == 0


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        ({"port": free_port()}, "refused"),
        ({"certificate": "ab" * 32}, "certificate"),
        ({"host": "worker.example.com"}, "malformed"),
        ({"closed": "no_public_port"}, "no_public_port"),
    ],
)
def test_what_is_in_the_way_of_the_channel_is_counted_in_a_word(
    direct: Direct, channel: dict[str, Any], reason: str
) -> None:
    by_queue(direct, **channel)
    by_queue(direct, **channel)  # what is remembered has the same name
    wait_until(lambda: direct.metric("proxy_roads_total", road="queue", reason=reason) >= 1)
    assert direct.worker.dials == 0


@pytest.mark.parametrize("settings", [{"direct_private_addresses": False}], indirect=True)
def test_a_worker_in_a_private_network_is_not_dialled_unless_that_is_allowed(
    direct: Direct,
) -> None:
    by_queue(direct)
    wait_until(lambda: direct.metric("proxy_roads_total", reason="private_address") == 1)


def test_an_older_worker_answers_by_the_queue(direct: Direct) -> None:
    direct.runpod.script = [Page("COMPLETED", [frame(0), frame(1, end=True)])]
    with direct.client.stream("POST", CHAT, json=chat(stream=True)) as response:
        assert response.read().decode() == whole(1)
    wait_until(lambda: direct.metric("proxy_roads_total", reason="not_offered") >= 1)


@pytest.mark.slow
def test_a_worker_that_falls_silent_is_polled_until_it_is_heard_again(direct: Direct) -> None:
    polled = threading.Event()
    by_queue = [Page("IN_PROGRESS", [frame(2)]), Page("IN_PROGRESS", [], hold=polled)]
    with direct.connected(*by_queue, Page("FAILED")) as answer:
        direct.polled.set()
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.worker.is_mute = True
        answer.read_to(event(2))  # by the queue
        direct.worker.is_mute = False
        direct.send(frame(2), frame(3))
        answer.read_to(event(3))
        polled.set()
        direct.send(frame(4, end=True))
        assert answer.read_all() == whole(4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"idle_timeout_seconds": 2}], indirect=True)
def test_keep_alives_and_deadlines_hold_for_the_channel_too(direct: Direct) -> None:
    with direct.connected() as answer:
        direct.send(frame(1))
        answer.read_to(event(1))
        direct.polled.set()
        text = answer.read_all()
    assert ": running" in answer.text.partition(event(1))[2]
    assert '"code":"idle_timeout"' in text
    wait_until(lambda: ["cancel", direct.nonce] in direct.worker.items)


@pytest.mark.slow
def test_a_client_that_does_not_read_holds_up_its_own_stream_alone(direct: Direct) -> None:
    with direct.connected() as answer:
        slow, text = direct.nonce, "x" * 2**16
        frames = iter(range(1, 10_000))
        sent = 0

        def fill_window() -> None:
            nonlocal sent
            consumed = direct.worker.acknowledged(slow)[1]
            while (sent - max(0, consumed - 1)) * len(text) < WINDOW_BYTES:
                sent = next(frames)
                direct.worker.send(["frame", slow, frame(sent, f"data: {text}\n\n")])

        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 1:
            before = sent
            fill_window()
            if sent > before:
                quiet_since = time.monotonic()
            time.sleep(0.05)
        assert direct.worker.acknowledged(slow)[0] == sent + 1  # received, and not consumed
        headers = {"authorization": f"Bearer {KEY}"}

        def answer_at_once(job: dict[str, Any]) -> None:
            direct.worker.take_job(job)
            direct.send(frame(0), frame(1, end=True))

        direct.runpod.on_job = answer_at_once
        url = direct.client.base_url.join(CHAT)
        other = httpx.post(url, json=chat(stream=True), headers=headers, timeout=30)
        assert other.text == whole(1)
        direct.worker.send(["frame", slow, frame(sent + 1, event(sent + 1), end=True)])
        assert answer.read_all().count(text) == sent


def test_the_log_says_which_road_an_answer_came_by(
    direct: Direct, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="proxy.access")
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        answer.read_all()
    wait_until(lambda: any("road=direct" in line for line in caplog.messages))
    assert direct.metric("proxy_roads_total", road="direct", reason="") >= 1
    assert direct.metric("proxy_frames_total", road="direct") >= 1
    assert direct.metric("proxy_channels", endpoint="ep") == 1
    direct.worker.close_door()
    by_queue_alone = {"closed": "no_public_port"}
    with direct.asked(Page("COMPLETED", [frame(1, end=True)]), **by_queue_alone) as answer:
        direct.polled.set()
        answer.read_all()
    wait_until(lambda: any("road=queue:no_public_port" in line for line in caplog.messages))


def test_no_nonce_is_in_the_log_or_in_an_answer(
    direct: Direct, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with direct.connected() as answer:
        direct.send(frame(1, end=True))
        text = answer.read_all()
    assert direct.nonce not in caplog.text + text


def test_a_proxy_that_stops_closes_its_channels(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, worker: ScriptedWorker
) -> None:
    app = create_app(settings_for(scripted_runpod[1], **DIRECT))
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve(app) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        direct = Direct(client, runpod, worker)
        with direct.connected() as answer:
            direct.send(frame(1, end=True))
            answer.read_all()
        assert worker.is_connected
        direct.polled.set()
    wait_until(lambda: not worker.is_connected)


CONFIG = """
[endpoints.ep]
url = "{url}/v2/ep"
direct = true
[models.m]
endpoint = "ep"
"""


@pytest.mark.slow
def test_channels_are_kept_when_the_configuration_is_read_again(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    worker: ScriptedWorker,
    tmp_path: Path,
) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(CONFIG.format(url=scripted_runpod[1]))
    proxy = Proxy(
        scripted_runpod[1], state_dir=tmp_path, config=file, direct_private_addresses=True
    )
    try:
        direct = Direct(proxy.client, runpod, worker)
        with direct.connected() as answer:
            file.write_text(file.read_text() + 'aliases = ["n"]\n')
            proxy.process.send_signal(signal.SIGHUP)
            wait_until(lambda: proxy.client.get("/v1/models/n").status_code == 200)
            direct.send(frame(1, end=True))
            assert answer.read_all() == whole(1)
        assert worker.dials == 1
        assert worker.is_connected
    finally:
        direct.polled.set()
        proxy.close()


@pytest.mark.slow
def test_a_proxy_stops_though_its_worker_answers_nothing_any_more(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, worker: ScriptedWorker
) -> None:
    app = create_app(settings_for(scripted_runpod[1], **DIRECT))
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(headers=headers, timeout=30) as client, ExitStack() as running:
        client.base_url = httpx.URL(running.enter_context(serve(app)))
        direct = Direct(client, runpod, worker)
        with direct.connected() as answer:
            direct.send(frame(1, end=True))
            answer.read_all()
        direct.polled.set()
        with worker.frozen():
            running.close()


def test_a_job_without_direct_is_asked_for_as_ever(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [frame(0), frame(1, end=True)])]
    assert client.post(CHAT, json=chat(stream=True)).text == whole(1)
    assert set(json.loads(runpod.raw_jobs[0])["input"]["proxy"]) == {"protocol", "request_id"}
