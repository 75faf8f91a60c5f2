"""The direct channel between the real proxy and the real worker, over the emulator's TCP ports."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.end_to_end.conftest import Road, road
from tests.proxy.conftest import KEY
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DIRECT = {"direct": True, "direct_private_addresses": True, "first_byte_hold_seconds": 60}
PORTS = ("8899/tcp",)


class DirectRoad:
    """A stack whose tokens may come by a channel."""

    def __init__(self, stack: Road) -> None:
        self.stack = stack

    def said(self, **script: Any) -> str:
        """The text of a stream that the engine makes as the script says."""
        with self.stack.sdk() as sdk:
            return "".join(self._deltas(sdk, script))

    def deltas(self, sdk: openai.OpenAI, **script: Any) -> Iterator[str]:
        """The same, piece by piece."""
        return self._deltas(sdk, script)

    def _deltas(self, sdk: openai.OpenAI, script: dict[str, Any]) -> Iterator[str]:
        messages: Any = [{"role": "user", "content": "hi"}]
        chunks = sdk.chat.completions.create(
            model="m", messages=messages, stream=True, extra_body={"script": script}
        )
        for chunk in chunks:
            yield chunk.choices[0].delta.content or ""

    def counted(self, name: str, **labels: str) -> float:
        """What the proxy has counted."""
        headers = {"authorization": f"Bearer {KEY}"}
        url = self.stack.url.removesuffix("/v1") + "/metrics"
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = 0.0
        for line in httpx.get(url, headers=headers, timeout=60).text.splitlines():
            if line.startswith(name + "{") and wanted <= set(re.findall(r'\w+="[^"]*"', line)):
                found += float(line.rpartition(" ")[2])
        return found

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the emulator's control API for the endpoint."""
        return self.stack.runpod.control(method, f"/ep{path}", body)


@pytest.fixture(scope="module")
def warm() -> Iterator[DirectRoad]:
    """One stack with a worker up that has been dialled."""
    with road(min_workers=1, ports=PORTS, settings=DIRECT) as stack:
        wait_until(lambda: stack.runpod.workers("idle") == 1, seconds=60)
        direct = DirectRoad(stack)
        direct.said(text="hello")
        wait_until(lambda: direct.counted("proxy_channels") == 1)
        yield direct


TEXT = "поток — 🌍 ẞ\u2028 "


def test_an_answer_comes_by_the_channel_alone(warm: DirectRoad) -> None:
    polls = warm.counted("runpod_calls_total", operation="stream")
    answers = warm.counted("proxy_roads_total", road="direct")
    text = TEXT * 100
    assert warm.said(text=text, delay_seconds=0.005, chunk_bytes=7) == text
    wait_until(lambda: warm.counted("proxy_roads_total", road="direct") == answers + 1)
    assert warm.counted("runpod_calls_total", operation="stream") <= polls + 2
    warm.stack.wait_for_no_jobs()


def test_twenty_answers_on_one_connection_do_not_mix(warm: DirectRoad) -> None:
    texts = [f"{number} {TEXT}" * 40 for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        said = pool.map(lambda text: warm.said(text=text, delay_seconds=0.01), texts)
        assert list(said) == texts
    assert warm.counted("proxy_channels") == 1
    warm.stack.wait_for_no_jobs()


def test_a_client_that_leaves_stops_the_engine(warm: DirectRoad) -> None:
    aborted = warm.stack.engine()["aborted"]
    with warm.stack.sdk() as sdk:
        deltas = warm.deltas(sdk, tokens=10_000, delay_seconds=0.02)
        next(deltas)
        deltas.close()  # type: ignore[attr-defined]  # a generator's
    wait_until(lambda: warm.stack.engine()["aborted"] == aborted + 1)
    warm.stack.wait_for_no_jobs()
