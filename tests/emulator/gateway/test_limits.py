"""RunPod's limits, when they are kept."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from emulator.errors import TooManyRequests
from emulator.gateway.limits import Meter, Quotas
from emulator.settings import EndpointSettings, Limit
from tests.emulator.clock import FakeClock
from tests.emulator.running import eventually, one_endpoint


def test_calls_are_counted_over_the_last_ten_seconds() -> None:
    clock = FakeClock()
    meter = Meter(Limit(calls_per_10_seconds=2), clock)

    def is_admitted() -> bool:
        try:
            with meter.admitted():
                return True
        except TooManyRequests:
            return False

    answers = []
    for _ in range(8):
        answers.append(is_admitted())
        clock.advance(3)
    assert answers == [True, True, False, False, True, True, False, False]


def test_a_refusal_says_when_there_is_room_again() -> None:
    clock = FakeClock()
    meter = Meter(Limit(calls_per_10_seconds=1), clock)
    with meter.admitted():
        clock.advance(2.5)
    with pytest.raises(TooManyRequests) as refusal, meter.admitted():
        pass
    assert refusal.value.retry_after_seconds == 8


def test_calls_at_once_are_counted_while_they_last() -> None:
    meter = Meter(Limit(calls_per_10_seconds=100, concurrent=1), FakeClock())
    with meter.admitted(), pytest.raises(TooManyRequests), meter.admitted():
        pass
    with meter.admitted():
        pass


def test_a_quota_is_whole_again_when_its_window_has_passed() -> None:
    clock = FakeClock()
    quotas = Quotas({"minute": 1, "hour": 2}, clock)
    quotas.count()
    clock.advance(59.5)
    assert quotas.headers()["RateLimit"] == '"minute";r=0;t=1, "hour";r=1;t=3541'
    with pytest.raises(TooManyRequests, match="minute") as refusal:
        quotas.count()
    assert refusal.value.retry_after_seconds == 1
    clock.advance(0.5)
    quotas.count()
    clock.advance(60)
    with pytest.raises(TooManyRequests, match="hour"):
        quotas.count()
    clock.advance(3600)
    quotas.count()


def test_without_rate_limits_there_are_none() -> None:
    assert EndpointSettings(id="e").limit("stream") is None


def test_runpods_limits_hold_where_no_others_are_set() -> None:
    own = Limit(calls_per_10_seconds=5)
    settings = EndpointSettings(id="e", rate_limits=True, limits={"run": own})
    assert settings.limit("run") == own
    assert settings.limit("stream") == Limit(calls_per_10_seconds=2000, concurrent=400)
    assert settings.limit("health") is None


def test_a_call_too_many_is_answered_429() -> None:
    with one_endpoint(rate_limits=True) as client:
        assert [client.post("/purge-queue").status_code for _ in range(3)] == [200, 200, 429]
        refused = client.post("/purge-queue")
        assert set(refused.json()) == {"error"}
        assert "retry-after" not in refused.headers


def test_the_control_api_counts_the_calls_within_the_limits_and_beyond() -> None:
    with one_endpoint(rate_limits=True) as client:
        for _ in range(3):
            client.post("/purge-queue")
        calls = client.control("GET", "")["endpoints"]["ep"]["calls"]
        assert calls == {"purge-queue": {"admitted": 2, "refused": 1}}


def test_a_429_says_when_to_come_back_if_it_is_to() -> None:
    with one_endpoint(rate_limits=True, send_retry_after=True) as client:
        for _ in range(2):
            client.post("/purge-queue")
        assert 1 <= int(client.post("/purge-queue").headers["retry-after"]) <= 10


def test_held_streams_count_as_concurrent() -> None:
    limits = {"stream": {"calls_per_10_seconds": 100, "concurrent": 1}}
    with one_endpoint(rate_limits=True, limits=limits) as client, ThreadPoolExecutor() as pool:
        job_id = client.run({"a": 1})
        held = pool.submit(client.get, f"/stream/{job_id}", wait=50_000)
        eventually(lambda: client.admitted("stream") == 1)
        assert client.get(f"/stream/{job_id}").status_code == 429
        client.post(f"/cancel/{job_id}")
        assert held.result().status_code == 200
        assert client.get(f"/stream/{job_id}").status_code == 200
