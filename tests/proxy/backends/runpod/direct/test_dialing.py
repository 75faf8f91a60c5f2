"""Dialling workers, in virtual time: whom, how often, and what is remembered of failures."""

import asyncio

import pytest

from proxy.backends.runpod.direct.channel import Connection
from proxy.backends.runpod.direct.dialing import MAX_REMEMBERED, Dialer, DialFailed, Failures
from proxy.backends.runpod.direct.offer import Offer, offered
from tests.virtual_time import run_virtually


def offer(host: str = "8.8.8.8", *, port: int = 1000, certificate: int = 0) -> Offer:
    digest = f"{certificate:064x}"
    return offered({"protocol": 1, "host": host, "port": port, "certificate": digest})


class Workers:
    """What is dialled: fails with a reason, or is a connection that lasts so long."""

    def __init__(self, *, may_be_private: bool = False) -> None:
        self.reason = ""
        self.lasts_seconds = 1000.0
        self.dialled: list[Offer] = []
        self.dialer = Dialer(self._connect, self._serve, may_be_private=may_be_private)

    async def _connect(self, offer: Offer) -> Connection:
        self.dialled.append(offer)
        await asyncio.sleep(0.1)
        if self.reason:
            raise DialFailed(self.reason)
        return object()  # type: ignore[return-value]  # which nobody looks at

    async def _serve(self, connection: Connection, endpoint: str) -> None:
        await asyncio.sleep(self.lasts_seconds)

    async def dial(self, offer: Offer, endpoint: str = "ep") -> str:
        """Dial, and wait until it has come to something; what stood in the way at first."""
        word = self.dialer.dial(endpoint, offer)
        await asyncio.sleep(0.2)
        return word


def test_there_is_one_connection_to_each_worker() -> None:
    async def scenario() -> None:
        workers = Workers()
        for _ in range(3):
            assert await workers.dial(offer()) == "connecting"
        await workers.dial(offer("8.8.4.4", certificate=1))
        assert len(workers.dialled) == 2
        await workers.dialer.close()
        assert len(asyncio.all_tasks()) == 1

    run_virtually(scenario())


def test_a_worker_that_names_anothers_certificate_does_not_stand_in_its_way() -> None:
    async def scenario() -> None:
        workers = Workers()
        await workers.dial(offer("8.8.4.4", certificate=1))
        await workers.dial(offer("8.8.8.8", certificate=1))
        assert [str(dialled.address) for dialled in workers.dialled] == ["8.8.4.4", "8.8.8.8"]
        await workers.dialer.close()

    run_virtually(scenario())


def test_a_private_address_is_dialled_only_where_that_is_allowed() -> None:
    async def scenario() -> None:
        workers = Workers()
        assert await workers.dial(offer("10.0.0.1")) == "private_address"
        assert workers.dialled == []
        workers = Workers(may_be_private=True)
        assert await workers.dial(offer("10.0.0.1")) == "connecting"
        assert len(workers.dialled) == 1
        await workers.dialer.close()

    run_virtually(scenario())


@pytest.mark.parametrize("reason", ["timeout", "refused", "failed", "certificate"])
def test_what_failed_is_left_alone_for_longer_and_longer(reason: str) -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.reason = reason
        pauses = []
        began = asyncio.get_running_loop().time()
        while len(workers.dialled) < 8:
            before = len(workers.dialled)
            word = await workers.dial(offer())
            if len(workers.dialled) > before:
                now = asyncio.get_running_loop().time()
                pauses.append(round((now - began) / 10) * 10)
                began = now
            else:
                assert word == reason
            await asyncio.sleep(1)
        assert pauses[1:] == [30, 60, 120, 240, 480, 600, 600]

    run_virtually(scenario())


def test_a_worker_that_was_reached_is_dialled_again_at_once_when_its_connection_is_lost() -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.lasts_seconds = 20
        await workers.dial(offer())
        await asyncio.sleep(30)
        assert await workers.dial(offer()) == "connecting"
        assert len(workers.dialled) == 2
        await workers.dialer.close()

    run_virtually(scenario())


def test_connections_that_do_not_last_are_not_made_one_after_the_other() -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.lasts_seconds = 0.1
        for _ in range(100):
            await workers.dial(offer())
        assert len(workers.dialled) <= 5  # in twenty seconds
        assert await workers.dial(offer()) == "lost"

    run_virtually(scenario())


def test_another_certificate_at_the_same_address_is_tried_after_a_wrong_one() -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.reason = "certificate"
        await workers.dial(offer(certificate=1))
        workers.reason = ""
        assert await workers.dial(offer(certificate=1)) == "certificate"
        assert await workers.dial(offer(certificate=2)) == "connecting"
        await workers.dialer.close()

    run_virtually(scenario())


def test_a_firewall_is_found_out_once_for_all_workers_of_an_endpoint() -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.reason = "timeout"
        for number in range(10):
            await workers.dial(offer(port=1000 + number, certificate=number))
        assert len(workers.dialled) == 3
        assert await workers.dial(offer(port=1, certificate=99)) == "timeout"
        assert await workers.dial(offer(port=2, certificate=98), "another") == "connecting"
        workers.reason = ""
        await asyncio.sleep(31)
        assert await workers.dial(offer(port=3, certificate=97)) == "connecting"
        assert await workers.dial(offer(port=4, certificate=96)) == "connecting"
        assert len(workers.dialled) == 6
        await workers.dialer.close()

    run_virtually(scenario())


def test_addresses_that_time_out_now_and_then_are_no_firewall() -> None:
    async def scenario() -> None:
        workers = Workers()
        for number in range(10):
            workers.reason = "timeout" if number % 2 else ""
            await workers.dial(offer(port=1000 + number, certificate=number))
        assert len(workers.dialled) == 10
        await workers.dialer.close()

    run_virtually(scenario())


def test_failures_are_remembered_within_bounds() -> None:
    async def scenario() -> None:
        failures = Failures()
        for number in range(MAX_REMEMBERED + 10):
            failures.note(number, "timeout", 30)
        assert failures.reason(9) == ""
        assert failures.reason(10) == "timeout"

    run_virtually(scenario())


def test_closing_ends_what_is_being_dialled() -> None:
    async def scenario() -> None:
        workers = Workers()
        workers.dialer.dial("ep", offer())
        await asyncio.sleep(0.05)
        await workers.dialer.close()
        assert len(asyncio.all_tasks()) == 1

    run_virtually(scenario())
