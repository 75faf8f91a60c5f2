"""A key's limits: exact, whoever comes at the same time, and answered as OpenAI answers them."""

import asyncio
import json
import random
import threading
from pathlib import Path

import httpx
import openai
import pytest

from proxy.access.keys import Key, KeyLimits
from proxy.access.limits import Limiter, duration
from proxy.access.spending import Spending
from proxy.api.token_estimate import Tokens
from proxy.errors import PromptOverLimit, RateLimitExceeded, TokenLimitExceeded
from tests.leaving import call_to_leave
from tests.proxy.access.conftest import BEGINNING, FRAME, LIMITED, Limited
from tests.proxy.conftest import AS_JSON, KEY, chat
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
STORM = 200


def test_no_sixty_seconds_have_more_requests_than_a_minute_may(tmp_path: Path) -> None:
    async def arrivals() -> list[float]:
        now, chance = 0.0, random.Random(7)
        let_in: list[float] = []
        promises: list[tuple[float, float]] = []
        limiter = Limiter(Spending(tmp_path), clock=lambda: now)
        key = Key("k", limits=KeyLimits(requests_per_minute=20))
        for _ in range(5_000):
            now += chance.choice((0.0, 0.1, 1.0, 3.0))
            try:
                await limiter.admit(key, Tokens())
                let_in.append(now)
            except RateLimitExceeded as refusal:
                promises.append((now + (refusal.retry_after_seconds or 0), let_in[-20] + 60))
        assert all(told == pytest.approx(free) for told, free in promises)
        return let_in

    let_in = asyncio.run(arrivals())
    assert len(let_in) > 1_000
    assert all(later - earlier >= 60 for earlier, later in zip(let_in, let_in[20:], strict=False))


def test_a_limit_that_is_lower_now_says_when_it_has_room(tmp_path: Path) -> None:
    async def tell() -> None:
        now = -10.0
        limiter = Limiter(Spending(tmp_path), clock=lambda: now)
        for _ in range(3):
            now += 10.0
            await limiter.admit(Key("k", limits=KeyLimits(requests_per_minute=3)), Tokens())
        now = 30.0
        with pytest.raises(RateLimitExceeded) as refused:
            await limiter.admit(Key("k", limits=KeyLimits(requests_per_minute=2)), Tokens())
        assert refused.value.retry_after_seconds == 40
        assert refused.value.headers["x-ratelimit-reset-requests"] == "50s"

    asyncio.run(tell())


def test_a_minute_is_free_again_as_its_requests_pass(tmp_path: Path) -> None:
    async def tell() -> None:
        now = 0.0
        limiter = Limiter(Spending(tmp_path), clock=lambda: now)
        key = Key("k", limits=KeyLimits(requests_per_minute=2))
        await limiter.admit(key, Tokens())
        now = 20.0
        await limiter.admit(key, Tokens())
        now = 30.0
        with pytest.raises(RateLimitExceeded) as refused:
            await limiter.admit(key, Tokens())
        assert refused.value.retry_after_seconds == 30
        assert refused.value.headers["x-ratelimit-reset-requests"] == "50s"
        now = 60.0
        await limiter.admit(key, Tokens())

    asyncio.run(tell())


