"""A scripted engine: vLLM's HTTP API with no model, for every test that is not about vLLM itself.

Two ways in: `create_engine()` is the ASGI application, for `serve()`; `python
scripts/scripted_engine.py --port N --model NAME` is a process that stands where vLLM stands,
accepts vLLM's flags and ignores those it does not know. With `--introduce` each of its answers says
that no model made it: so it stands in `make run ENGINE=scripted`, which is there in seconds and
wherever Python is.

Answers have vLLM 0.32's ids, field order and error shape. The text follows from the prompt and
holds characters of one to four bytes. A `"script"` object in the body of a generating request
steers that one request, by `Script`. What happened can be read at `/_engine/requests`.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

WORDS = ["Hello", " wörld", ",", " 你好", " 🙂", " naïve", " café", " and", " so", " on", "."]
MAX_MODEL_LEN = 8192
INTRODUCTION = """\
This is the scripted engine 🎭, no model: whatever you ask, it says this and then your last words. \
All else is real: the proxy, the emulator of RunPod, the worker with RunPod's SDK, this stream. \
`make run` without ENGINE=scripted has vLLM and a small model. You wrote: """
INTRODUCTION_DELAY_SECONDS = 0.03
"""Between two words of it, so that the stream can be seen."""


@dataclass
class Script:
    """What one request should do; every field may be set in the body's `"script"` object."""

    tokens: int | None = None
    """How many tokens to make; without it as many as `max_tokens` says, or twelve."""
    text: str | None = None
    """The exact text, word by word, in place of the one made from the prompt."""
    is_cut: bool = False
    """Whether `max_tokens` counts for that text as well."""
    first_delay_seconds: float = 0.0
    delay_seconds: float = 0.0
    status: int | None = None
    """Answer with this HTTP status and an error body."""
    hang: bool = False
    """Never make a token. A stream's head still goes out, as vLLM's does."""
    hang_after: int | None = None
    die_after: int | None = None
    """After that many tokens the process kills itself (in-process: the connection is cut)."""
    cut_after: int | None = None
    """After that many tokens the connection is cut."""
    error_after: int | None = None
    """After that many tokens the stream ends with an error event, as vLLM's does."""
    chunk_bytes: int | None = None
    """Write the body in pieces of that many bytes, cut anywhere."""
    event_bytes: int | None = None
    """Pad each token to that many characters."""
    stamp: bool = False
    """Make each token the moment it is made, by the clock that all processes share."""
    created: int | None = None
    """The answer's `created`, in place of the time."""

    @classmethod
    def of(cls, body: dict[str, Any]) -> Self:
        """The script of a request's body; unknown fields raise TypeError."""
        return cls(**body.get("script", {}))


@dataclass
class RequestRecord:
    """What `/_engine/requests` tells about one generating request."""

    id: str
    route: str
    headers: dict[str, str]
    body: dict[str, Any]
    state: Literal["running", "finished", "aborted"] = "running"
    tokens: int = 0


@dataclass
class Counters:
    """Totals since the start or the last reset; `running` is a level, not a total."""

    started: int = 0
    finished: int = 0
    aborted: int = 0
    running: int = 0
    tokens: int = 0


@dataclass
class Engine:
    """One engine's model names and everything it remembers."""

    models: list[str]
    counters: Counters = field(default_factory=Counters)
    records: deque[RequestRecord] = field(default_factory=lambda: deque(maxlen=200))
    introduces_itself: bool = False
    child_pid: int | None = None
    health: int = 200
    owns_process: bool = False

    def begin(self, record: RequestRecord) -> None:
        """Count a request that starts."""
        self.records.append(record)
        self.counters.started += 1
        self.counters.running += 1

    def count_token(self, record: RequestRecord) -> None:
        """Count one token made."""
        record.tokens += 1
        self.counters.tokens += 1

    def end(self, record: RequestRecord, *, finished: bool) -> None:
        """Count a request that ended by itself, or one whose client left."""
        record.state = "finished" if finished else "aborted"
        self.counters.running -= 1
        if finished:
            self.counters.finished += 1
        else:
            self.counters.aborted += 1

    def die(self) -> None:
        """End the process the hard way, or, in-process, the request only."""
        if self.owns_process:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionAbortedError("scripted death of the engine")


def _error(status: int, message: str, kind: str, param: str | None = None) -> JSONResponse:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _bad_request(message: str, param: str | None = None) -> JSONResponse:
    return _error(400, message, "BadRequestError", param)


def _prompt_of(body: dict[str, Any]) -> str:
    if "messages" in body:
        return " ".join(str(message.get("content") or "") for message in body["messages"])
    prompt = body.get("prompt", "")
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _last_words(body: dict[str, Any]) -> str:
    """What was said last, as text; nothing if that was something else."""
    said = body["messages"][-1].get("content") if body.get("messages") else body.get("prompt")
    parts = said if isinstance(said, list) else [said]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return " ".join(text for text in texts if isinstance(text, str))


