"""`make run`: the whole stack on this machine, one chat through it, then up until Ctrl-C.

Settings, all from the environment:

- `MODEL`: what to serve in place of the built-in `tiny-chat` and `tiny-embed`: a name on the
  Hugging Face hub, or a folder. The worker's own settings pass through, such as
  `TOOL_CALL_PARSER`, to the model to chat with.
- `PROXY_PORT` (8080) and `EMULATOR_PORT` (8400).
- `IDLE_TIMEOUT`: seconds after which an idle worker is stopped (600).
- `VERBOSE=1`: show what the three write, which else goes to files only, in the folder `RUN_LOGS`
  (`.cache/run`).
"""

import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

import openai

from scripts.local_stack import LocalStack, local_stack
from scripts.models import Model, find_models
from scripts.processes import Follower, ProcessDied
from scripts.progress import SetUpError
from scripts.set_up import PORTS, check_ports, port_of

QUESTION = "Hello! Who are you?"
ADMIN_KEY = "sk-admin-of-this-machine"
CHECK_SECONDS = 0.5
COLD_START_SECONDS = 1800.0
MAX_TOKENS = 200

STARTING = """\
Starting
  the emulator  http://127.0.0.1:{emulator}, log {logs}/emulator.log
  the proxy     http://127.0.0.1:{proxy}, log {logs}/proxy.log
  a worker with vLLM for each model, at the first request for it"""

A_MODEL = "    {name}, log {logs}/{endpoint}-*.log"

HOW_TO_USE = """\

Up until Ctrl-C:
  base URL  {base_url}
  API key   {api_key}
  models    {models}
  page      {page_url} shows all of it; log in with {admin_key}

curl -N {base_url}/chat/completions \\
  -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
"""

HOW_TO_EMBED = """\
curl {base_url}/embeddings \\
  -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "input": "Hello!"}}'
"""

HOW_TO_CALL_RUNPOD = """\
RunPod's own API, below the proxy:
curl {runpod_url}/{endpoint}/runsync \\
  -H "Authorization: {api_key}" -d '{{"input": {{"prompt": "Hello!"}}}}'
"""

_EVENT = re.compile(
    r"\S+ (?P<time>[\d:]+)\S* \w+ proxy\."
    r"(access: \S+(?! GET /admin/status )|[\w.]+:(?= endpoint )) (?P<what>.*)"
)
"""What the proxy's log has of requests, but for the page's own every few seconds, and of the states
of endpoints."""

Pieces = queue.Queue[str | openai.OpenAIError | None]


class Terminated(Exception):
    """We were told to end by SIGTERM, or our terminal has gone."""


def main() -> int:
    """Run the stack; 0 when told to end, 1 when it could not start or a part of it died."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        run(find_models(os.environ.get("MODEL", "")))
    except (SetUpError, ProcessDied, openai.OpenAIError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated):
        print("Stopped.")
    return 0


def run(models: Sequence[Model]) -> None:
    """Start the stack, show that it works, and stay.

    Raises:
        SetUpError: a port is taken, or the model is not there.
        ProcessDied: a part of the stack ended.
        OpenAIError: the first chat failed.
        KeyboardInterrupt, Terminated: it is over, and nothing runs any more.
    """
    check_ports()
    emulator_port, proxy_port = (port_of(*setting) for setting in PORTS.items())
    idle_timeout_seconds = float(os.environ.get("IDLE_TIMEOUT") or 600)
    logs = Path(os.environ.get("RUN_LOGS") or ".cache/run").absolute()
    ports = {"emulator": emulator_port, "proxy": proxy_port}
    _say(STARTING.format(logs=logs, **ports))
    for model in models:
        _say(A_MODEL.format(name=model.name, logs=logs, endpoint=model.endpoint))
    verbose = bool(os.environ.get("VERBOSE"))
    with (
        local_stack(
            models,
            logs,
            emulator_port=emulator_port,
            proxy_port=proxy_port,
            idle_timeout_seconds=idle_timeout_seconds,
            admin_key=ADMIN_KEY,
        ) as stack,
        Follower(logs) if verbose else nullcontext(),
    ):
        try:
            show_chat(stack)
            _say_how_to_use(stack)
            with nullcontext() if verbose else Follower(logs, what_happens, old=False):
                while True:
                    time.sleep(CHECK_SECONDS)
                    stack.check_processes()
        except (KeyboardInterrupt, Terminated):
            _say("\nStopping; Ctrl-C again stops at once.")
            raise


def what_happens(log: Path, line: str) -> str | None:
    """A line of the proxy's log for whoever watches: a request, or an endpoint's new state."""
    found = _EVENT.match(line) if log.stem == "proxy" else None
    return f"{found['time']}  {found['what']}" if found else None


def show_chat(stack: LocalStack) -> None:
    """Send one streamed chat through the OpenAI SDK and print it as it comes.

    Raises:
        ProcessDied: a part of the stack ended meanwhile.
        OpenAIError: the chat failed.
    """
    _say(f"\n> {QUESTION}")
    pieces: Pieces = queue.Queue()
    threading.Thread(target=_chat, args=(stack, pieces), daemon=True).start()
    piece = _await_first(stack, pieces)
    while isinstance(piece, str):
        print(piece, end="", flush=True)
        piece = pieces.get()
    print(flush=True)
    if piece is not None:
        stack.check_workers()  # the log of a worker that has died says more
        raise piece


def _chat(stack: LocalStack, pieces: Pieces) -> None:
    """Put the answer's pieces on the queue, and at its end None or the error that ended it."""
    direct = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=stack.base_url,
        api_key=stack.api_key,
        max_retries=0,
        timeout=COLD_START_SECONDS,
        http_client=direct,
    ) as client:
        try:
            chunks = client.chat.completions.create(
                model=stack.chat.model.name,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=MAX_TOKENS,
                stream=True,
            )
            for chunk in chunks:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    pieces.put(text)
            pieces.put(None)
        except openai.OpenAIError as error:
            pieces.put(error)


def _await_first(stack: LocalStack, pieces: Pieces) -> str | openai.OpenAIError | None:
    """The first piece of the answer. Until it is there the cold start can be watched."""
    started = time.monotonic()
    waiting = f"  cold start: a worker starts, vLLM loads {stack.chat.model.name} ..."
    is_ticking = sys.stdout.isatty() and not os.environ.get("VERBOSE")
    print(waiting, end="" if is_ticking else "\n", flush=True)
    while True:
        try:
            piece = pieces.get(timeout=CHECK_SECONDS)
        except queue.Empty:
            stack.check_processes()
            stack.check_workers()
            if is_ticking:
                print(f"\r{waiting} {time.monotonic() - started:.0f} s", end="", flush=True)
        else:
            if is_ticking:
                print()
            _say(f"  first token after {time.monotonic() - started:.1f} s\n")
            return piece


def _say_how_to_use(stack: LocalStack) -> None:
    chat, *others = [endpoint.model.name for endpoint in stack.endpoints]
    facts = {"base_url": stack.base_url, "api_key": stack.api_key}
    page = {"page_url": stack.base_url.removesuffix("v1"), "admin_key": stack.admin_key}
    _say(HOW_TO_USE.format(models=", ".join([chat, *others]), model=chat, **facts, **page))
    for embed in others:
        _say(HOW_TO_EMBED.format(model=embed, **facts))
    runpod = {"runpod_url": stack.runpod_url, "api_key": stack.runpod_api_key}
    _say(HOW_TO_CALL_RUNPOD.format(endpoint=stack.chat.id, **runpod))


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
