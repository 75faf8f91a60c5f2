#!/usr/bin/env bash
# uvloop 0.23.0 rounds every delay to whole milliseconds (`round(delay * 1000)` in `call_later`).
#
# Below half a millisecond none is left: `asyncio.sleep(0.0004)` waits for nothing, and a loop that
# polls by it takes a whole core. `asyncio.sleep(0.0104)` is over before its time, so code that waits
# until a moment (a rate limiter, a scheduler), finds that it has not come and waits for the rest spins
# until it has. asyncio's own loop sleeps at least as long as it was told. What helps is to round up
# to a millisecond oneself.
#
# Seen on 2026-11-29 with Python 3.11 (figures differ from run to run, the last words do not):
#   asyncio: 212 sleeps of 0.4 ms in 0.3 s; sleeps of 10.4 ms took from 11.2 ms: within bounds
#   uvloop: 66300 sleeps of 0.4 ms in 0.3 s; sleeps of 10.4 ms took from 10.2 ms: too many, and too short
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check uvloop==0.23.0
cat > try.py <<'PY'
import asyncio
import sys
import time

import uvloop


async def sleeps(each: float, seconds: float) -> list[float]:
    """How long each sleep took, of as many as there were in so many seconds."""
    took = []
    began = time.monotonic()
    while (before := time.monotonic()) < began + seconds:
        await asyncio.sleep(each)
        took.append(time.monotonic() - before)
    return took


def seen(name: str, run) -> str:
    many = len(run(sleeps(0.0004, 0.3)))
    shortest = min(run(sleeps(0.0104, 0.5)))
    # There is room for 750 sleeps of 0.4 ms in 0.3 s.
    verdict = "too many" if many > 750 else "within bounds"
    verdict += ", and too short" if shortest < 0.0104 else ""
    print(f"{name}: {many} sleeps of 0.4 ms in 0.3 s; ", end="")
    print(f"sleeps of 10.4 ms took from {shortest * 1000:.1f} ms: {verdict}")
    return verdict


found = [seen("asyncio", asyncio.run), seen("uvloop", uvloop.run)]
if found != ["within bounds", "too many, and too short"]:
    sys.exit("CHANGED: uvloop and asyncio no longer differ like this")
PY
venv/bin/python try.py
