"""Batches over HTTP, as RunPod's documents walk through them; the test plays the worker."""

import re
from typing import Any

import pytest

from tests.emulator.running import Client, Json, one_endpoint


def inputs(*numbers: int) -> list[Json]:
    """Bodies as of /run."""
    return [{"input": {"n": number}} for number in numbers]


def draft(client: Client, *numbers: int) -> str:
    """A new batch's path."""
    answer = client.post("/batch", inputs(*numbers)).raise_for_status().json()
    assert answer == {"id": answer["id"], "status": "DRAFT"}
    return f"/batch/{answer['id']}"


def final(client: Client, *numbers: int) -> str:
    """The path of a batch whose jobs are queued."""
    path = draft(client, *numbers)
    assert client.post(f"{path}/finalize").json()["status"] == "FINALIZED"
    return path


def summary(client: Client, path: str) -> Json:
    """What the batch's own route shows."""
    return dict(client.get(path).raise_for_status().json())


def results(client: Client, path: str, **page: int) -> Json:
    """A page of the batch's requests."""
    return dict(client.get(f"{path}/requests", **page).raise_for_status().json())


def counts(client: Client, path: str) -> tuple[int, ...]:
    """In progress, completed, failed."""
    shown = summary(client, path)
    names = ("requestInProgress", "requestCompleted", "requestFailed")
    return tuple(shown[name] for name in names)


def test_a_draft_runs_nothing_until_it_is_final(by_hand: Client) -> None:
    path = draft(by_hand, 1)
    by_hand.post(f"{path}/requests", {"requests": inputs(2, 3)}).raise_for_status()
    assert by_hand.health()["jobs"]["inQueue"] == 0
    by_hand.post(f"{path}/finalize").raise_for_status()
    assert by_hand.health()["jobs"]["inQueue"] == 3


def test_a_batch_shows_how_far_it_is(by_hand: Client) -> None:
    path = final(by_hand, 1, 2, 3)
    shown = summary(by_hand, path)
    assert shown == {
        "id": path.rpartition("/")[2],
        "endpointId": "ep",
        "status": "FINALIZED",
        "requestTotal": 3,
        "requestInProgress": 0,
        "requestCompleted": 0,
        "requestFailed": 0,
        "createdAt": shown["createdAt"],
    }
    taken = [by_hand.take() for _ in range(3)]
    by_hand.done(*taken[0], {"output": 1})
    by_hand.done(*taken[1], {"error": "boom"})
    assert counts(by_hand, path) == (1, 1, 1)
    assert summary(by_hand, path)["status"] == "FINALIZED"


def test_the_worker_is_told_the_batch(by_hand: Client) -> None:
    path = final(by_hand, 1)
    job = by_hand.get("/job-take/w1", gpu="x").json()
    assert (job["batchId"], job["input"]) == (path.rpartition("/")[2], {"n": 1})


def test_results_come_in_pages(by_hand: Client) -> None:
    path = final(by_hand, 1, 2, 3)
    by_hand.done(*by_hand.take(), {"output": {"x": 1}})
    by_hand.done(*by_hand.take(), {"error": "boom"})
    page = results(by_hand, path, limit=2)
    first, second = page.pop("requests")
    assert page == {"total": 3, "offset": 0, "limit": 2, "hasMore": True}
    assert (first["status"], first["output"]) == ("COMPLETED", {"x": 1})
    assert (second["status"], second["error"]) == ("FAILED", "boom")
    for one in (first, second):
        for moment in (one["startedAt"], one["completedAt"]):
            assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", moment)
    rest = results(by_hand, path, offset=2)
    assert ([one["status"] for one in rest["requests"]], rest["hasMore"]) == (["IN_QUEUE"], False)


def test_a_request_can_be_taken_out_of_a_draft(by_hand: Client) -> None:
    path = draft(by_hand, 1, 2)
    first = results(by_hand, path)["requests"][0]["id"]
    url = f"{by_hand.url}{path}/requests/{first}"
    assert by_hand.http.delete(url).json()["requestTotal"] == 1
    assert by_hand.http.delete(url).status_code == 404


@pytest.mark.parametrize("change", ["add", "remove", "finalize"])
def test_a_final_batch_does_not_change(by_hand: Client, change: str) -> None:
    path = final(by_hand, 1)
    request_id = results(by_hand, path)["requests"][0]["id"]
    calls: dict[str, tuple[str, str, Any]] = {
        "add": ("POST", "/requests", {"requests": inputs(2)}),
        "remove": ("DELETE", f"/requests/{request_id}", None),
        "finalize": ("POST", "/finalize", None),
    }
    method, below, body = calls[change]
    answer = by_hand.http.request(method, f"{by_hand.url}{path}{below}", json=body)
    assert answer.status_code == 400
    assert summary(by_hand, path)["requestTotal"] == 1


def test_a_cancelled_batch_lets_what_runs_end(by_hand: Client) -> None:
    path = final(by_hand, 1, 2)
    running = by_hand.take()
    assert by_hand.post(f"{path}/cancel").json()["status"] == "FINALIZED"
    assert by_hand.health()["jobs"]["inQueue"] == 0
    by_hand.done(*running, {"output": 1})
    assert summary(by_hand, path)["status"] == "CANCELLED"
    assert counts(by_hand, path) == (0, 1, 0)


def test_batches_are_listed_the_newest_first_and_by_name(by_hand: Client) -> None:
    older, newer = draft(by_hand), draft(by_hand)
    by_hand.http.put(by_hand.url + newer, json={"name": "nightly"}).raise_for_status()
    listed = by_hand.get("/batch").json()["batches"]
    assert [f"/batch/{one['id']}" for one in listed[:2]] == [newer, older]
    assert listed[0]["name"] == "nightly"
    for path in (older, newer):
        by_hand.post(f"{path}/cancel")


def test_there_are_no_more_than_ten_active_batches() -> None:
    with one_endpoint() as client:
        paths = [draft(client, 1) for _ in range(10)]
        assert client.post("/batch", []).status_code == 400
        client.post(f"{paths[0]}/cancel")
        draft(client, 1)


@pytest.mark.parametrize("body", [{}, [1], [{"input": 1}], [{}], "x"])
def test_a_batch_that_makes_no_sense_is_refused(by_hand: Client, body: Any) -> None:
    assert by_hand.post("/batch", body).status_code == 400


def test_an_unknown_batch_is_not_found(by_hand: Client) -> None:
    assert by_hand.get("/batch/unknown").status_code == 404
