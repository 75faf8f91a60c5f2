"""The keys of the environment and of the file: what each may do, and who needs none."""

import hmac
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.access.keys import ANYBODY, Key, Keys
from proxy.config.tables import KeyConfig
from proxy.errors import InvalidAPIKey
from tests.proxy.conftest import KEY, settings_for

ADMIN_KEY = "sk-admin-of-24-characters"
OPEN = {"api_keys": "", "allow_anonymous": True}


async def found(key: str, **changes: Any) -> Key:
    """Whose this key is, with these settings."""
    keys = Keys(settings_for("http://unused", admin_keys=ADMIN_KEY, **changes), {})
    return await keys.check({"authorization": f"Bearer {key}"} if key else {})


async def test_of_the_environment_admins_keys_alone_may_administer() -> None:
    client, admin = await found(KEY), await found(ADMIN_KEY)
    assert (client.name, client.may_administer) == ("key-1", False)
    assert (admin.name, admin.may_administer, admin.may_use("m")) == ("admin-1", True, True)


async def test_a_key_of_the_file_administers_where_that_is_said() -> None:
    tables = {
        name: KeyConfig(env="", sha256=f"{number}" * 64, may_administer=bool(number))
        for number, name in enumerate(("plain", "ops"))
    }
    keys = Keys(settings_for("http://unused"), tables)
    rights = {
        name: (await keys.find(table.digest)).may_administer for name, table in tables.items()
    }
    assert rights == {"plain": False, "ops": True}


async def test_an_admins_key_alone_closes_a_proxy() -> None:
    for key in ("", "sk-other"):
        with pytest.raises(InvalidAPIKey):
            await found(key, api_keys="")


async def test_where_there_are_clients_keys_nobody_calls_without_one() -> None:
    tables = {"ui": KeyConfig(sha256="1" * 64)}
    for keys, configured in ((KEY, {}), ("", tables)):
        settings = settings_for("http://unused", api_keys=keys, allow_anonymous=True)
        with pytest.raises(InvalidAPIKey):
            await Keys(settings, configured).check({})


async def test_an_admins_key_does_not_close_a_proxy_that_is_open_and_is_known_there() -> None:
    assert await found("", **OPEN) is ANYBODY
    assert await found("sk-other", **OPEN) is ANYBODY
    assert (await found(ADMIN_KEY, **OPEN)).may_administer
    assert not ANYBODY.may_administer


@pytest.mark.parametrize("key", ["sk-a", "sk-c", "sk-wrong"])
async def test_a_key_is_compared_with_all_whichever_it_is(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("proxy.access.keys.hmac", SimpleNamespace(compare_digest=compare))
    keys = Keys(settings_for("http://unused", api_keys="sk-a,sk-b,sk-c"), {})
    with suppress(InvalidAPIKey):
        await keys.check({"authorization": f"Bearer {key}"})
    assert {len(other) for pair in compared for other in pair} == {32}
    assert len({other for _, other in compared}) == 3
