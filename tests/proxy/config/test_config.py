"""The configuration file: what it says is served, what is wrong with it is said with its line."""

import hashlib
import os
import re
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from proxy.config.file import ConfigError
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.summary import summary
from tests.proxy.conftest import AS_JSON, KEY, chat, settings_for
from tests.proxy.http.test_requests import error_of
from tests.proxy.process import Proxy
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve
from tests.waiting import wait_until
from tests.wire.sealing import opened_input

CHAT = "/v1/chat/completions"
OWN_SECRET = "a-secret-that-is-known-to-one-endpoint"
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
TWO = """
[endpoints.one]
[endpoints.two]
id = "second-id"
api_key_env = "SECOND_KEY"

[models.small]
endpoint = "one"
aliases = ["tiny", "default"]
max_model_len = 4096

[models."org/large"]
endpoint = "two"
served_as = "org/Large-7B"
loras = ["sql"]
queue_timeout_seconds = 60
low_priority = true
"""


@pytest.fixture(autouse=True)
def second_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECOND_KEY", "rp-second")
    monkeypatch.setenv("UI_KEY", "sk-ui")
    monkeypatch.setenv("PATIENT_KEY", "sk-patient")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "proxy.toml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


Configured = Callable[..., Any]


@pytest.fixture
def configured(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    written: Callable[[str], Path],
) -> Configured:
    """A client of a proxy with this configuration."""

    @contextmanager
    def start(text: str, **changes: Any) -> Iterator[httpx.Client]:
        runpod.script = [Page("COMPLETED", [FRAME])]
        settings = settings_for(scripted_runpod[1], config=written(text), **changes)
        headers = {"authorization": f"Bearer {KEY}"}
        with (
            serve(create_app(settings)) as url,
            httpx.Client(base_url=url, headers=headers, timeout=30) as client,
        ):
            yield client

    return start


@pytest.mark.parametrize(
    ("named", "endpoint", "served_as", "key"),
    [
        ("small", "one", "small", "rp-test"),
        ("tiny", "one", "small", "rp-test"),
        ("default", "one", "small", "rp-test"),
        ("org/large", "second-id", "org/Large-7B", "rp-second"),
        ("sql", "second-id", "sql", "rp-second"),
    ],
)
def test_the_model_says_which_endpoint_is_asked_and_how(
    configured: Configured,
    runpod: ScriptedRunPod,
    named: str,
    endpoint: str,
    served_as: str,
    key: str,
) -> None:
    with configured(TWO) as client:
        assert client.post(CHAT, json=chat(model=named)).status_code == 200
    assert runpod.endpoints == [endpoint]
    assert runpod.keys == [f"Bearer {key}"]
    assert runpod.jobs[0]["input"]["openai_input"] == chat(model=served_as)


