"""`make run`: the whole stack on this machine, one chat through it, then up until Ctrl-C.

Settings, all from the environment:

- `MODEL`: what to serve in place of the built-in `tiny-chat` and `tiny-embed`: a name on the
  Hugging Face hub, or a folder. The worker's own settings pass through, such as
  `TOOL_CALL_PARSER`, to the model to chat with.
- `ENGINE=scripted`: no vLLM and no model, but an engine with a script, which is there in seconds.
- `PROXY_PORT` (8080) and `EMULATOR_PORT` (8400).
- `IDLE_TIMEOUT`: seconds after which an idle worker is stopped (600).
- `VERBOSE=1`: show what the three write, which else goes to files only, in the folder `RUN_LOGS`
  (`.cache/run`).

vLLM is installed, and its model made, while the emulator and the proxy start.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until there is something to stop, Ctrl-C ends this without a word, imports included.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import openai

from proxy.backends.start_progress import phase_of
from scripts.happenings import what_happens
from scripts.local_stack import LocalStack, check_models, local_stack
from scripts.models import SCRIPTED, Model, find_models
from scripts.processes import Follower, Process, ProcessDied, last_lines, stop
from scripts.progress import SetUpError
from scripts.screen import Paint, Part, Screen, Step, is_terminal, open_screen
from scripts.set_up import PORTS, check_ports, port_of, vllm_is_there

QUESTION = "Hello! Who are you?"
ADMIN_KEY = "sk-admin-of-this-machine"
CHECK_SECONDS = 0.5
COLD_START_SECONDS = 1800.0
MAX_TOKENS = 200
STOP_SECONDS = 5.0

HOW_TO_USE = """\

Up until Ctrl-C:
  base URL  {base_url}
  API key   {api_key}
  models    {models}
  page      {page_url} shows all of it; log in with {admin_key}
  logs      {logs}

curl -N {base_url}/chat/completions \\
  -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{api_key}")