def _introducing(body: dict[str, Any]) -> Script:
    """The script of an engine that introduces itself."""
    text = INTRODUCTION + _last_words(body)
    return Script(text=text, delay_seconds=INTRODUCTION_DELAY_SECONDS, is_cut=True)


def _tokens_of(prompt: str, script: Script, limit: int | None) -> tuple[list[str], str]:
    """The tokens to make and the finish reason."""
    if script.text is not None:
        tokens = re.findall(r"\S+\s*|\s+", script.text)
    else:
        count = script.tokens if script.tokens is not None else (limit or 12)
        start = len(prompt) % len(WORDS)
        tokens = [WORDS[(start + index) % len(WORDS)] for index in range(count)]
    if script.event_bytes:
        tokens = [token.ljust(script.event_bytes, "x") for token in tokens]
    if limit is not None and limit <= len(tokens) and (script.text is None or script.is_cut):
        return tokens[:limit], "length"
    return tokens, "stop"


@dataclass
class Generation:
    """One chat or text completion: its tokens, and their shape on the wire."""

    engine: Engine
    record: RequestRecord
    script: Script
    chat: bool
    prompt: str

    def __post_init__(self) -> None:
        body = self.record.body
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        self.tokens, self.finish_reason = _tokens_of(self.prompt, self.script, limit)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.record.id}"
        self.model = body.get("model") or self.engine.models[0]
        self.created = self.script.created or int(time.time())
        self.choices = int(body.get("n") or 1)

    def usage(self) -> dict[str, Any]:
        """vLLM's usage object for everything made."""
        prompt_tokens = len(self.prompt.split()) + 1
        made = len(self.tokens) * self.choices
        return {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + made,
            "completion_tokens": made,
        }

    async def make(self) -> AsyncIterator[str]:
        """Make the tokens at the script's pace, with the script's accidents."""
        if self.script.hang:
            await anyio.sleep_forever()
        await asyncio.sleep(self.script.first_delay_seconds)
        for number, token in enumerate(self.tokens):
            if number and self.script.delay_seconds:
                await asyncio.sleep(self.script.delay_seconds)
            await self._accident(number)
            self.engine.count_token(self.record)
            yield f"{time.monotonic():.4f} " if self.script.stamp else token
        await self._accident(len(self.tokens))

    async def _accident(self, made: int) -> None:
        if made == self.script.die_after:
            self.engine.die()
        if made == self.script.cut_after:
            raise ConnectionAbortedError("scripted cut of the connection")
        if made == self.script.error_after:
            raise ScriptedError
        if made == self.script.hang_after:
            await anyio.sleep_forever()

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        options = self.record.body.get("stream_options") or {}
        try:
            last = len(self.tokens) - 1
            number = 0
            async for token in self.make():
                if self.chat and number == 0:  # vLLM names the role when the first token is there
                    for index in range(self.choices):
                        yield self._chunk(index, {"role": "assistant", "content": ""})
                reason = self.finish_reason if number == last else None
                for index in range(self.choices):
                    yield self._chunk(index, {"content": token}, reason)
                number += 1
            if options.get("include_usage"):
                yield self._event({**self._head("chunk"), "choices": [], "usage": self.usage()})
        except ScriptedError:
            error = {"message": "scripted", "type": "InternalServerError", "param": None}
            yield self._event({"error": {**error, "code": 500}})
        yield b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        if self.chat:
            shape = "chat.completion.chunk" if kind == "chunk" else "chat.completion"
        else:
            shape = "text_completion"
        return {"id": self.id, "object": shape, "created": self.created, "model": self.model}

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index}
        if self.chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta["content"]
        choice |= {"logprobs": None, "finish_reason": reason}
        if reason or not self.chat:
            choice["stop_reason"] = None
        return self._event({**self._head("chunk"), "choices": [choice]})

    @staticmethod
    def _event(value: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    async def whole(self) -> bytes:
        """The answer as one JSON object, made when all tokens are there."""
        text = "".join([token async for token in self.make()])
        choices = [self._choice(index, text) for index in range(self.choices)]
        answer = {**self._head("whole"), "choices": choices, "service_tier": None}
        answer |= {"system_fingerprint": None, "usage": self.usage(), "kv_transfer_params": None}
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        ending = {"logprobs": None, "finish_reason": self.finish_reason, "stop_reason": None}
        if not self.chat:
            return {"index": index, "text": text, **ending}
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
        message |= {"audio": None, "function_call": None, "reasoning": None}
        return {"index": index, "message": message, **ending}


class ScriptedError(Exception):
    """The script asked for an error in the middle of a stream."""


def _pieces(data: bytes, size: int | None) -> Iterator[bytes]:
    if not size:
        yield data
        return
    for start in range(0, len(data), size):
        yield data[start : start + size]


class GenerationResponse(Response):
    """Sends a generation and aborts it when the client leaves, as vLLM does.

    A stream's head goes out at once; a whole answer's head waits for the body.
    """

    def __init__(self, generation: Generation, *, stream: bool) -> None:
        super().__init__(media_type="text/event-stream" if stream else "application/json")
        del self.headers["content-length"]
        self.generation = generation
        self.stream = stream
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until the body is sent or the client has left."""
        engine, record = self.generation.engine, self.generation.record
        engine.begin(record)
        finished = False
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._cancel_on_disconnect, receive, group.cancel_scope)
                try:
                    await self._send_all(send)
                    finished = True
                except ConnectionAbortedError:
                    # Returning from a begun response makes uvicorn close the connection.
                    await self._begin(send)
                group.cancel_scope.cancel()
        finally:
            engine.end(record, finished=finished)

    async def _cancel_on_disconnect(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _send_all(self, send: Send) -> None:
        if self.stream:
            await self._begin(send)
            async for event in self.generation.events():
                await self._send_pieces(send, event)
        else:
            body = await self.generation.whole()
            await self._begin(send)
            await self._send_pieces(send, body)
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        if not self.begun:
            self.begun = True
            head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(head)

    async def _send_pieces(self, send: Send, data: bytes) -> None:
        for piece in _pieces(data, self.generation.script.chunk_bytes):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if self.generation.script.chunk_bytes:
                await asyncio.sleep(0)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _body(request: Request) -> dict[str, Any] | JSONResponse:
    try:
        body = await request.json()
    except ValueError as error:
        return _bad_request(f"[{{'type': 'json_invalid', 'msg': 'JSON decode error: {error}'}}]")
    if not isinstance(body, dict):
        return _bad_request("Input should be a valid dictionary")
    model = body.get("model")
    if model and model not in _engine(request).models:
        return _error(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
    return body


def _record(request: Request, body: dict[str, Any]) -> RequestRecord:
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    return RequestRecord(request_id, request.url.path, dict(request.headers), body)


async def _generate(request: Request, *, chat: bool) -> Response:
    body = await _body(request)
    if isinstance(body, JSONResponse):
        return body
    needed = "messages" if chat else "prompt"
    if needed not in body:
        return _bad_request(f"[{{'type': 'missing', 'loc': ('body', '{needed}')}}]", needed)
    is_scripted = "script" in body or not _engine(request).introduces_itself
    try:
        script = Script.of(body) if is_scripted else _introducing(body)
    except TypeError as error:
        return _bad_request(str(error), "script")
    if script.status is not None:
        kind = HTTPStatus(script.status).phrase
        return _error(script.status, f"scripted {kind}", kind.title().replace(" ", "") + "Error")
    generation = Generation(
        _engine(request), _record(request, body), script, chat, _prompt_of(body)
    )
    return GenerationResponse(generation, stream=bool(body.get("stream")))


async def _chat_completions(request: Request) -> Response:
    return await _generate(request, chat=True)


async def _completions(request: Request) -> Response:
    return await _generate(request, chat=False)


async def _embeddings(request: Request) -> Response:
    body = await _body(request)
    if isinstance(body, JSONResponse):
        return body
    given = body.get("input", [])
    texts = [given] if isinstance(given, str) else list(given)
    vectors = [[len(str(text)) / 16, 0.5, -0.25, index / 8] for index, text in enumerate(texts)]
    if body.get("encoding_format") == "bytes":
        packed = b"".join(struct.pack("<4f", *vector) for vector in vectors)
        items = [
            {
                "index": index,
                "embed_dtype": "float32",
                "endianness": "native",
                "start": 16 * index,
                "end": 16 * (index + 1),
                "shape": [4],
            }
            for index in range(len(vectors))
        ]
        told = {
            "id": request.headers.get("x-request-id", ""),
            "created": 0,
            "model": "m",
            "data": items,
        }
        headers = {"metadata": json.dumps(told)}
        return Response(packed, headers=headers, media_type="application/octet-stream")
    data = [
        {"index": index, "object": "embedding", "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    made = sum(len(str(text).split()) + 1 for text in texts)
    usage = {"prompt_tokens": made, "total_tokens": made, "completion_tokens": 0}
    head = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    model = body.get("model") or _engine(request).models[0]
    return JSONResponse({**head, "model": model, "data": data, "usage": usage})


async def _tokenize(request: Request) -> Response:
    body = await _body(request)
    if isinstance(body, JSONResponse):
        return body
    tokens = list(_prompt_of(body).encode())
    answer = {"count": len(tokens), "max_model_len": MAX_MODEL_LEN, "tokens": tokens}
    return JSONResponse({**answer, "token_strs": None})


async def _models(request: Request) -> Response:
    models = _engine(request).models
    owner = "scripted-engine" if _engine(request).introduces_itself else "vllm"
    card = {"object": "model", "created": int(time.time()), "owned_by": owner, "parent": None}
    data = [
        {"id": name, **card, "root": models[0], "max_model_len": MAX_MODEL_LEN, "permission": []}
        for name in models
    ]
    return JSONResponse({"object": "list", "data": data})


async def _health(request: Request) -> Response:
    return Response(status_code=_engine(request).health)


async def _set_health(request: Request) -> Response:
    """From now on `/health` has this status: 503 is that of a dead engine."""
    _engine(request).health = request.path_params["status"]
    return Response(status_code=204)


async def _metrics(request: Request) -> Response:
    engine = _engine(request)
    labels = f'{{engine="0",model_name="{engine.models[0]}"}}'
    lines = [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{labels} {float(engine.counters.running)}",
        "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{labels} 0.0",
        "# HELP vllm:generation_tokens_total Number of generation tokens processed.",
        "# TYPE vllm:generation_tokens_total counter",
        f"vllm:generation_tokens_total{labels} {float(engine.counters.tokens)}",
    ]
    return PlainTextResponse("\n".join(lines) + "\n")


async def _requests(request: Request) -> Response:
    engine = _engine(request)
    records = [asdict(record) for record in engine.records]
    facts = {**asdict(engine.counters), "requests": records}
    return Response(json.dumps(facts), media_type="application/json")  # of any prompt: ASCII


async def _argv(request: Request) -> Response:
    engine = _engine(request)
    facts = {"argv": sys.argv[1:], "environment": dict(os.environ)}
    return JSONResponse({**facts, "pid": os.getpid(), "child_pid": engine.child_pid})


async def _reset(request: Request) -> Response:
    engine = _engine(request)
    engine.counters = Counters(running=engine.counters.running)
    engine.records.clear()
    return Response(status_code=204)


async def _die(request: Request) -> Response:
    body = await request.body()
    if body:
        os._exit(int(json.loads(body)["code"]))
    _engine(request).die()
    raise AssertionError("still alive")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    return _error(error.status_code, error.detail, phrase)


def create_engine(*models: str) -> Starlette:
    """The engine as an ASGI application that serves these model names (or `tiny-chat`).

    `app.state.engine` is the `Engine`, for tests that look inside without HTTP.
    """
    routes = [
        Route("/health", _health),
        Route("/metrics", _metrics),
        Route("/v1/models", _models),
        Route("/v1/chat/completions", _chat_completions, methods=["POST"]),
        Route("/v1/completions", _completions, methods=["POST"]),
        Route("/v1/embeddings", _embeddings, methods=["POST"]),
        Route("/tokenize", _tokenize, methods=["POST"]),
        Route("/_engine/requests", _requests),
        Route("/_engine/argv", _argv),
        Route("/_engine/health/{status:int}", _set_health, methods=["POST"]),
        Route("/_engine/reset", _reset, methods=["POST"]),
        Route("/_engine/die", _die, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.state.engine = Engine(list(models) or ["tiny-chat"])
    return app


def _spawn_child() -> int:
    """A child that ignores SIGTERM, to stand for vLLM's own child, the engine core."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(86400)"
    return subprocess.Popen([sys.executable, "-c", code]).pid


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default="tiny-chat")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--start-seconds", type=float, default=0.0)
    parser.add_argument("--die-at-start", action="store_true")
    parser.add_argument("--say", type=Path)
    parser.add_argument("--die-saying", type=Path)
    parser.add_argument("--until", default="")
    parser.add_argument("--spawn-child", action="store_true")
    parser.add_argument("--introduce", action="store_true")
    known, _ = parser.parse_known_args()
    return known


def main() -> None:
    """Serve until a signal comes."""
    arguments = _arguments()
    app = create_engine(*(arguments.served_model_name or [arguments.model]))
    engine: Engine = app.state.engine
    engine.owns_process = True
    engine.introduces_itself = arguments.introduce
    if arguments.spawn_child:
        engine.child_pid = _spawn_child()
    if arguments.say:
        print(arguments.say.read_text(), file=sys.stderr, flush=True)
    time.sleep(arguments.start_seconds)
    is_mended = arguments.until and arguments.until in sys.argv
    if arguments.die_saying and arguments.die_saying.exists() and not is_mended:
        print(arguments.die_saying.read_text(), file=sys.stderr, flush=True)
        sys.exit(1)
    if arguments.die_at_start:
        print("RuntimeError: scripted death at start", file=sys.stderr, flush=True)
        sys.exit(1)
    print("scripted engine is ready", flush=True)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