def test_only_the_models_name_is_changed_in_a_body(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    body = (
        b'{"seed": 12345678901234567890123, "model":"tiny", "messages":[{"role":"user"}],"t":1.50}'
    )
    with configured(TWO) as client:
        assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200
    assert runpod.raw_jobs[0].count(b'"seed":12345678901234567890123,') == 1
    assert b'"t":1.50' in runpod.raw_jobs[0]


@pytest.mark.slow
def test_a_model_has_its_own_deadlines_and_priority(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    with configured(TWO.replace("seconds = 60", "seconds = 1")) as client:
        runpod.script = [Page("IN_QUEUE")]
        refused = client.post(CHAT, json=chat(model="org/large"))
    assert error_of(refused)["code"] == "cold_start_timeout"
    assert runpod.jobs[0]["policy"]["lowPriority"] is True


@pytest.mark.slow
def test_a_client_may_wait_less_for_a_worker_than_the_model_would(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    with configured(TWO) as client:
        runpod.script = [Page("IN_QUEUE")]
        headers = {"x-cold-start-timeout": "0.5"}
        refused = client.post(CHAT, json=chat(model="small"), headers=headers)
        assert error_of(refused)["code"] == "cold_start_timeout"
        headers = {"x-cold-start-timeout": "soon"}
        assert client.post(CHAT, json=chat(model="small"), headers=headers).status_code == 400


def test_the_list_has_every_model_and_adapter_but_no_alias(configured: Configured) -> None:
    with configured(TWO) as client:
        models = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
        assert client.get("/v1/models/tiny").json()["id"] == "small"
    assert set(models) == {"small", "org/large", "sql"}
    assert models["small"]["max_model_len"] == 4096
    assert models["sql"]["parent"] == "org/large"


def test_what_a_worker_tells_of_itself_is_listed(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    told = [{"id": "org/Large-7B", "max_model_len": 777}, {"id": "sql", "max_model_len": 778}]
    with configured(TWO) as client:
        runpod.script = [Page("COMPLETED", [FRAME | {"models": told}])]
        client.post(CHAT, json=chat(model="sql"))
        models = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
    assert (models["org/large"]["max_model_len"], models["sql"]["max_model_len"]) == (777, 778)


def test_a_model_must_be_named_where_there_are_several(configured: Configured) -> None:
    with configured(TWO) as client:
        refused = client.post("/tokenize", json={"prompt": "hi"})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "model")


def test_a_stored_response_is_asked_for_where_it_was_made(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    text = '{"id":"resp_abc","object":"response"}'
    with configured(TWO) as client:
        runpod.script = [Page("COMPLETED", [FRAME | {"text": text}])]
        client.post("/v1/responses", json={"model": "org/large", "input": "hi"})
        runpod.stream_calls = 0
        assert client.get("/v1/responses/resp_abc").text == text
    assert runpod.endpoints == ["second-id", "second-id"]


def test_a_stored_response_that_nobody_knows_is_not_found(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    with configured(TWO) as client:
        for path in ("/v1/responses/resp_abc", "/v1/responses/resp_abc/cancel"):
            refused = client.request("POST" if "cancel" in path else "GET", path)
            assert refused.status_code == 404
            assert error_of(refused) == {
                "message": "Response with id 'resp_abc' not found.",
                "type": "invalid_request_error",
                "param": "response_id",
                "code": "response_not_found",
            }
    assert runpod.endpoints == []


KEYS = (
    TWO
    + f"""
[keys.ui]
env = "UI_KEY"
models = ["small"]
keep_alive_mode = "chunk"
keep_alive_seconds = 1

[keys.patient]
env = "PATIENT_KEY"
first_byte_hold_seconds = 60

[keys.ops]
sha256 = "{hashlib.sha256(b"sk-ops").hexdigest()}"
may_warm = true
"""
)


def test_a_stored_response_of_a_model_that_a_key_may_not_use_is_not_found(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    text = '{"id":"resp_abc","object":"response"}'
    with configured(KEYS) as client:
        runpod.script = [Page("COMPLETED", [FRAME | {"text": text}])]
        client.headers["authorization"] = "Bearer sk-ops"
        client.post("/v1/responses", json={"model": "org/large", "input": "hi"})
        client.headers["authorization"] = "Bearer sk-ui"
        refused = client.get("/v1/responses/resp_abc")
    assert (refused.status_code, error_of(refused)["code"]) == (404, "response_not_found")
    assert "org/large" not in refused.text
    assert runpod.endpoints == ["second-id"]


def test_a_key_sees_and_uses_only_its_models(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    with configured(KEYS) as client:
        client.headers["authorization"] = "Bearer sk-ui"
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["small"]
        assert client.post(CHAT, json=chat(model="tiny")).status_code == 200
        for hidden in ("org/large", "sql", "nothing"):
            refused = client.post(CHAT, json=chat(model=hidden))
            assert (refused.status_code, error_of(refused)["code"]) == (404, "model_not_found")
        assert client.post("/tokenize", json={"prompt": "hi"}).status_code == 200
    assert set(runpod.endpoints) == {"one"}


def test_an_unknown_model_is_answered_with_those_there_are_for_the_key(
    configured: Configured,
) -> None:
    with configured(KEYS) as client:
        said = error_of(client.post(CHAT, json=chat(model="org/Lrge")))["message"]
        assert said == (
            "The model 'org/Lrge' does not exist or you do not have access to it. "
            "Did you mean 'org/large'? There are: small, org/large, sql."
        )
        assert "There are: small, org/large, sql." in client.get("/v1/models/nothing").text
        client.headers["authorization"] = "Bearer sk-ui"
        for path in (CHAT, "/v1/models/org/large"):
            answer = client.request(
                "POST" if path is CHAT else "GET", path, json=chat(model="org/large")
            )
            assert answer.status_code == 404
            assert "Did you mean" not in answer.text
            assert "There are: small." in answer.text


def test_an_unknown_model_is_answered_within_bounds(configured: Configured) -> None:
    tables = "".join(f"[models.m{number}]\nendpoint = 'one'\n" for number in range(3000))
    with configured(f"[endpoints.one]\n{tables}") as client:
        message = error_of(client.post(CHAT, json=chat(model="n" * 900)))["message"]
    assert message.endswith("m8, m9 and 2990 more (GET /v1/models).")
    assert len(message) < 1000


def test_a_key_may_be_known_by_its_hash_alone(configured: Configured) -> None:
    with configured(KEYS, api_keys="") as client:
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer sk-ops"
        assert len(client.get("/v1/models").json()["data"]) == 3


@pytest.mark.slow
def test_a_keys_keep_alives_go_before_the_models(
    configured: Configured, runpod: ScriptedRunPod
) -> None:
    hold = threading.Event()
    with configured(KEYS) as client:
        runpod.script = [Page("IN_QUEUE", hold=hold)]
        for key, beginning in (("sk-ui", b'data: {"id":"chatcmpl-req_'), ("sk-ops", b": queued")):
            headers = {"authorization": f"Bearer {key}"}
            body = chat(model="small", stream=True)
            with client.stream("POST", CHAT, json=body, headers=headers) as response:
                assert next(response.iter_bytes()).startswith(beginning)


@pytest.mark.slow
def test_a_keys_hold_goes_before_the_models(configured: Configured, runpod: ScriptedRunPod) -> None:
    statuses = []
    with configured(KEYS) as client:
        runpod.script = [Page("IN_QUEUE")]
        for key in ("sk-patient", "sk-ops"):
            headers = {"authorization": f"Bearer {key}", "x-cold-start-timeout": "2"}
            body = chat(model="small", stream=True)
            statuses.append(client.post(CHAT, json=body, headers=headers).status_code)
    assert statuses == [503, 200]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[endpoints.a]\n[models.m]\nendpoint = a\n", "line 3"),
        ("[models.m]\nendpoint = 'a'\n", "line 1: endpoints: required: name at least one"),
        ("[endpoints.a]\n\n[models.m]\nendpoint = 'b'\n", "line 4: models.m.endpoint: there is no"),
        ("[endpoints.a]\nkid = 3\n", "line 2: endpoints.a.kid: there is no such field"),
        ("[endpoints.a]\nrun_limit = 'many'\n", "line 2: endpoints.a.run_limit"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\n\nqueue_timeout_seconds = 0\n",
            "line 5: models.m.queue_timeout_seconds",
        ),
        (
            "[endpoints.a]\n[models.'x.y']\nendpoint = 'a'\nfallback = 'z'\n",
            "line 4: models.x.y.fallback: there is no model 'z'",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpoint='a'\n[models.n]\nendpoint='a'\naliases=['m']",
            "line 4: models.n: the name 'm' stands twice",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nwarm_schedule = 'daily'\n",
            "line 4: models.m.warm_schedule: not a cron expression",
        ),
        ("[endpoints.a]\napi_key_env = 'NOT_SET'\n", "line 2: endpoints.a.api_key_env: the env"),
        ("[endpoints.a]\n[keys.k]\nmodels = []\n", "line 2: keys.k: give either env or sha256"),
        ("[endpoints.a]\n[keys.k]\nenv = 'UI_KEY'\nmodels = ['x']\n", "line 4: keys.k.models"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\n"
            "[keys.k]\nenv = 'UI_KEY'\ndaily_budget = 5\n",
            "line 6: keys.k.daily_budget: the endpoint 'a' needs a price_per_second for that",
        ),
        (
            "[endpoints.a]\ndaily_budget = 5\n",
            "line 2: endpoints.a.daily_budget: $5 a day",
        ),
        ("[endpoints.a]\n[keys.k]\nenv = 'UI_KEY'\ntokens_per_minute = 0\n", "line 4: keys.k.tok"),
        (
            "[endpoints.a]\n\n[model.m]\nendpoint = 'a'\n",
            "line 3: model: there is no such table; did you mean models?",
        ),
        ("[endpoints.a]\n\n[models]\nm = { endpoint = 'b' }\n", "line 4: models.m.endpoint"),
        (
            "[endpoints.a]\n[models.'q.5']\nendpoint = 'a'\n[models.q]\nendpoint = 'b'\n",
            "line 5: models.q.endpoint",
        ),
        ("[endpoints.a]\nprice_per_second = inf\n", "line 2: endpoints.a.price_per_second"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\ntotal_timeout_seconds = inf\n",
            "line 4: models.m.total_timeout_seconds",
        ),
        ("open_endpoint = 'a'\n[endpoints.a]\n", "line 1: open_endpoint: there is no such"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nfallback = 'm'\n",
            "line 4: models.m.fallback: a model cannot be its own fallback",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nfallback_after_seconds = 2\n",
            "line 4: models.m.fallback_after_seconds: there is no fallback",
        ),
        (
            "[endpoints.a]\n[keys.k]\nenv = 'UI_KEY'\n[keys.l]\nenv = 'UI_KEY'\n",
            "line 4: keys.l: the key is the same as that of k",
        ),
        (
            "[endpoints.a]\n[keys.k]\nenv = 'UI_KEY'\nmay_administer = true\n",
            "line 3: keys.k.env: the environment variable UI_KEY: a key that may administer has 20",
        ),
        (
            "[endpoints.a]\nkind = 'load-balancing'\nseal_secret_env = 'SECOND_KEY'\n",
            "line 1: endpoints.a: seal_secret_env: only jobs of a queue",
        ),
        ("[endpoints.a]\nseal_secret_env = 'NOT_SET'\n", "line 2: endpoints.a.seal_secret_env"),
        (
            "[endpoints.a]\nseal_secret_env = 'SECOND_KEY'\n",
            "SECOND_KEY: a secret of at least 32 characters is needed",
        ),
        (
            f"[endpoints.a]\n[keys.k]\nsha256 = '{hashlib.sha256(KEY.encode()).hexdigest()}'\n",
            "line 2: keys.k: the key is the same as one of PROXY_API_KEYS",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    written: Callable[[str], Path], text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written(text)))
    assert said in str(caught.value)
    assert "proxy.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[endpoint.a]\n", "line 1: endpoint: there is no such table; did you mean endpoints?"),
        (
            "[endpoints.a]\nmax_request = 3\n",
            "line 2: endpoints.a.max_request: there is no such field; did you mean max_requests?",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpont = 'a'\n",
            "line 3: models.m.endpont: there is no such field; did you mean endpoint?",
        ),
        ("[endpoints.a]\n[models.m]\nendpont = 'a'\n", "line 2: models.m.endpoint: required"),
        (
            "[endpoints.chat]\n[models.m]\nendpoint = 'chatt'\n",
            "there is no endpoint 'chatt'; did you mean chat?",
        ),
        (
            "[endpoints.a]\n[models.Qwen/Qwen3-8B]\nendpoint = 'a'\n",
            "line 2: Expected ']' at the end of a table declaration; write a name like this in "
            'quotation marks: [models."Qwen/Qwen3-8B"]',
        ),
        ("[ models . Qwen/X ]\n", 'write a name like this in quotation marks: [models."Qwen/X"]'),
        ("[[models.Qwen/X]]\n", 'write a name like this in quotation marks: [models."Qwen/X"]'),
        ("[models.“Qwen/X”]\n", 'write a name like this in quotation marks: [models."Qwen/X"]'),
        (
            "[models]\nQwen/X = { endpoint = 'a' }\n",
            "line 2: Expected '=' after a key in a key/value pair; a name with other signs than",
        ),
        ("models.Qwen/X.endpoint = 'a'\n", "- and _ stands in quotation marks"),
        ("[models.m]\nendpoint: 'a'\n", "pair; write endpoint = in place of endpoint:"),
        (
            "[endpoints.a]\n[models.qwen2.5]\nendpoint = 'a'\n",
            'line 2: models.qwen2.5: a name with a dot stands in quotation marks: [models."qw',
        ),
        (
            "[endpoints.a]\n[models.a.b.c]\nendpoint = 'a'\n",
            'a name with a dot stands in quotation marks: [models."a.b.c"]',
        ),
        ("[endpoints.a]\n[[models]]\nendpoint = 'a'\n", "models: write [models.NAME] with single"),
        ("port = 80\n[endpoints.a]\n", "line 1: port: not in this file: it is the environment var"),
        ("port = 80\n[endpoints.a]\n", "PROXY_PORT"),
        ("[endpoints]\na = 'b'\n", "line 2: endpoints.a: a table is needed"),
        ("endpoints = 3\n", "line 1: endpoints: a table is needed"),
        (
            "[endpoints.a]\nmax_requests = '3'\nid = 5\n",
            "endpoints.a.id: a text in quotation",
        ),
        ("[endpoints.a]\nmax_requests = 1.5\n", "a whole number is needed"),
        ("[endpoints.a]\nmax_requests = true\nmax_waiting = 0\n", "a number above 0 is needed"),
        (
            "[endpoints.a]\nkind = 'balanced'\n",
            "one of these is needed: 'queue' or",
        ),
        ("[endpoints.a]\n[models.m]\nendpoint = 'a'\naliases = 'b'\n", "a list is needed"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\naliases = ['b', 3]\n",
            "line 4: models.m.aliases: number 2: a text in quotation marks",
        ),
        ("[endpoints.a]\n[models.m]\nendpoint = 'a'\nlow_priority = 'x'\n", "true or false"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nlow_priority = True\n",
            "line 4: Invalid",
        ),
        ("[endpoints.a]\n[models.m]\nendpoint = a\n", "a text stands in straight quotation marks"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nfallback = 3\n",
            "models.m.fallback: a model of this file is needed, or {",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nfallback = { url = 'x', modell = 'y' }\n",
            "models.m.fallback.modell: there is no such field; did you mean model?",
        ),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nfallback = { url = 'x', modell = 'y' }\n",
            "line 4: models.m.fallback.url: a URL that begins with https:// or http:// is needed",
        ),
        ("[endpoints.a]\nurl = 'http://h:99999'\n", "line 2: endpoints.a.url: not a URL"),
        (
            "[endpoints.a]\nurl = 'http://u:secret@h'\n",
            "endpoints.a.url: the URL holds a user",
        ),
        ("[endpoints.a]\nid = 'a b'\n", "line 2: endpoints.a.id: the endpoint's id alone"),
        ("[endpoints.'my chat']\n", "line 1: endpoints.my chat: without `id`, the"),
        ("[endpoints.a]\n[models.'m\u200b']\nendpoint = 'a'\n", "U+200B"),
        ("[endpoints.a]\n[models.'']\nendpoint = 'a'\n", "a name has 1 to 200 characters"),
        (
            "[endpoints.a]\nkind = 'load-balancing'\ndirect = true\n",
            "line 1: endpoints.a: direct and direct_port are for queues",
        ),
        ("[endpoints.a]\ndirect_port = 0\n", "line 2: endpoints.a.direct_port: a number"),
        ("[endpoints.a]\ndirect = 'maybe'\n", "line 2: endpoints.a.direct: true or false"),
        ("[endpoints.a]\nprice_per_second = 1e308\n", "a number of at most 1,000,000"),
        (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\nmax_model_len = 99999999999999999999\n",
            "models.m.max_model_len: a number of at most",
        ),
        ("[endpoints.a]\n[keys.k]\nsha256 = 'abc'\n", "keys.k.sha256: 64 hexadecimal digits"),
        (f"[endpoints.a]\nmax_requests = {'9' * 5000}\n", "Exceeds the limit"),
        (f"[endpoints.a]\nid = {'[' * 2000}{']' * 2000}\n", "nested too deep"),
        (f"[endpoints.a]\nid = {'{a=' * 2000}1{'}' * 2000}\n", "nested too deep"),
        ("[endpoints.a]\nid = 'a\0b'\n", "line 2: "),
        ('[endpoints."a\\nb"]\n', "line 1: endpoints.a\\nb: "),
        ("#" * 1_000_001, "is larger than 1,000,000 bytes"),
    ],
    ids=lambda value: value[:60],
)
def test_a_mistake_is_told_in_plain_words(
    written: Callable[[str], Path], text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written(text)))
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not re.search("pattern|Input should|permitted|Field required", str(caught.value))


def test_quotation_marks_are_not_proposed_for_a_name_that_needs_none(
    written: Callable[[str], Path],
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written("[endpoints.a]\n[endpoints.a]\n")))
    assert "line 2: Cannot declare" in str(caught.value)
    assert "quotation marks" not in str(caught.value)


