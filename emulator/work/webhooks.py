"""Webhooks: tell a client's own server that its job has ended, as often as RunPod would.

Whatever becomes of a webhook, the job stays as it is. Seen of RunPod: the body is what /status
shows, with the input and the webhook; three tries, 5 and 15 seconds apart.
"""

import asyncio
import logging
import secrets
from typing import Any, Final

import httpx
import msgspec

from emulator.settings import EndpointSettings
from emulator.work.job import Job

log = logging.getLogger("emulator")

MAX_PENDING: Final = 1000
"""Webhooks on their way or waiting for their next try; those beyond are not sent."""
MAX_AT_ONCE: Final = 20
TRY_SECONDS: Final = 10.0


class Webhooks:
    """The webhooks of one endpoint's jobs."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._pending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._http = httpx.AsyncClient(trust_env=False, timeout=TRY_SECONDS)

    def send(self, job: Job) -> None:
        """Begin to post the job's end to its webhook, if it has one; needs a running event loop."""
        if "webhook" not in job.extras:
            return
        if len(self._pending) >= MAX_PENDING:
            log.warning("endpoint %s: too many webhooks, none for %s", self._settings.id, job.id)
            return
        facts = {**job.view(), "input": job.input, "webhook": job.extras["webhook"]}
        body = msgspec.json.encode(dict(sorted(facts.items())))
        task = asyncio.create_task(self._deliver(str(facts["webhook"]), job.id, body))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def forget(self) -> None:
        """Send none of those that are still to be sent."""
        for task in self._pending:
            task.cancel()

    async def close(self) -> None:
        """Send none any more, and return when nothing is on its way."""
        self.forget()
        await asyncio.gather(*self._pending, return_exceptions=True)
        await self._http.aclose()

    async def _deliver(self, url: str, job_id: str, body: bytes) -> None:
        for pause_seconds in (0, *self._settings.webhook_pauses_seconds):
            await asyncio.sleep(pause_seconds)
            async with self._room:
                if await self._is_acknowledged(url, body):
                    return
        log.warning(
            "endpoint %s: the webhook of %s was not acknowledged", self._settings.id, job_id
        )

    async def _is_acknowledged(self, url: str, body: bytes) -> bool:
        try:
            # The status says all: what follows it may never end.
            async with self._http.stream("POST", url, content=body, headers=_headers()) as answer:
                return answer.is_success
        except (httpx.HTTPError, httpx.InvalidURL):
            return False


def _headers() -> dict[str, Any]:
    trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    agent = "Go-http-client/2.0"
    return {"content-type": "application/json", "traceparent": trace, "user-agent": agent}