def test_the_request_beyond_a_minutes_is_refused_as_openai_does(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    with limited(requests_per_minute=2) as client:
        answers = [client.post(CHAT, json=chat()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    told = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert told == ["1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert answers[0].headers["x-ratelimit-reset-requests"] == "1m0s"
    error = error_of(answers[2])
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "Limit 2, Used 2, Requested 1. Please try again in " in error["message"]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    assert len(runpod.jobs) == 2


def test_openais_sdk_raises_its_own_class_for_a_limit(limited: Limited) -> None:
    with limited(requests_per_minute=1) as client:
        sdk = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=LIMITED, max_retries=0)
        with sdk:
            sdk.post("/chat/completions", body=chat(), cast_to=object)
            with pytest.raises(openai.RateLimitError):
                sdk.post("/chat/completions", body=chat(), cast_to=object)


def test_only_routes_that_start_jobs_use_up_a_limit(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    with limited(requests_per_minute=1) as client:
        for path in ("/v1/models", "/v1/models/m", "/metrics", "/health", "/ready"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "x-ratelimit-limit-requests" not in answer.headers
        assert client.post(CHAT, content=b"{", headers=AS_JSON).status_code == 400
        assert client.post(CHAT, json=chat(model="other")).status_code == 404
        assert client.post("/v1/models/m/warm").status_code == 202
        assert client.post("/v1/models/m/warm").status_code == 429
        assert client.post(CHAT, json=chat()).status_code == 429
        wait_until(lambda: len(runpod.jobs) == 1)


def test_other_keys_are_not_held_to_it(limited: Limited) -> None:
    with limited(requests_per_minute=1) as client:
        assert client.post(CHAT, json=chat()).status_code == 200
        assert client.post(CHAT, json=chat()).status_code == 429
        client.headers["authorization"] = f"Bearer {KEY}"
        for _ in range(3):
            answer = client.post(CHAT, json=chat())
            assert answer.status_code == 200
            assert "x-ratelimit-limit-requests" not in answer.headers


def test_a_streams_place_is_free_when_its_client_leaves(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    with limited(max_requests=1) as client:
        runpod.script = [Page("IN_PROGRESS", [BEGINNING])]
        with call_to_leave(f"{client.base_url}{CHAT}", key=LIMITED, body=chat(stream=True)):
            wait_until(lambda: len(runpod.jobs) == 1)
            refused = client.post(CHAT, json=chat())
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "on requests at once: Limit 1" in error_of(refused)["message"]
        runpod.script = [Page("COMPLETED", [FRAME])]
        wait_until(lambda: client.post(CHAT, json=chat()).status_code == 200)
        assert client.post(CHAT, json=chat()).status_code == 200


def test_a_refused_or_failed_requests_place_is_free_again(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    with limited(max_requests=1) as client:
        runpod.script = [Page("FAILED")]
        runpod.final = {"status": "FAILED", "error": "broken"}
        for _ in range(3):
            assert client.post(CHAT, json=chat()).status_code == 502


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"requests_per_minute": 50}, {"max_requests": 50}])
def test_of_two_hundred_clients_at_once_just_as_many_are_let_in_as_may(
    limited: Limited, runpod: ScriptedRunPod, limits: dict[str, int]
) -> None:
    async def storm(url: str) -> list[int]:
        async def ask(client: httpx.AsyncClient) -> int:
            status = (await client.post(CHAT, json=chat())).status_code
            if status == 429:
                statuses.append(status)
                if len(statuses) == STORM - 50:
                    release.set()
            return status

        statuses: list[int] = []
        headers = {"authorization": f"Bearer {LIMITED}"}
        bounds = httpx.Limits(max_connections=STORM)
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=60, limits=bounds
        ) as client:
            return await asyncio.gather(*(ask(client) for _ in range(STORM)))

    release = threading.Event()  # no answer before all that are too many have been refused
    with limited(**limits) as client:
        runpod.script = [Page("IN_PROGRESS", hold=release), Page("COMPLETED", [FRAME])]
        statuses = asyncio.run(storm(str(client.base_url)))
    assert (statuses.count(200), statuses.count(429)) == (50, STORM - 50)
    assert len(runpod.jobs) == 50


def test_what_a_request_did_not_take_is_put_back_and_what_it_took_beyond_is_owed(
    tmp_path: Path,
) -> None:
    async def tell() -> None:
        now = 0.0
        limiter = Limiter(Spending(tmp_path), clock=lambda: now)
        key = Key("k", limits=KeyLimits(tokens_per_minute=600))
        frugal = await limiter.admit(key, Tokens(100, 400))
        with pytest.raises(TokenLimitExceeded) as refused:
            await limiter.admit(key, Tokens(50, 100))
        assert refused.value.retry_after_seconds == 5
        assert refused.value.headers["x-ratelimit-remaining-tokens"] == "100"
        assert refused.value.headers["x-ratelimit-reset-tokens"] == "50s"
        assert frugal is not None
        frugal.end(used=110, is_known=True)
        greedy = await limiter.admit(key, Tokens(50, 100))
        assert greedy is not None
        greedy.end(used=690, is_known=True)  # of the 490 that were left
        with pytest.raises(TokenLimitExceeded) as owing:
            await limiter.admit(key, Tokens(1))
        assert owing.value.headers["x-ratelimit-remaining-tokens"] == "0"
        now = 20.0
        with pytest.raises(TokenLimitExceeded):
            await limiter.admit(key, Tokens(1))
        now = 21.0
        await limiter.admit(key, Tokens(10))

    asyncio.run(tell())


@pytest.mark.parametrize(
    ("wanted", "used", "is_known", "taken"),
    [
        (Tokens(100, 100), 0, False, 200),
        (Tokens(100, 100), 300, False, 300),
        (Tokens(100, 100), 150, True, 150),
        (Tokens(), 150, True, 0),  # as of a stored response, which costs nobody anything again
    ],
)
def test_what_is_taken_in_the_end(
    tmp_path: Path, wanted: Tokens, used: int, is_known: bool, taken: int
) -> None:
    async def tell() -> None:
        limiter = Limiter(Spending(tmp_path), clock=lambda: 0.0)
        key = Key("k", limits=KeyLimits(tokens_per_minute=600))
        permit = await limiter.admit(key, wanted)
        assert permit is not None
        permit.end(used=used, is_known=is_known)
        following = await limiter.admit(key, Tokens(1))
        assert following is not None
        left = dict(following.told([]))[b"x-ratelimit-remaining-tokens"]
        assert int(left) == 600 - taken - 1

    asyncio.run(tell())


def test_what_a_models_server_tells_of_limits_of_its_own_is_replaced(tmp_path: Path) -> None:
    limiter = Limiter(Spending(tmp_path))
    key = Key("k", limits=KeyLimits(requests_per_minute=10))
    permit = asyncio.run(limiter.admit(key, Tokens()))
    assert permit is not None
    name, other = b"x-ratelimit-limit-requests", (b"content-type", b"text/plain")
    told = permit.told([(name, b"7"), other])
    assert other in told
    assert [value for header, value in told if header == name] == [b"10"]


def test_one_of_several_copies_lets_in_its_share(tmp_path: Path) -> None:
    async def tell() -> None:
        limiter = Limiter(Spending(tmp_path), copies=2)
        key = Key("k", limits=KeyLimits(requests_per_minute=5))
        for _ in range(2):
            await limiter.admit(key, Tokens())
        with pytest.raises(RateLimitExceeded):
            await limiter.admit(key, Tokens())

    asyncio.run(tell())


def test_a_bucket_never_holds_more_than_a_minutes_tokens(tmp_path: Path) -> None:
    async def tell() -> None:
        now = 0.0
        limiter = Limiter(Spending(tmp_path), clock=lambda: now)
        key = Key("k", limits=KeyLimits(tokens_per_minute=600))
        long = await limiter.admit(key, Tokens(600))
        now = 300.0
        assert long is not None
        long.end(used=0, is_known=True)
        await limiter.admit(key, Tokens(600))
        with pytest.raises(TokenLimitExceeded):
            await limiter.admit(key, Tokens(1))

    asyncio.run(tell())


def test_a_request_takes_at_most_what_a_minute_has_unless_its_prompt_is_more(
    tmp_path: Path,
) -> None:
    async def tell() -> None:
        limiter = Limiter(Spending(tmp_path))
        key = Key("k", limits=KeyLimits(tokens_per_minute=600))
        with pytest.raises(PromptOverLimit, match="Limit 600, Requested 601") as refused:
            await limiter.admit(key, Tokens(601))
        assert refused.value.headers["x-should-retry"] == "false"
        assert await limiter.admit(key, Tokens(1, 32_000)) is not None

    asyncio.run(tell())


USAGE = {"usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tokens_are_reserved_and_settled_by_usage(
    limited: Limited, runpod: ScriptedRunPod, is_streamed: bool
) -> None:
    with limited(tokens_per_minute=2000) as client:
        runpod.script = [Page("COMPLETED", [FRAME | {"text": json.dumps(USAGE)}])]
        if is_streamed:
            last = f"data: {json.dumps(USAGE | {'choices': []})}\n\n"
            text = 'data: {"choices":[{"index":0}]}\n\n' + last + "data: [DONE]\n\n"
            runpod.script = [Page("COMPLETED", [BEGINNING | {"text": text, "end": True}])]
        first = client.post(CHAT, json=chat(max_tokens=900, stream=is_streamed))
        second = client.post(CHAT, json=chat(max_tokens=900))
    assert "usage" not in first.text or not is_streamed  # which was not asked for
    left, after = (int(a.headers["x-ratelimit-remaining-tokens"]) for a in (first, second))
    estimate = (2000 - left) - 900
    assert 10 < estimate < 40
    assert 2000 - 42 - 900 - estimate <= after <= 2000 - 42 - 900  # a second or so has passed
    assert first.headers["x-ratelimit-limit-tokens"] == "2000"


def test_the_request_beyond_a_minutes_tokens_is_refused_as_openai_does(
    limited: Limited, runpod: ScriptedRunPod
) -> None:
    with limited(tokens_per_minute=1000) as client:
        assert client.post(CHAT, json=chat(max_tokens=900)).status_code == 200
        refused = client.post(CHAT, json=chat(max_tokens=900))
        too_large = client.post(CHAT, json=chat(messages=[{"role": "user", "content": "x" * 9000}]))
        assert client.post("/tokenize", json={"prompt": "hi"}).status_code == 200
    for answer in (refused, too_large):
        error = error_of(answer)
        assert answer.status_code == 429
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "retry-after" in refused.headers
    assert too_large.headers["x-should-retry"] == "false"
    assert len(runpod.jobs) == 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_failed_answer_takes_no_tokens_and_one_that_is_left_takes_all_that_was_reserved(
    limited: Limited, runpod: ScriptedRunPod, is_streamed: bool
) -> None:
    with limited(tokens_per_minute=1000) as client:
        runpod.script = [Page("FAILED")]
        runpod.final = {"status": "FAILED", "error": "broken"}
        for _ in range(3):
            assert client.post(CHAT, json=chat(max_tokens=900)).status_code == 502
        runpod.script = [Page("IN_PROGRESS", [BEGINNING])]
        body = chat(stream=is_streamed, max_tokens=900)
        with call_to_leave(f"{client.base_url}{CHAT}", key=LIMITED, body=body):
            wait_until(lambda: len(runpod.jobs) == 4)
        assert client.post(CHAT, json=chat(max_tokens=900)).status_code == 429


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0ms"),
        (0.12, "120ms"),
        (0.9996, "1s"),
        (8.64, "8.64s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
