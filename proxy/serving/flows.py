"""Whose requests share their turns: a key's, or those of one tenant that a trusted key names."""

import re
from collections.abc import Mapping
from typing import Final

from proxy.access.keys import Key, Keys
from proxy.backends.fair_turns import Flow

TENANT_HEADERS: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
"""By which gateways of the Inference Extension name a tenant; llm-d's routers say the first."""
_TENANT: Final = re.compile(r"[!-~]{1,200}")


def flow_of(key: Key, keys: Keys, headers: Mapping[str, str]) -> Flow | None:
    """The flow of a request; None where there is just one, so that nothing has to wait for it."""
    if key.may_name_tenants and (tenant := _tenant(headers)):
        return Flow(f"{key.name}/{tenant}", key.limits.priority)
    is_one_of_several = keys.are_several or key.may_name_tenants
    return Flow(key.name, key.limits.priority) if is_one_of_several else None


def _tenant(headers: Mapping[str, str]) -> str:
    for name in TENANT_HEADERS:
        if (told := headers.get(name)) is not None and _TENANT.fullmatch(told):
            return told
    return ""
