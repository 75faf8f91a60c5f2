"""Records what the worker puts out: `python -m tests.wire.record` writes the files beside this one.

Each file is one job: its `input`, the job's `outputs` as they go over the wire, and what a reader
has to make of them: `status`, `content_type`, `headers` if there are some, and the `body` (or
`body_base64`), byte for byte what the engine said, or the worker where its model did not start.
Files whose name begins with `bare` are of jobs without our proxy; those of `sealed` ones are
sealed by the secret and the salt of `tests/wire/sealing.py`. Where frames are cut depends on
timing, what they hold together does not.
"""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts.scripted_engine import create_engine
from tests.servers import serve
from tests.wire.sealing import SECRET, opened_frame, sealed_input
from worker.answer import VLLMClient
from worker.errors import ModelStartFailed
from worker.handler import create_handler, create_refusing_handler
from worker.outputs import Output
from worker.sealing import Seals
from worker.server import ServedModel

FOLDER = Path(__file__).parent
JOB_ID = "job-recorded"
PROXY = {"protocol": 1, "request_id": "req_recorded"}
MODELS: list[ServedModel] = [{"id": "tiny-chat", "max_model_len": 8192}]
FIXED = {"created": 1_800_000_000}
SLOW = {"delay_seconds": 0.05, **FIXED}
UNICODE = "Grüße, 世界! 🙂🏽 a\u2028b\x85c e\u0301 \u202eend"


@dataclass(frozen=True)
class Case:
    """One job worth recording."""

    route: str
    body: Any
    framed: bool = True
    sealed: bool = False
    piece_bytes: int = 360_000
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """Of its client, as the proxy hands them on."""
    start_failure: ModelStartFailed | None = None
    """The worker's model did not start, so no engine is asked."""

    @property
    def input(self) -> dict[str, Any]:
        """The job's input."""
        headers = {"headers": self.headers} if self.headers else {}
        proxy = {"proxy": PROXY | headers} if self.framed else {}
        plain = {"openai_route": self.route, "openai_input": self.body, **proxy}
        return sealed_input(plain) if self.sealed else plain


def chat(**body: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], **body}


CHAT = "/v1/chat/completions"
NOT_FOUND = ModelStartFailed(
    "model_not_found", "Hugging Face has no model org/tiny-chat. Correct MODEL_NAME."
)
CASES = {
    "stream": Case(
        CHAT,
        chat(stream=True, stream_options={"include_usage": True}, script={"tokens": 6, **SLOW}),
    ),
    "plain": Case(CHAT, chat(max_tokens=5, script=FIXED)),
    "passed_headers": Case(
        CHAT,
        chat(max_tokens=1, script=FIXED),
        headers={
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-session-id": "conversation-7",
            "x-vllm-priority": "5",
        },
    ),
    "error_404": Case(CHAT, chat(model="other"), status=404),
    "error_in_stream": Case(CHAT, chat(stream=True, script={"error_after": 2, **SLOW})),
    "unicode": Case(CHAT, chat(stream=True, script={"text": UNICODE, "chunk_bytes": 1, **SLOW})),
    "large": Case(
        CHAT, chat(script={"text": 'Größe "世界" \\ 🙂 ' * 40, **FIXED}), piece_bytes=500
    ),
    "large_event": Case(
        CHAT, chat(stream=True, script={"tokens": 2, "event_bytes": 900, **FIXED}), piece_bytes=500
    ),
    "bytes": Case("/v1/embeddings", {"input": ["a", "b"], "encoding_format": "bytes"}),
    "broken_off": Case(CHAT, chat(stream=True, script={"tokens": 9, "cut_after": 3, **SLOW})),
    "sealed_stream": Case(
        CHAT, chat(stream=True, script={"tokens": 3, "text": UNICODE, **SLOW}), sealed=True
    ),
    "sealed_error_404": Case(CHAT, chat(model="other"), status=404, sealed=True),
    "bare_stream": Case(CHAT, chat(stream=True, script={"tokens": 4, **SLOW}), framed=False),
    "bare_plain": Case(CHAT, chat(max_tokens=5, script=FIXED), framed=False),
    "bare_error_404": Case(CHAT, chat(model="other"), framed=False, status=404),
    "start_failed": Case(CHAT, chat(stream=True), status=503, start_failure=NOT_FOUND),
    "bare_start_failed": Case(
        CHAT, chat(stream=True), framed=False, status=503, start_failure=NOT_FOUND
    ),
}


async def _outputs(url: str, case: Case) -> list[Output]:
    client = VLLMClient(url, request_timeout_seconds=60, piece_bytes=case.piece_bytes)
    try:
        failure = case.start_failure
        seals = Seals([SECRET], allow_unsealed=True)
        refusing = create_refusing_handler(failure) if failure else None
        handler = refusing or create_handler(client, MODELS, seals=seals)
        return [output async for output in handler({"id": JOB_ID, "input": case.input})]
    finally:
        await client.close()


def opened(outputs: list[Any]) -> list[Any]:
    """The outputs, of a sealed job as the worker made them."""
    return [
        opened_frame(output) if isinstance(output, dict) and "sealed" in output else output
        for output in outputs
    ]


def body_of(outputs: list[Any]) -> bytes:
    """What the outputs hold together, of frames, sealed or not, or bare text."""
    parts = []
    for output in opened(outputs):
        if isinstance(output, str):
            parts.append(output.encode())
        elif "base64" in output:
            parts.append(base64.b64decode(output["base64"]))
        else:
            parts.append(output.get("text", "").encode())
    return b"".join(parts)


def _engines_answer(url: str, case: Case) -> httpx.Response:
    request_id = PROXY["request_id"] if case.framed else JOB_ID
    headers = {"X-Request-Id": str(request_id)}
    return httpx.post(url + case.route, json=case.body, headers=headers, timeout=30)


def record(name: str) -> dict[str, Any]:
    """Run the job of this name, and return what belongs into its file."""
    case = CASES[name]
    with serve(create_engine()) as url:
        outputs: list[Any] = json.loads(json.dumps(asyncio.run(_outputs(url, case))))
        recorded: dict[str, Any] = {"input": case.input, "status": case.status}
        if case.start_failure is not None:
            recorded["content_type"] = "application/json"
            kind = None if case.framed else "startup_error"
            recorded["body"] = case.start_failure.body(kind)
        elif name == "broken_off":
            recorded["content_type"] = outputs[0]["content_type"]
            recorded["body"] = body_of(outputs).decode()
        else:
            answer = _engines_answer(url, case)
            recorded["content_type"] = answer.headers["content-type"]
            if "metadata" in answer.headers:
                recorded["headers"] = {"metadata": answer.headers["metadata"]}
            recorded |= _body(answer.content)
    return recorded | {"outputs": outputs}


def _body(content: bytes) -> dict[str, str]:
    try:
        return {"body": content.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(content).decode()}


def main() -> None:
    """Write all files."""
    for name in CASES:
        text = json.dumps(record(name), ensure_ascii=False, indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
