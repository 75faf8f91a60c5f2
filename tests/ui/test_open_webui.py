"""Open WebUI in a real browser, on the whole road: the worker has the real vLLM.

The tests come in the order of an afternoon: the first finds no worker up, the last leaves none.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Error, Page, expect

from scripts.local_stack import LocalStack
from tests.guides import ROOT
from tests.jobs import Jobs, body_of, metric, prompt
from tests.long_models import TOKENS
from tests.ui.open_webui import Chat, create_model
from tests.waiting import wait_until

pytestmark = [pytest.mark.ui, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

COLD_START_SECONDS = 240
STORY = "Tell me a very long story"
RECORDED = ROOT / "tests" / "proxy" / "ui_tasks"


def workers(stack: LocalStack) -> int:
    return int(sum(stack.health(stack.chat)["workers"].values()))


def state(stack: LocalStack) -> str:
    """What the proxy says of the model."""
    headers = {"authorization": f"Bearer {stack.api_key}"}
    url = f"{stack.base_url}/models/tiny-chat"
    said: str = httpx.get(url, headers=headers, trust_env=False).json()["state"]
    return said


def recorded(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((RECORDED / f"open_webui_{name}.json").read_text())
    return body


def until_history(body: dict[str, Any]) -> str:
    """A task's prompt up to the chat it is about."""
    return prompt(body).partition("<chat_history>")[0]


def test_models_are_listed_while_no_worker_is_up(stack: LocalStack, ui: str, page: Page) -> None:
    assert Chat(page, ui).models() == ["tiny-chat", "tiny-embed"]
    assert workers(stack) == 0


def test_the_first_message_waits_for_a_worker_and_is_answered(
    stack: LocalStack, ui: str, page: Page, jobs: Jobs
) -> None:
    assert workers(stack) == 0
    chat = Chat(page, ui)
    chat.send("Hello! Who are you?")
    assert "tiny-chat" in chat.await_end(COLD_START_SECONDS)
    job = jobs.all()[0]
    assert prompt(body_of(job)) == "Hello! Who are you?"
    assert job["status"] == "COMPLETED"
    # Long enough that the proxy had to keep the stream alive, which it does every second here.
    assert job["delayTime"] > 1_000
    # The title was asked for with the message, and behind the shield that is no job.
    assert until_history(recorded("title")) not in map(until_history, map(body_of, jobs.all()))


def test_its_own_requests_are_those_that_were_recorded(
    warm_stack: LocalStack, ui: str, page: Page, jobs: Jobs
) -> None:
    jobs.forget()
    chat = Chat(page, ui)
    wait_until(lambda: state(warm_stack) == "ready", seconds=60)
    chat.send("Hello! Who are you?")
    chat.await_end()
    wait_until(lambda: len(jobs.all()) == 4, seconds=60)
    seen = {until_history(body): body for body in map(body_of, jobs.all())}
    for name in ("title", "follow_ups", "tags", "chat"):
        sample = recorded(name)
        body = seen[until_history(sample)]
        assert body.keys() == sample.keys()
        assert body["stream"] == sample["stream"]
    wait_until(lambda: all(job["status"] == "COMPLETED" for job in jobs.all()), seconds=60)


def test_a_long_answer_arrives_whole(
    warm_stack: LocalStack, ui: str, page: Page, tmp_path: Path
) -> None:
    chat = Chat(page, ui)
    chat.send(STORY)
    text = chat.await_end()
    assert text.startswith("Once upon a time")
    assert text.endswith("The end.")
    page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "answer.png"))


FETCH_MODELS = """async ([url, key]) => {
    const answer = await fetch(`${url}/models`, {headers: {Authorization: `Bearer ${key}`}});
    return (await answer.json()).data[0].id;
}"""


def test_a_page_reaches_the_proxy_if_its_origin_is_allowed(
    stack: LocalStack, ui: str, quiet_ui: str, page: Page
) -> None:
    page.goto(ui)
    assert page.evaluate(FETCH_MODELS, [stack.base_url, stack.api_key]) == "tiny-chat"
    page.goto(quiet_ui)
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(FETCH_MODELS, [stack.base_url, stack.api_key])


def test_an_answer_streams_in_until_the_stop_button_stops_the_gpu(
    warm_stack: LocalStack, quiet_ui: str, page: Page, jobs: Jobs
) -> None:
    wait_until(lambda: metric(warm_stack, "num_requests_running") == 0, seconds=60)
    made_before = metric(warm_stack, "generation_tokens_total")
    jobs.forget()
    create_model(quiet_ui, "endless", max_tokens=TOKENS, custom_params={"ignore_eos": True})
    chat = Chat(page, quiet_ui, "endless")
    chat.send(STORY)
    for _ in range(4):
        chat.await_more()
    assert metric(warm_stack, "num_requests_running") == 1
    chat.stop_button.click()
    wait_until(lambda: metric(warm_stack, "num_requests_running") == 0, seconds=60)
    made = metric(warm_stack, "generation_tokens_total") - made_before
    assert 0 < made < TOKENS
    # The only one: this Open WebUI was told to ask for neither title nor tags nor suggestions.
    (job,) = jobs.all()
    wait_until(lambda: jobs.all()[0]["status"] == "CANCELLED")
    assert body_of(job)["max_tokens"] == TOKENS


def test_a_message_stopped_while_it_waits_for_a_worker_is_cancelled(
    stack: LocalStack, quiet_ui: str, page: Page, jobs: Jobs
) -> None:
    jobs.forget()
    jobs.control("POST", f"/{stack.chat.id}/throttle")
    jobs.control("POST", f"/{stack.chat.id}/crash")
    chat = Chat(page, quiet_ui)
    chat.send("Hello!")
    wait_until(lambda: len(jobs.all()) == 1)
    assert jobs.all()[0]["status"] == "IN_QUEUE"
    chat.stop_button.click()
    wait_until(lambda: jobs.all()[0]["status"] == "CANCELLED")
    expect(chat.stop_button).to_be_hidden()