messages = [{{"role": "user", "content": "Hello!"}}]
for chunk in client.chat.completions.create(model="{model}", messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
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

NO_MODEL = "ENGINE=scripted: answers follow a script, no model makes them."

Piece = str | openai.OpenAIError | None
Pieces = queue.Queue[Piece]


class Terminated(Exception):
    """We were told to end by SIGTERM, or our terminal has gone."""


def main() -> int:
    """Run the stack; 0 when told to end, 1 when it could not start or a part of it died."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        run(find_models(os.environ.get("MODEL", ""), os.environ.get("ENGINE", "")))
    except (SetUpError, ProcessDied, openai.OpenAIError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated):
        print("Stopped.")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is stopped, and Python is about to end
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
    logs = Path(os.environ.get("RUN_LOGS") or ".cache/run").absolute()
    verbose = bool(os.environ.get("VERBOSE"))
    is_live = is_terminal() and not verbose
    with ExitStack() as running:
        try:
            stack = _start(models, logs, running, live=is_live)
            _say_how_to_use(stack)
            shown = partial(what_happens, paint=Paint(live=is_live))
            with nullcontext() if verbose else Follower(logs, shown, old=False):
                while True:
                    time.sleep(CHECK_SECONDS)
                    stack.check_processes()
        except (KeyboardInterrupt, Terminated):
            _say("\nStopping; Ctrl-C again stops at once.")
            raise


def _start(models: Sequence[Model], logs: Path, running: ExitStack, *, live: bool) -> LocalStack:
    """Set up what is missing, start the stack, and show a chat. What runs ends with `running`."""
    missing, servers = _missing(models), Step("emulator and proxy")
    start = Step(_start_of(models[0]))
    logs.mkdir(parents=True, exist_ok=True)
    _say("Starting; Ctrl-C stops all of it.\n")
    steps = [*missing.values(), servers, start]
    with open_screen(steps, _parts(models[0], logs), live=live) as screen:
        to_make = list(missing.items())
        with _making(*to_make[0], logs, screen) if to_make else nullcontext():
            stack = _start_servers(models, logs, running, screen, servers)
        for name, step in to_make[1:]:
            with _making(name, step, logs, screen):
                pass
        check_models(models)
        with screen.doing(start):
            pieces: Pieces = queue.Queue()
            threading.Thread(target=_chat, args=(stack, pieces), daemon=True).start()
            piece = _await_first(stack, screen, pieces)
        screen.state("worker", "up")
    _say(f"\n  first token after {start.seconds:.1f} s\n\n> {QUESTION}")
    _show_answer(stack, piece, pieces)
    return stack


def _missing(models: Sequence[Model]) -> dict[str, Step]:
    """The steps of the set-up that have to be taken, by their names."""
    missing: dict[str, Step] = {}
    if models[0].name == SCRIPTED:
        return missing
    if not vllm_is_there():
        missing["vllm"] = Step("vLLM for the CPU", "1 GB")
    return missing


@contextmanager
def _making(name: str, step: Step, logs: Path, screen: Screen) -> Iterator[None]:
    """Have the set-up take that step meanwhile, and be done with it at the end.

    Raises:
        SetUpError: it failed.
    """
    log = logs / f"set-up-{name}.log"
    with screen.doing(step):
        command = [sys.executable, "-m", "scripts.set_up", name]
        process = Process(f"the set-up of {step.title}", command, os.environ, log)
        try:
            yield
            while (code := process.poll()) is None:
                screen.note(step, " ".join(last_lines(log, 1)).strip().removesuffix("..."))
                time.sleep(CHECK_SECONDS)
            if code:
                raise SetUpError("\n".join(last_lines(log)).strip())
        finally:
            stop([process], STOP_SECONDS)


def _start_servers(
    models: Sequence[Model], logs: Path, running: ExitStack, screen: Screen, step: Step
) -> LocalStack:
    emulator_port, proxy_port = (port_of(*setting) for setting in PORTS.items())
    with screen.doing(step):
        for name in ("emulator", "proxy"):
            screen.state(name, "starting")
        stack = running.enter_context(
            local_stack(
                models,
                logs,
                emulator_port=emulator_port,
                proxy_port=proxy_port,
                idle_timeout_seconds=float(os.environ.get("IDLE_TIMEOUT") or 600),
                admin_key=ADMIN_KEY,
                made_later=True,
            )
        )
        for name in ("emulator", "proxy"):
            screen.state(name, "up")
    if os.environ.get("VERBOSE"):
        running.enter_context(Follower(logs))
    return stack


def _parts(model: Model, logs: Path) -> tuple[Part, ...]:
    emulator_port, proxy_port = (port_of(*setting) for setting in PORTS.items())
    return (
        Part("emulator", f"http://127.0.0.1:{emulator_port}"),
        Part("worker", f"log {_short(logs)}/{model.endpoint}-*.log"),
        Part("proxy", f"http://127.0.0.1:{proxy_port}"),
    )


def _short(path: Path) -> str:
    """The path from here, if it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _start_of(model: Model) -> str:
    engine = "the scripted engine" if model.name == SCRIPTED else f"vLLM loads {model.name}"
    return f"cold start: a worker starts, {engine}"


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


def _await_first(stack: LocalStack, screen: Screen, pieces: Pieces) -> Piece:
    """The first piece of the answer. Until it is there the cold start can be watched.

    Raises:
        ProcessDied: a part of the stack ended meanwhile.
    """
    while True:
        try:
            return pieces.get(timeout=CHECK_SECONDS)
        except queue.Empty:
            stack.check_processes()
            stack.check_workers()
            screen.state("worker", _state_of_worker(stack))


def _state_of_worker(stack: LocalStack) -> str:
    logs = sorted(stack.logs.glob(f"{stack.chat.id}-*.log"), key=lambda log: log.stat().st_mtime)
    if not logs or stack.chat.model.name == SCRIPTED:
        return "starting"
    phases = [phase for line in last_lines(logs[-1], 1000) if (phase := phase_of(line))]
    return phases[-1] if phases else "starting"


def _show_answer(stack: LocalStack, piece: Piece, pieces: Pieces) -> None:
    """Print the answer as it comes.

    Raises:
        ProcessDied: a part of the stack ended meanwhile.
        OpenAIError: the chat failed.
    """
    while isinstance(piece, str):
        print(piece, end="", flush=True)
        piece = pieces.get()
    print(flush=True)
    if piece is not None:
        stack.check_workers()  # the log of a worker that has died says more
        raise piece


def _say_how_to_use(stack: LocalStack) -> None:
    chat, *others = [endpoint.model.name for endpoint in stack.endpoints]
    facts = {"base_url": stack.base_url, "api_key": stack.api_key}
    page = {"page_url": stack.base_url.removesuffix("v1"), "admin_key": stack.admin_key}
    if chat == SCRIPTED:
        _say(f"\n{NO_MODEL}")
    models = ", ".join([chat, *others])
    _say(HOW_TO_USE.format(models=models, model=chat, logs=_short(stack.logs), **facts, **page))
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