def test_many_mistakes_are_told_up_to_a_bound(written: Callable[[str], Path]) -> None:
    text = "[endpoints.a]\n" + "".join(f"x{number} = 1\n" for number in range(500))
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written(text)))
    assert len(caught.value.reasons) == 21
    assert caught.value.reasons[-1].endswith("and 480 more")


def test_a_secret_for_all_is_refused_where_an_endpoint_cannot_be_sealed(
    written: Callable[[str], Path],
) -> None:
    path = written("[endpoints.a]\n[endpoints.b]\nkind = 'load-balancing'\n")
    with pytest.raises(ConfigError, match=r"line 2: endpoints\.b: PROXY_SEAL_SECRET is set, but"):
        load(settings_for("http://unused", config=path, seal_secret="x" * 32))


def test_each_endpoint_may_have_a_secret_of_its_own(
    configured: Configured, runpod: ScriptedRunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECOND_SECRET", OWN_SECRET)
    two = TWO.replace('id = "second-id"', 'id = "second-id"\nseal_secret_env = "SECOND_SECRET"')
    with configured(two) as client:
        client.post(CHAT, json=chat(model="small"))
        client.post(CHAT, json=chat(model="org/large"))
    first, second = (job["input"] for job in runpod.jobs)
    assert first["openai_input"]["model"] == "small"
    assert opened_input(second, OWN_SECRET)["openai_input"]["model"] == "org/Large-7B"


def test_it_is_said_at_start_what_is_sealed_and_what_a_fallback_would_see(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECOND_SECRET", OWN_SECRET)
    text = """
    endpoints = { sealed = { seal_secret_env = "SECOND_SECRET" }, open = {} }
    [models]
    lone = { endpoint = "sealed" }
    kept = { endpoint = "sealed", fallback = "lone" }
    leaves = { endpoint = "sealed", fallback = "plain" }
    departs = { endpoint = "sealed", fallback = { url = "http://h/v1", model = "m" } }
    plain = { endpoint = "open", fallback = "lone" }
    """
    settings = settings_for("http://unused", config=written(text))
    lines = summary(load(settings), settings)
    assert [line.partition(",")[0] for line in lines if "jobs are sealed" in line] == [
        "queue endpoint sealed"
    ]
    assert "not sealed where the fallback answers: leaves, departs" in lines


@pytest.mark.parametrize("place", ["endpoints.a", "keys.k", "models.m.fallback"])
@pytest.mark.parametrize("character", ["\u200b", "\u2013", "\u00a0", " ", "\x1b"])
def test_a_key_in_a_variable_with_an_odd_character_is_refused_and_not_shown(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, place: str, character: str
) -> None:
    monkeypatch.setenv("SECOND_KEY", f"rpa_SECRET{character}SECRET")
    tables = {
        "endpoints.a": "[endpoints.a]\napi_key_env = 'SECOND_KEY'\n",
        "keys.k": "[endpoints.a]\n[keys.k]\nenv = 'SECOND_KEY'\n",
        "models.m.fallback": (
            "[endpoints.a]\n[models.m]\nendpoint = 'a'\n"
            "fallback = { url = 'http://h', model = 'm', api_key_env = 'SECOND_KEY' }\n"
        ),
    }
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written(tables[place])))
    assert f": {place}" in str(caught.value)
    assert "the environment variable SECOND_KEY: the key holds" in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("table", ["[endpoints.a]\napi_key_env", "[endpoints.a]\n[keys.k]\nenv"])
