"""Fixtures of the emulator's tests."""

from collections.abc import Iterator

import pytest

from tests.emulator.running import Client, one_endpoint


@pytest.fixture(scope="module")
def workerless() -> Iterator[Client]:
    """An endpoint that starts no workers."""
    with one_endpoint() as client:
        yield client


@pytest.fixture
def by_hand(workerless: Client) -> Client:
    """An endpoint with an empty queue, whose workers are played by the test."""
    workerless.post("/purge-queue")
    return workerless
