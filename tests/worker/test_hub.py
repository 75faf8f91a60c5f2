"""One look at the hub before the download, at a hub of our own on loopback."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.emulator.running import one_endpoint
from tests.servers import free_port, serve
from tests.worker.worker_process import chat, start_worker
from worker.errors import ModelNotStarted
from worker.hub import check_model

TOKEN = "hf_the_right_one"


class Hub:
    """The part of Hugging Face's API that is asked, with its errors; remembers what came."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.app = Starlette(routes=[Route("/api/models/{path:path}", self.answer)])

    def answer(self, request: Request) -> Response:
        path = request.path_params["path"]
        self.asked.append(path)
        may_read = request.headers.get("authorization") == f"Bearer {TOKEN}"
        if path.startswith("org/open"):
            known = "/revision/" not in path or path.endswith(("/main", "refs/pr/1"))
            return (
                JSONResponse({"gated": False}) if known else self.refusal(404, "RevisionNotFound")
            )
        if path == "org/gated":
            return JSONResponse({"gated": "manual"})
        if path == "org/gated/auth-check":
            return PlainTextResponse("OK") if may_read else self.refusal(403, "GatedRepo")
        if path == "org/private" and may_read:
            return JSONResponse({"gated": False, "private": True})
        if path == "org/mirrored":
            return JSONResponse({"error": "Repository not found"}, 404)
        if request.headers.get("authorization") == "Bearer hf_revoked":
            return JSONResponse({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "org/page":
            return PlainTextResponse("<html>404</html>", 404)
        if path == "org/broken":
            return PlainTextResponse("<html>", 200 if not may_read else 500)
        if path == "org/moved":
            return Response(status_code=307, headers={"location": "http://127.0.0.1:1/x"})
        return self.refusal(401, "RepoNotFound")

    @staticmethod
    def refusal(status: int, code: str) -> Response:
        return JSONResponse({"error": "said so"}, status, headers={"X-Error-Code": code})


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def base(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the environment has besides the model: the hub, and a home without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with serve(hub.app) as url:
        yield {"HF_ENDPOINT": url}


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"MODEL_NAME": "org/typo"}, "model_not_found"),
        ({"MODEL_NAME": "gpt3"}, "model_not_found"),
        ({"MODEL_NAME": "org/mirrored"}, "model_not_found"),
        ({"MODEL_NAME": "org/private", "HF_TOKEN": "hf_another"}, "model_not_found"),
        ({"MODEL_NAME": "org/typo", "HF_TOKEN": "hf_revoked"}, "model_gated"),
        ({"MODEL_NAME": "org/gated"}, "model_gated"),
        ({"MODEL_NAME": "org/gated", "HF_TOKEN": "hf_another"}, "model_gated"),
        ({"MODEL_NAME": "org/open", "MODEL_REVISION": "v9"}, "revision_not_found"),
    ],
)
def test_what_the_hub_refuses_is_told(
    base: dict[str, str], settings: dict[str, str], cause: str
) -> None:
    with pytest.raises(ModelNotStarted) as caught:
        check_model(base | settings)
    assert (caught.value.cause, caught.value.in_configuration) == (cause, True)
    assert "hf_another" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"MODEL_NAME": "org/open"},
        {"MODEL_NAME": "org/open", "MODEL_REVISION": "main"},
        {"MODEL_NAME": "org/open", "MODEL_REVISION": "refs/pr/1"},
        {"MODEL_NAME": "org/private", "HF_TOKEN": TOKEN},
        {"MODEL_NAME": "org/gated", "HF_TOKEN": TOKEN},
        {"MODEL_NAME": "org/gated", "HUGGING_FACE_HUB_TOKEN": TOKEN},
        {"MODEL_NAME": "org/moved"},
        {"MODEL_NAME": "org/page"},
        {"MODEL_NAME": "org/broken"},
        {"MODEL_NAME": "org/broken", "HF_TOKEN": TOKEN},
    ],
)
def test_what_the_hub_has_or_is_unclear_about_goes_on(
    hub: Hub, base: dict[str, str], settings: dict[str, str]
) -> None:
    check_model(base | settings)
    assert hub.asked


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"MODEL_NAME": "/models/mine"},
        {"MODEL_NAME": "s3://bucket/model"},
        {"MODEL_NAME": "org/typo:Q4_K_M"},
        {"MODEL_NAME": "org/typo/model-Q4.gguf"},
        {"MODEL_NAME": "org/typo", "HF_HUB_OFFLINE": "1"},
        {"MODEL_NAME": "org/typo", "TRANSFORMERS_OFFLINE": "yes"},
        {"MODEL_NAME": "org/typo", "VLLM_USE_MODELSCOPE": "True"},
    ],
)
def test_the_hub_is_not_asked_for_what_does_not_come_from_it(
    hub: Hub, base: dict[str, str], settings: dict[str, str]
) -> None:
    check_model(base | settings)
    assert hub.asked == []


def test_the_hub_is_not_asked_for_what_is_in_the_cache(
    hub: Hub, base: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "home/hub/models--org--typo/snapshots/abc").mkdir(parents=True)
    check_model(base | {"MODEL_NAME": "org/typo", "HF_HOME": f"{tmp_path}/home"})
    check_model(base | {"MODEL_NAME": "org/typo", "HF_HUB_CACHE": f"{tmp_path}/home/hub"})
    assert hub.asked == []


def test_a_folder_beside_the_worker_is_no_name_on_the_hub(
    hub: Hub, base: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org/typo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_model(base | {"MODEL_NAME": "org/typo"})
    assert hub.asked == []


def test_a_token_that_is_kept_in_a_file_is_not_ours_to_read(
    hub: Hub, base: dict[str, str], tmp_path: Path
) -> None:
    token = tmp_path / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    check_model(base | {"MODEL_NAME": "org/private"})
    assert hub.asked == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "no url", "http://[::1"])
def test_a_hub_that_cannot_be_reached_does_not_matter(endpoint: str) -> None:
    check_model({"MODEL_NAME": "org/m", "HF_ENDPOINT": endpoint.format(port=free_port())})


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    async def silence(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    silent = Starlette(routes=[Route("/{path:path}", silence)])
    with serve(silent) as url:
        began = time.monotonic()
        environment = {"MODEL_NAME": "org/m", "HF_ENDPOINT": url, "HF_HOME": str(tmp_path)}
        check_model(environment, timeout=0.5)
        assert time.monotonic() - began < 15


@pytest.mark.slow
def test_a_misspelt_model_is_told_before_vllm_says_a_word(
    base: dict[str, str], tmp_path: Path
) -> None:
    settings = base | {"MODEL_NAME": "org/typo", "engine_flags": "--start-seconds 3600"}
    with one_endpoint() as client, start_worker(client, tmp_path, **settings) as worker:
        [frame] = client.outputs(client.run(chat(stream=True)))
        worker.process.terminate()
        assert worker.exit_code() == 1
    assert frame["start_failed"] == "model_not_found"
    assert "org/typo" in json.loads(frame["text"])["error"]["message"]
