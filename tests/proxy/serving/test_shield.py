"""The wake-up shield: what chat UIs ask by themselves wakes no GPU, and nothing else is held up."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.proxy.conftest import AS_JSON, KEY, chat
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.waiting import wait_until

CHAT = "/v1/chat/completions"
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
HISTORY = """
### Chat History:
<chat_history>
USER: How do I bake a really good sourdough bread at home?
ASSISTANT: ...
</chat_history>"""
TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing it." + HISTORY
TASKS = {
    TITLE: {"title": "How do I bake a really good sourdough …"},
    "### Task:\nGenerate 1-3 broad tags categorizing the main themes": {"tags": ["General"]},
    "### Task:\nSuggest 3-5 relevant follow-up questions or prompts": {"follow_ups": []},
    "### Task:\nYou are an autocompletion system. Continue the text": {"text": ""},
    "### Task:\nAnalyze the chat history to determine the necessity of generating search": {
        "queries": []
    },
}
UP = pytest.mark.parametrize("settings", [{"wake_shield": True}], indirect=True)


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": text}], **fields)


@UP
@pytest.mark.parametrize("text", TASKS)
def test_a_uis_own_request_is_answered_without_a_job_while_the_gpu_sleeps(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, text: str
) -> None:
    answer = fresh_client.post(CHAT, json=asked(text)).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == TASKS[text]
    assert answer["usage"]["total_tokens"] == 0
    assert runpod.jobs == []


@UP
def test_a_task_about_a_text_that_was_cut_inside_an_emoji_is_known(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    body = json.dumps(asked(TITLE + "\ud83d")).encode()
    answer = fresh_client.post(CHAT, content=body, headers=AS_JSON).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == TASKS[TITLE]
    assert runpod.jobs == []


@UP
@pytest.mark.parametrize("content", ['[{"type": "text", "text": "hi"}]', "[3]", "3", "null"])
def test_a_message_that_is_no_plain_text_is_none_of_a_uis_own(
    client: httpx.Client, runpod: ScriptedRunPod, content: str
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": {content}}}]}}'
    assert client.post(CHAT, content=body, headers=AS_JSON).status_code == 200


@UP
def test_it_is_answered_as_a_stream_too(fresh_client: httpx.Client, runpod: ScriptedRunPod) -> None:
    base = f"{fresh_client.base_url}/v1"
    with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0) as sdk:
        chunks = list(sdk.chat.completions.create(**asked(TITLE, stream=True)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(text) == TASKS[TITLE]
    assert chunks[-1].choices[0].finish_reason == "stop"
    with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0) as sdk:
        body = asked(TITLE, stream=True, stream_options={"include_usage": True})
        *_, last = sdk.chat.completions.create(**body)
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 0)
    assert runpod.jobs == []


@UP
@pytest.mark.usefixtures("awake")
def test_it_is_answered_by_a_worker_that_is_awake(
    fresh_client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    wait_until(lambda: fresh_client.get("/v1/models/m").json()["state"] == "ready")
    assert fresh_client.post(CHAT, json=asked(TITLE)).text == "{}"
    assert len(runpod.jobs) == 1


@UP
@pytest.mark.parametrize(
    "body",
    [
        asked("What is a concise, 3-5 word title?"),
        asked("Please quote this: ### Task:\nGenerate 1-3 broad tags"),
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": TITLE}]}]),
        chat(messages=[{"role": "user", "content": None}]),
        chat(messages=[{"role": "user", "content": TITLE}, {"role": "user", "content": "go on"}]),
    ],
)
def test_what_a_user_asks_wakes_a_worker(
    fresh_client: httpx.Client, runpod: ScriptedRunPod, body: dict[str, Any]
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert fresh_client.post(CHAT, json=body).text == "{}"
    assert len(runpod.jobs) == 1


def test_without_the_setting_everything_reaches_a_worker(
    client: httpx.Client, runpod: ScriptedRunPod
) -> None:
    runpod.script = [Page("COMPLETED", [FRAME])]
    assert client.post(CHAT, json=asked(TITLE)).text == "{}"
    assert len(runpod.jobs) == 1
