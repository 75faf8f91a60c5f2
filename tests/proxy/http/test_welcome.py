"""What a person sees who opens the proxy's address in a browser."""

import httpx
import pytest

from tests.proxy.scripted_runpod import ScriptedRunPod


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
def test_a_browser_is_shown_a_page_that_names_the_base_url(proxy_url: str, path: str) -> None:
    answer = httpx.get(proxy_url + path, headers={"accept": "text/html,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["content-type"][:9]) == (200, "text/html")
    assert f"<code>{proxy_url}/v1</code>" in answer.text
    assert "http" not in answer.text.replace(proxy_url, "")  # nothing from elsewhere


def test_a_program_is_told_the_same_as_json(proxy_url: str, runpod: ScriptedRunPod) -> None:
    answer = httpx.get(proxy_url)
    assert answer.json()["base_url"] == f"{proxy_url}/v1"
    assert httpx.get(answer.json()["routes"]).status_code == 200
    assert httpx.head(proxy_url).status_code == 200
    assert runpod.jobs == []


def test_the_page_shows_nothing_private_and_no_markup_of_a_clients_making(proxy_url: str) -> None:
    headers = {"accept": "text/html", "host": "x<script>"}
    text = httpx.get(proxy_url, headers=headers).text
    assert "<script" not in text
    assert "sk-test" not in text
    assert "<code>m</code>" not in text


def test_an_unknown_url_is_told_the_base_url(client: httpx.Client, proxy_url: str) -> None:
    message = client.get("/no/such").json()["error"]["message"]
    assert f"The base URL is {proxy_url}/v1;" in message
