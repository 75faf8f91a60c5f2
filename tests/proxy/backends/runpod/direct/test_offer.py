"""What a worker tells of its door."""

from typing import Any

import pytest

from proxy.backends.runpod.direct.offer import NoOffer, offered

CERTIFICATE = "ab" * 32


def door(host: str = "203.0.113.7", **changes: Any) -> dict[str, Any]:
    return {"protocol": 1, "host": host, "port": 34567, "certificate": CERTIFICATE} | changes


def test_an_open_door_has_an_address_a_port_and_a_fingerprint() -> None:
    offer = offered(door())
    assert offer.place == "203.0.113.7:34567"
    assert offer.certificate == bytes.fromhex(CERTIFICATE)
    assert offered(door("2001:db8::1")).place == "[2001:db8::1]:34567"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (None, "not_offered"),
        ({"protocol": 1, "closed": "no_public_port"}, "no_public_port"),
        ({"protocol": 1, "closed": "a word of tomorrow"}, "closed"),
        ({"protocol": 1, "closed": ["no_public_port"]}, "closed"),
        ({"protocol": 1, "dials": "chat.example.com"}, "connecting"),
        ({"protocol": 2, "host": "x"}, "malformed"),
        ("direct", "malformed"),
        ([1], "malformed"),
        (door("worker.example.com"), "malformed"),
        (door("203.0.113.7/"), "malformed"),
        (door("2606:4700::1111%eth0"), "malformed"),
        (door("2606:4700::1111%1]/\nWARNING a line of its own"), "malformed"),
        (door(7), "malformed"),  # type: ignore[arg-type]
        (door(port=0), "malformed"),
        (door(port=65536), "malformed"),
        (door(port="80"), "malformed"),
        (door(certificate="ab"), "malformed"),
        (door(certificate="zz" * 32), "malformed"),
    ],
)
def test_anything_else_is_a_reason_in_a_word(told: Any, reason: str) -> None:
    with pytest.raises(NoOffer, match=f"^{reason}$"):
        offered(told)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
        # IPv4 within IPv6: NAT64, 6to4, Teredo, and forms that are out of use
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::1"),
        *("2002:a9fe:a9fe::", "2001:0:a00:1::1", "::10.0.0.1", "::ffff:0:10.0.0.1", "fec0::1"),
    ],
)
def test_addresses_of_the_own_network_are_not_public(host: str) -> None:
    assert not offered(door(host)).is_public


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are(host: str) -> None:
    assert offered(door(host)).is_public
