"""What a person sees who opens the emulator's address in a browser."""

import httpx

from tests.emulator.running import API_KEY, Client


def test_the_address_says_what_it_is_and_what_the_base_url_is(workerless: Client) -> None:
    address = workerless.url.partition("/v2/")[0]
    page = httpx.get(address, headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert f"<code>{address}/v2</code>" in page.text
    assert API_KEY not in page.text
    assert httpx.get(address).json()["base_url"] == f"{address}/v2"
