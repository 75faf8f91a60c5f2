"""A real endpoint is measured through nothing but OpenAI's API."""

import pytest
from starlette.responses import JSONResponse, Response

from tests.bench import endpoint
from tests.bench.ground import bare_ground
from tests.bench.test_load import DONE, answering, streamed


@pytest.mark.slow
def test_an_endpoint_without_stamps_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PLAIN_REQUESTS", 1)
    chunk = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'

    def answer(body: dict[str, object]) -> Response:
        if body.get("stream"):
            return streamed(chunk, chunk, DONE)(body)
        return JSONResponse({"error": "not this one"}, 503)

    with answering(answer) as url, bare_ground() as ground:
        text = endpoint.measured(ground, url, "m", "k", [1, 3])
    rows = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 3 |"))]
    assert [row.split("|")[-2].strip() for row in rows] == ["0", "0"]
    assert "A plain request: failed" in text
    assert "HTTP 503" in text
