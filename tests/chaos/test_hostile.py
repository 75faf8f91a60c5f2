"""The figures of hostile bodies; `make hostile` prints them all."""

from pathlib import Path

import pytest

from tests.chaos.hostile import KEEP_ALIVE_SECONDS, QUEUE, kinds, measure
from tests.proxy.process import Proxy
from tests.servers import serve


@pytest.mark.slow
def test_the_figures_of_a_hostile_body_are_measured(tmp_path: Path) -> None:
    size = 1_000_000
    with serve(QUEUE) as url:
        proxy = Proxy(
            url,
            state_dir=tmp_path,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            first_byte_hold_seconds=0,
        )
        try:
            name, path, content_type, make = kinds()[0]
            figures = measure(proxy, name, path, content_type, make(size))
        finally:
            proxy.close()
    assert figures.answered == "taken"
    assert 0.9 * size < figures.unpacked_bytes <= 1.1 * size
    assert 0 <= figures.pause_cpu_seconds <= figures.cpu_seconds
    assert figures.silence_seconds >= KEEP_ALIVE_SECONDS / 2
    assert len(str(figures).split("|")) == 11
