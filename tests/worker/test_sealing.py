"""The worker's side of sealed jobs: it opens what it has a secret for, and seals all it says."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from scripts.scripted_engine import Engine, create_engine
from tests.servers import serve
from tests.wire.record import opened
from tests.wire.sealing import SECRET, opened_frame, sealed_input
from tests.worker.test_handler import body_of, chat, outputs_of
from worker.answer import VLLMClient
from worker.chunks import PIECE_BYTES
from worker.errors import ModelStartFailed, SettingsError
from worker.handler import Handler, create_handler, create_refusing_handler
from worker.sealing import Seal, Seals
from worker.settings import WorkerSettings

OTHER = "another-secret-of-enough-letters"
RUNPOD_SPLITS_BYTES = 1_000_000


@pytest.fixture(scope="module")
def app() -> Starlette:
    return create_engine()


@pytest.fixture(scope="module")
def url(app: Starlette) -> Iterator[str]:
    with serve(app) as base:
        yield base


@pytest.fixture
def engine(app: Starlette) -> Engine:
    engine: Engine = app.state.engine
    return engine


@pytest.fixture
async def client(url: str) -> AsyncIterator[VLLMClient]:
    client = VLLMClient(url, request_timeout_seconds=60)
    yield client
    await client.close()


def handler_of(client: VLLMClient, *secrets: str, allow_unsealed: bool = False) -> Handler:
    seals = Seals(secrets, allow_unsealed=allow_unsealed)
    return create_handler(client, [{"id": "tiny-chat"}], seals=seals)


def sealed_chat(secret: str = SECRET, **body: Any) -> dict[str, Any]:
    job = chat(**body)
    return {"id": job["id"], "input": sealed_input(job["input"], secret)}


@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=600),
    seq=st.integers(0, 2**40),
    ends=st.booleans(),
)
def test_a_sealed_frame_holds_the_frame_and_shows_nothing_else(
    text: str, seq: int, ends: bool
) -> None:
    frame = {"seq": seq, "run": "r", "text": text} | ({"end": True} if ends else {})
    seal = Seal(SECRET.encode(), bytes(range(16)))
    sealed = json.loads(json.dumps(seal.frame(frame)))
    assert opened_frame(sealed) == frame | {"run": seal.run}


def test_a_header_that_is_no_text_does_not_keep_a_frame_from_being_sealed() -> None:
    seal = Seal(SECRET.encode(), bytes(range(16)))
    sealed = seal.frame({"seq": 0, "headers": {"metadata": "\udcff"}})
    assert opened_frame(sealed)["headers"] == {"metadata": "?"}


def test_the_largest_frame_stays_below_what_runpod_splits() -> None:
    seal = Seal(SECRET.encode(), bytes(16))
    frame = {"seq": 0, "status": 200, "content_type": "application/json", "text": '"' * PIECE_BYTES}
    assert len(json.dumps({"output": seal.frame(frame)})) < RUNPOD_SPLITS_BYTES


async def test_a_stream_is_sealed_whole_and_says_the_same(client: VLLMClient) -> None:
    script = {"text": "Größe 世界 🙂 said to nobody else", "created": 1}
    plain = await outputs_of(handler_of(client), chat(stream=True, script=script))
    sealed = await outputs_of(handler_of(client, SECRET), sealed_chat(stream=True, script=script))
    assert body_of(opened(sealed)) == body_of(plain)
    assert "nobody" not in json.dumps(sealed)
    assert {key for frame in sealed for key in frame} == {"seq", "run", "sealed", "end"}


@pytest.mark.parametrize(
    ("body", "status"),
    [({"max_tokens": 3}, 200), ({"model": "other"}, 404), ({"script": {"status": 500}}, 500)],
)
async def test_plain_answers_and_vllms_errors_are_sealed(
    client: VLLMClient, body: dict[str, Any], status: int
) -> None:
    sealed = await outputs_of(handler_of(client, SECRET), sealed_chat(**body))
    assert opened(sealed)[0]["status"] == status
    assert json.loads(body_of(opened(sealed)))


async def test_an_error_of_the_worker_is_sealed_too(client: VLLMClient) -> None:
    job = {"id": "job-1", "input": sealed_input({"route": "../x", "proxy": {"protocol": 1}})}
    [sealed] = await outputs_of(handler_of(client, SECRET), job)
    assert opened_frame(sealed)["status"] == 400


async def test_what_our_proxy_seals_is_answered_sealed_whatever_stands_in_it(
    client: VLLMClient,
) -> None:
    job_input = chat(None, max_tokens=1)["input"]
    job = {"id": "job-1", "input": sealed_input(job_input)}
    sealed = await outputs_of(handler_of(client, SECRET), job)
    assert opened(sealed)[0]["status"] == 200


async def test_a_second_run_seals_by_another_key(client: VLLMClient) -> None:
    job = sealed_chat(max_tokens=1, script={"created": 1})
    handler = handler_of(client, SECRET)
    [first], [second] = [await outputs_of(handler, job) for _ in range(2)]
    assert first["run"] != second["run"]
    assert first["sealed"] != second["sealed"]
    assert opened_frame(first)["text"] == opened_frame(second)["text"]


async def test_while_the_secret_changes_both_are_good(client: VLLMClient) -> None:
    handler = handler_of(client, OTHER, SECRET)
    for secret in (SECRET, OTHER):
        [sealed] = await outputs_of(handler, sealed_chat(secret, max_tokens=1))
        assert opened_frame(sealed, secret)["status"] == 200


def changed(**changes: Any) -> dict[str, Any]:
    job = sealed_chat()
    job["input"]["sealed"] |= changes
    return job


@pytest.mark.parametrize(
    ("secrets", "job", "reason"),
    [
        ([], sealed_chat(), "no_secret"),
        ([OTHER], sealed_chat(), "wrong_secret"),
        ([OTHER, OTHER[::-1]], sealed_chat(), "wrong_secret"),
        ([SECRET], changed(salt="AAAA"), "wrong_secret"),
        ([SECRET], changed(data="AAAA"), "wrong_secret"),
        ([SECRET], changed(data="no base64!"), "wrong_secret"),
        ([SECRET], changed(data=7), "wrong_secret"),
        ([SECRET], {"id": "j", "input": {"sealed": 7, "proxy": {"protocol": 2}}}, "wrong_secret"),
        ([SECRET], chat(), "unsealed"),
    ],
)
async def test_what_cannot_be_opened_is_refused_and_vllm_not_asked(
    client: VLLMClient, engine: Engine, secrets: list[str], job: dict[str, Any], reason: str
) -> None:
    started = engine.counters.started
    [frame] = await outputs_of(handler_of(client, *secrets), job)
    assert (frame["seq"], frame["end"], frame["seal_refused"]) == (0, True, reason)
    assert (frame["status"], json.loads(frame["text"])["error"]["code"]) == (403, "seal_refused")
    assert engine.counters.started == started


async def test_a_way_of_sealing_that_is_not_known_is_told(client: VLLMClient) -> None:
    job = sealed_chat()
    job["input"]["proxy"]["protocol"] = 3
    [frame] = await outputs_of(handler_of(client, SECRET), job)
    assert (frame["status"], "protocol 2" in frame["text"]) == (400, True)


async def test_others_jobs_fail_where_only_sealed_ones_are_taken(client: VLLMClient) -> None:
    [failed] = await outputs_of(handler_of(client, SECRET), chat(None))
    assert json.loads(failed["error"])["error"]["code"] == "seal_refused"


async def test_unsealed_jobs_are_taken_where_that_is_allowed(client: VLLMClient) -> None:
    handler = handler_of(client, SECRET, allow_unsealed=True)
    [frame] = await outputs_of(handler, chat(max_tokens=1))
    assert frame["status"] == 200
    [sealed] = await outputs_of(handler, sealed_chat(max_tokens=1))
    assert opened_frame(sealed)["status"] == 200


async def test_a_sealed_job_is_told_in_the_clear_why_the_model_did_not_start() -> None:
    handler = create_refusing_handler(ModelStartFailed("bad_flag", "WORKER_SEAL_SECRET: ..."))
    [frame] = await outputs_of(handler, sealed_chat())
    assert (frame["status"], frame["start_failed"]) == (503, "bad_flag")


@pytest.mark.slow
@pytest.mark.parametrize(("secrets", "loaded"), [([], False), ([SECRET], True)])
def test_what_sealing_takes_is_loaded_before_jobs_come_and_without_a_secret_never(
    secrets: list[str], loaded: bool
) -> None:
    code = (
        "import sys, worker.__main__ as main\n"
        f"main.Seals({secrets}).prepare()\n"
        "before = 'cryptography.hazmat.primitives.ciphers.aead' in sys.modules\n"
        f"main.Seals({secrets}).open({{'input': {sealed_chat()['input'] if loaded else {}}}})\n"
        "print(before, 'cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(loaded)] * 2


def test_secrets_are_read_without_the_blanks_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_SEAL_SECRET", f" {SECRET}\n")
    monkeypatch.setenv("WORKER_SEAL_SECRET_OLD", OTHER)
    monkeypatch.setenv("WORKER_ALLOW_UNSEALED", "true")
    settings = WorkerSettings.from_environment()
    assert settings.seal_secrets == [SECRET, OTHER]
    assert settings.allow_unsealed
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("name", ["WORKER_SEAL_SECRET", "WORKER_SEAL_SECRET_OLD"])
@pytest.mark.parametrize(
    "value", ["short", "x" * 31, "{{ RUNPOD_SECRET_the_seal_of_my_endpoint }}", "é" * 40]
)
def test_a_secret_that_is_none_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: a secret has at least 32") as caught:
        WorkerSettings.from_environment()
    assert value not in str(caught.value)
