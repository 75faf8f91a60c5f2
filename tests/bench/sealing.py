"""What sealing costs in CPU time, on both sides: `python -m tests.bench.sealing` prints a table.

Each step is done sealed and unsealed in turns, and the figure is the difference of the medians.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from proxy.backends.runpod.sealing import Seal
from proxy.backends.runpod.wire import FrameReader
from tests.wire.sealing import SALT, SECRET
from worker.sealing import Seal as WorkerSeal
from worker.sealing import Seals

FRAMES = 200
"""How many frames an answer has."""
CHUNK = {
    "id": f"chatcmpl-req_{'0' * 32}",
    "object": "chat.completion.chunk",
    "created": 1_800_000_000,
    "model": "Qwen/Qwen3-0.6B",
    "choices": [
        {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
    ],
}
EVENT = f"data: {json.dumps(CHUNK, separators=(',', ':'))}\n\n"

Step = Callable[[], object]


def microseconds(sealed: Step, plain: Step, *, rounds: int = 50, times: int = 1) -> float:
    """How much more CPU time the first step takes than the second, for each of so many times."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, found in zip((sealed, plain), took, strict=True):
            began = time.thread_time_ns()
            step()
            found.append((time.thread_time_ns() - began) / 1000 / times)
    return statistics.median(took[0]) - statistics.median(took[1])


def frames_of(text: str) -> list[dict[str, Any]]:
    """An answer whose frames have this text each."""
    frames: list[dict[str, Any]] = [
        {"seq": seq, "run": "5f1c4873", "text": text} for seq in range(FRAMES)
    ]
    frames[0] |= {"status": 200, "content_type": "text/event-stream"}
    return frames


def of_frames(text: str) -> tuple[float, float, float]:
    """Microseconds for a frame at the worker and at the proxy, and how much larger it becomes."""
    plain = frames_of(text)
    worker = WorkerSeal(SECRET.encode(), SALT)
    sealed = [worker.frame(frame) for frame in plain]

    def seal() -> None:
        for frame in plain:
            worker.frame(frame)

    def read() -> None:
        FrameReader(Seal(SECRET.encode(), SALT).open).feed(sealed)

    at_worker = microseconds(seal, lambda: None, times=FRAMES)
    at_proxy = microseconds(read, lambda: FrameReader().feed(plain), times=FRAMES)
    return at_worker, at_proxy, size(sealed) / size(plain)


def of_input(prompt: str) -> tuple[float, float, float]:
    """Microseconds for a job at the worker and at the proxy, and how much larger it becomes."""
    body = msgspec.json.encode(
        {"model": "m", "messages": [{"role": "user", "content": prompt}], "stream": True}
    )
    proxy = {"protocol": 1, "request_id": f"req_{'0' * 32}"}
    plain = {
        "openai_route": "/v1/chat/completions",
        "openai_input": msgspec.Raw(body),
        "proxy": proxy,
    }
    raw = msgspec.json.encode(Seal(SECRET.encode()).input(plain))
    job, seals = {"id": "job", "input": json.loads(raw)}, Seals([SECRET])
    rounds = 200 if len(body) < 1_000_000 else 20
    at_worker = microseconds(lambda: seals.open(job), lambda: None, rounds=rounds)
    at_proxy = microseconds(
        lambda: msgspec.json.encode(Seal(SECRET.encode()).input(plain)),
        lambda: msgspec.json.encode(plain),
        rounds=rounds,
    )
    return at_worker, at_proxy, len(raw) / len(msgspec.json.encode(plain))


def size(frames: list[dict[str, Any]]) -> int:
    """How many bytes they are on the wire."""
    return sum(len(json.dumps(frame, separators=(",", ":"))) for frame in frames)


def main() -> None:
    """Measure, and print the table."""
    rows = {
        "a frame of one event": of_frames(EVENT),
        "a frame of 20 events": of_frames(EVENT * 20),
        "a job, prompt of 1 kB": of_input("x" * 1_000),
        "a job, prompt of 100 kB": of_input("x" * 100_000),
        "a job, prompt of 7 MB": of_input("x" * 7_000_000),
    }
    print("| | worker, µs | proxy, µs | size |\n|---|---|---|---|")
    for name, (worker, proxy, ratio) in rows.items():
        print(f"| {name} | {worker:,.0f} | {proxy:,.0f} | x {ratio:.2f} |")


if __name__ == "__main__":
    main()
