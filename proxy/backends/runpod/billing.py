"""What RunPod bills for endpoints, by its REST API, version 2 (`listServerlessBilling`)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import httpx
import msgspec

PATH: Final = "/v2/billing/serverless"

Bill = Mapping[tuple[str, str], float]
"""Dollars by RunPod's id of an endpoint, and a day as in 2027-01-31."""


class BillUnavailable(Exception):
    """RunPod has not told what it bills; the message says why, without a key."""


async def bill(
    client: httpx.AsyncClient, base_url: str, api_key: str, since: str, endpoints: Iterable[str]
) -> Bill:
    """What these endpoints of one account have cost since a day.

    Raises:
        BillUnavailable: RunPod does not tell.
    """
    try:
        response = await client.get(
            f"{base_url}{PATH}",
            params={"startTime": f"{since}T00:00:00Z", "bucketSize": "day"},
            headers={"authorization": f"Bearer {api_key}"},
        )
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise BillUnavailable(f"RunPod could not be reached: {type(exc).__name__}") from None
    if response.status_code in (401, 403):
        raise BillUnavailable(
            f"RunPod refuses the key (HTTP {response.status_code}): RUNPOD_REST_API_KEY needs one "
            "that may read billing"
        )
    if response.status_code != 200:
        raise BillUnavailable(f"RunPod answered HTTP {response.status_code}")
    return _by_day(response.content, set(endpoints))


def _by_day(content: bytes, endpoints: set[str]) -> Bill:
    found: dict[tuple[str, str], float] = defaultdict(float)
    try:
        for record in msgspec.json.decode(content)["records"]:
            if (endpoint := record["serverlessId"]) in endpoints:
                day = datetime.fromisoformat(record["startTime"]).strftime("%Y-%m-%d")
                found[endpoint, day] += _dollars(record["totalAmount"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BillUnavailable("RunPod's answer is no bill that is understood") from None
    return found


def _dollars(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)