def test_a_key_in_place_of_its_variables_name_is_not_shown(
    written: Callable[[str], Path], table: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=written(f"{table} = 'rpa_SECRET'\n")))
    assert "SECRET" not in str(caught.value)
    assert "the environment variable named here is not set" in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "latin-1", "utf-16", "no home"])
def test_what_is_no_file_of_text_is_told(
    written: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    path = written("")
    match kind:
        case "folder":
            path = tmp_path
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "latin-1":
            path.write_bytes("[endpoints.a]\n# Größe\n".encode("latin-1"))
        case "utf-16":
            path.write_bytes("[endpoints.a]\n".encode("utf-16"))
        case "no home":
            path = Path("~no-such-user/proxy.toml")
    with pytest.raises(ConfigError) as caught:
        load(settings_for("http://unused", config=path))
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_before_the_file_does_not_matter(written: Callable[[str], Path]) -> None:
    path = written("\ufeff" + ONE)
    assert list(load(settings_for("http://unused", config=path)).models) == ["first"]


def test_without_any_key_the_file_is_refused_unless_that_is_meant(
    written: Callable[[str], Path],
) -> None:
    path = written("[endpoints.a]\n")
    with pytest.raises(ConfigError, match="PROXY_API_KEYS"):
        load(settings_for("http://unused", config=path, api_keys=""))
    load(settings_for("http://unused", config=path, api_keys="", allow_anonymous=True))


def test_a_price_and_a_budget_of_the_settings_hold_where_a_table_has_none(
    written: Callable[[str], Path],
) -> None:
    text = """\
        [endpoints.a]
        [endpoints.b]
        price_per_second = 2
        daily_budget = 9
        [models.m]
        endpoint = "a"
        [keys.k]
        env = "UI_KEY"
        daily_budget = 1
        """
    settings = settings_for("http://unused", config=written(text), daily_budget=5)
    with pytest.raises(ConfigError, match=r"line 1: endpoints\.a\.daily_budget: \$5 a day needs"):
        load(settings)
    endpoints = load(settings.model_copy(update={"price_per_second": 1.0})).endpoints
    told = [(e.price_per_second, e.daily_budget) for e in endpoints.values()]
    assert told == [(1, 5), (2, 9)]
    alone = settings_for("http://unused", daily_budget=5)
    with pytest.raises(ConfigError, match="PROXY_DAILY_BUDGET: needs PROXY_PRICE_PER_SECOND"):
        load(alone)
    (endpoint,) = load(alone.model_copy(update={"price_per_second": 1.0})).endpoints.values()
    assert (endpoint.price_per_second, endpoint.daily_budget) == (1, 5)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(settings_for("http://unused", config=tmp_path / "nowhere.toml"))


def test_with_a_file_no_endpoint_need_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID", "PROXY_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROXY_CONFIG", "/etc/proxy.toml")
    assert Settings().config == Path("/etc/proxy.toml")


ONE = "[endpoints.one]\n[models.first]\nendpoint = 'one'\n"


@pytest.mark.slow
def test_the_file_is_read_again_on_sighup_unless_it_is_wrong(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    written: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    hold = threading.Event()
    runpod.script = [Page("COMPLETED", [FRAME], hold=hold)]
    proxy = Proxy(scripted_runpod[1], state_dir=tmp_path, config=written(ONE))

    def listed() -> list[str]:
        return [m["id"] for m in proxy.client.get("/v1/models").json()["data"]]

    try:
        assert listed() == ["first"]
        body = chat(model="first", stream=True)
        with proxy.client.stream("POST", CHAT, json=body) as response:
            written(ONE.replace("first", "second"))
            proxy.process.send_signal(signal.SIGHUP)
            wait_until(lambda: listed() == ["second"])
            hold.set()
            assert b"[DONE]" in b"".join(response.iter_bytes())
        for wrong in ("this is no TOML", f"x = {'[' * 2000}", "[endpoints.a]\n[models.m]\n", ""):
            written(wrong)
            proxy.process.send_signal(signal.SIGHUP)
            for _ in range(20):
                assert listed() == ["second"]
        written(ONE.replace("first", "third"))
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: listed() == ["third"])
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(timeout=30) == 0
    finally:
        proxy.close()
