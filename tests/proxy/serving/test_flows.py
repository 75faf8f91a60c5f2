"""Whose requests share their turns: a key's, or a tenant's of a key that may name tenants."""

import pytest

from proxy.access.keys import Key, KeyLimits, Keys
from proxy.backends.fair_turns import Flow
from proxy.config.settings import Settings
from proxy.config.tables import KeyConfig
from proxy.serving.flows import TENANT_HEADERS, flow_of
from tests.proxy.conftest import settings_for

LLM_D, GATEWAY = TENANT_HEADERS
PLAIN = Key("k", limits=KeyLimits(priority=3))
TRUSTED = Key("k", limits=KeyLimits(priority=3), may_name_tenants=True)


def keys(settings: Settings) -> Keys:
    """All keys that there are."""
    configured: dict[str, KeyConfig] = {}
    return Keys(settings, configured)


ONE = keys(settings_for("http://runpod"))
SEVERAL = keys(settings_for("http://runpod", api_keys="sk-1,sk-2"))


def test_a_trusted_key_names_a_tenant_which_has_turns_by_the_keys_priority() -> None:
    assert flow_of(TRUSTED, SEVERAL, {GATEWAY: "acme"}) == Flow("k/acme", 3)
    assert flow_of(TRUSTED, SEVERAL, {LLM_D: "acme"}) == Flow("k/acme", 3)
    assert flow_of(TRUSTED, SEVERAL, {GATEWAY: "other", LLM_D: "acme"}) == Flow("k/acme", 3)
    assert flow_of(TRUSTED, ONE, {GATEWAY: "acme"}) == Flow("k/acme", 3)


def test_a_tenant_is_one_of_its_key_alone() -> None:
    other = Key("other", may_name_tenants=True)
    assert flow_of(other, SEVERAL, {LLM_D: "acme"}) != flow_of(TRUSTED, SEVERAL, {LLM_D: "acme"})


@pytest.mark.parametrize("tenant", ["", "two words", "t" * 201, "t\u00e9", "a\nb"])
def test_what_can_be_no_tenants_name_is_none(tenant: str) -> None:
    assert flow_of(TRUSTED, SEVERAL, {LLM_D: tenant}) == Flow("k", 3)
    assert flow_of(TRUSTED, SEVERAL, {LLM_D: tenant, GATEWAY: "acme"}) == Flow("k/acme", 3)


def test_who_is_not_trusted_stays_in_its_keys_flow_whatever_it_says() -> None:
    assert flow_of(PLAIN, SEVERAL, {GATEWAY: "me", LLM_D: "myself"}) == Flow("k", 3)


def test_where_there_is_one_key_and_no_tenant_there_is_nobody_to_be_fair_to() -> None:
    assert flow_of(PLAIN, ONE, {LLM_D: "acme"}) is None
    assert flow_of(TRUSTED, ONE, {}) == Flow("k", 3)
