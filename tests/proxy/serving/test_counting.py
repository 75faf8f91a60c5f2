"""Behind the wake-up shield nothing that only counts tokens wakes a GPU."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
import tokenizers

from proxy.app import create_app
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.serving.counting import TOKENS_PER_MESSAGE
from tests.proxy.conftest import KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until

UP = pytest.mark.parametrize("settings", [{"wake_shield": True}], indirect=True)
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
COUNT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi there"}]}
CALLS: list[tuple[str, Any]] = [
    ("/tokenize", {"model": "m", "prompt": "hi"}),
    ("/tokenize", chat()),
    ("/tokenize", {"prompt": "hi", "stream": True}),
    ("/detokenize", {"model": "m", "tokens": [1]}),
    ("/v1/messages/count_tokens", COUNT),
]
EVERY_CALL = pytest.mark.parametrize(("path", "body"), CALLS)


@UP
@EVERY_CALL
def test_counting_wakes_no_gpu_and_is_refused_at_once(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, path: str, body: Any
) -> None:
    refused = fresh_client.post(path, json=body)
    assert refused.status_code == 503
    assert refused.headers["x-should-retry"] == "false"
    assert refused.json()["error"]["code"] == "model_asleep"
    assert runpod.jobs == []


@UP
def test_anthropics_client_does_not_repeat_a_count_that_was_refused(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    attempts: list[Any] = []
    http_client = anthropic.DefaultHttpxClient(event_hooks={"request": [attempts.append]})
    url = str(fresh_client.base_url)
    claude = anthropic.Anthropic(base_url=url, api_key=KEY, http_client=http_client)
    with claude, pytest.raises(anthropic.InternalServerError) as caught:
        claude.messages.count_tokens(**COUNT)
    assert caught.value.type == "overloaded_error"
    assert len(attempts) == 1


@UP
@EVERY_CALL
@pytest.mark.usefixtures("awake")
def test_a_worker_that_is_up_counts(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, path: str, body: Any
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    wait_until(lambda: fresh_client.get("/v1/models/m").json()["state"] == "ready")
    assert fresh_client.post(path, json=body).text == "{}"
    assert len(runpod.jobs) == 1


@EVERY_CALL
def test_without_the_shield_counting_wakes_a_worker(
    client: httpx.Client, runpod: ScriptedRunPod, path: str, body: Any
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert client.post(path, json=body | {"stream": False}).text == "{}"
    assert len(runpod.jobs) == 1


@pytest.fixture
def counting(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of a proxy that has the tokenizer of its model: one token for each word."""
    vocabulary = {"[UNK]": 0, "hi": 1, "there": 2, "<s>": 3}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with configured(scripted_runpod[1], tmp_path) as client:
        yield client


@contextmanager
def configured(runpod_url: str, folder: Path) -> Iterator[httpx.Client]:
    path = folder / "proxy.toml"
    path.write_text(
        '[endpoints.one]\nid = "ep"\n[models.m]\nendpoint = "one"\nmax_model_len = 99\n'
        f"tokenizer = {json.dumps(str(folder / 'tokenizer.json'))}\n"
    )
    changes = {"config": path, "runpod_endpoint_id": None, "models": "", "wake_shield": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        serve(create_app(settings_for(runpod_url, **changes))) as url,
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/tokenize", {"prompt": "hi there"}, {"count": 3, "tokens": [3, 1, 2]}),
        (
            "/tokenize",
            {"prompt": "hi", "add_special_tokens": False, "return_token_strs": True},
            {"count": 1, "tokens": [1], "token_strs": ["hi"]},
        ),
        ("/tokenize", {"prompt": ""}, {"count": 1, "tokens": [3]}),
    ],
)
def test_texts_are_counted_by_the_models_tokenizer(
    counting: httpx.Client, runpod: ScriptedRunPod, path: str, body: Any, answer: Any
) -> None:
    common = {"max_model_len": 99, "token_strs": None}
    assert counting.post(path, json={"model": "m"} | body).json() == common | answer
    assert runpod.jobs == []


def test_tokens_become_text_again(counting: httpx.Client, runpod: ScriptedRunPod) -> None:
    body = {"model": "m", "tokens": [3, 1, 2]}
    assert counting.post("/detokenize", json=body).json() == {"prompt": "<s> hi there"}
    assert runpod.jobs == []


def test_a_count_for_anthropics_client_is_an_estimate(
    counting: httpx.Client, runpod: ScriptedRunPod
) -> None:
    blocks = [
        {"type": "text", "text": "hi there"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A A"}},
        {"type": "tool_result", "tool_use_id": "hi", "content": [{"type": "text", "text": "hi"}]},
    ]
    messages = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "hi"}]
    tools = [{"name": "hi"}]  # {" name ":" hi "}
    body = {"model": "m", "messages": messages, "system": "hi", "tools": tools}
    counted = counting.post("/v1/messages/count_tokens", json=body).json()
    of_system, of_blocks, of_answer, of_tools = 1, 2 + 0 + 1 + 1, 1, 5
    around = 2 * TOKENS_PER_MESSAGE
    assert counted == {"input_tokens": of_system + of_blocks + of_answer + of_tools + around}
    assert runpod.jobs == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", chat()),
        ("/tokenize", {"model": "m", "prompt": ["hi"]}),
        ("/detokenize", {"model": "m", "tokens": ["hi"]}),
        ("/detokenize", {"model": "m", "tokens": [-1, True]}),
        ("/detokenize", {"model": "m"}),
        ("/detokenize", {"model": "m", "tokens": 3}),
    ],
)
def test_what_cannot_be_counted_here_is_refused_at_once(
    counting: httpx.Client, runpod: ScriptedRunPod, path: str, body: Any
) -> None:
    assert error_of(counting.post(path, json=body))["code"] == "model_asleep"
    assert runpod.jobs == []


@pytest.mark.parametrize("odd", [3, "x", None, {"a": 1}])
def test_an_odd_count_is_no_defect(
    counting: httpx.Client, runpod: ScriptedRunPod, odd: Any
) -> None:
    body = COUNT | {"system": odd, "tools": odd}
    assert counting.post("/v1/messages/count_tokens", json=body).status_code == 200
    assert runpod.jobs == []


def test_a_tokenizer_that_is_none_is_like_no_tokenizer(
    scripted_runpod: tuple[ScriptedRunPod, str], runpod: ScriptedRunPod, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with configured(scripted_runpod[1], tmp_path) as client:
        refused = client.post("/tokenize", json={"model": "m", "prompt": "hi"})
    assert error_of(refused)["code"] == "model_asleep"
    assert runpod.jobs == []


def test_a_tokenizer_that_cannot_be_loaded_is_refused_at_start(
    scripted_runpod: tuple[ScriptedRunPod, str], tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(
        '[endpoints.one]\nid = "ep"\n[models.m]\nendpoint = "one"\ntokenizer = "/no/such.json"\n'
    )
    settings = settings_for("http://127.0.0.1:1", config=path, runpod_endpoint_id=None, models="")
    with pytest.raises(ConfigError, match=r"line 5: models\.m\.tokenizer: (there is no|needs)"):
        load(settings)
