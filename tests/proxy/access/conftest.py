"""A client whose key has limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.app import create_app
from tests.proxy.conftest import settings_for
from tests.proxy.scripted_runpod import Page, ScriptedRunPod
from tests.servers import serve

LIMITED = "sk-limited"
FRAME = {"seq": 0, "status": 200, "content_type": "application/json", "text": "{}", "end": True}
BEGINNING = {"seq": 0, "status": 200, "content_type": "text/event-stream", "text": ": hi\n\n"}

Limited = Callable[..., Any]


@pytest.fixture
def limited(
    scripted_runpod: tuple[ScriptedRunPod, str],
    runpod: ScriptedRunPod,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Limited:
    """A client that has a key with these limits."""

    @contextmanager
    def start(**limits: Any) -> Iterator[httpx.Client]:
        monkeypatch.setenv("LIMITED_KEY", LIMITED)
        fields = "\n".join(f"{name} = {value}" for name, value in limits.items())
        file = tmp_path / "proxy.toml"
        file.write_text(
            "[endpoints.ep]\nprice_per_second = 0.5\n[models.m]\nendpoint = 'ep'\n"
            f"[keys.limited]\nenv = 'LIMITED_KEY'\nmay_warm = true\n{fields}\n"
        )
        runpod.script = [Page("COMPLETED", [FRAME])]
        headers = {"authorization": f"Bearer {LIMITED}"}
        settings = settings_for(scripted_runpod[1], config=file, state_dir=tmp_path / "state")
        with (
            serve(create_app(settings)) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        ):
            yield client

    return start
