"""What sealing costs is measured on what proxy and worker do."""

import pytest

from tests.bench.sealing import EVENT, of_frames, of_input


@pytest.mark.slow
def test_what_is_sealed_grows_by_a_third_and_where_it_is_small_by_more() -> None:
    assert of_frames(EVENT)[2] > of_frames(EVENT * 20)[2] > 1.3
    assert of_input("x")[2] > of_input("x" * 100_000)[2] > 1.3
