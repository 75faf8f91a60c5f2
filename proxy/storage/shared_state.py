"""What copies of the proxy share in Redis: scripts run there, each as one step.

Scripts that are asked for at the same time go out together, over one connection. So a crowd of
requests costs little more than one, and that they wait for one another is not taken for a Redis
that is away. While it is away nobody waits for it: it is tried again every second.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from proxy.storage.patience import is_done_within

log = logging.getLogger(__name__)

PREFIX: Final = "runpod-openai-proxy"
"""What the names of all that is kept there begin with."""
PATIENCE_SECONDS: Final = 2.0
"""How long Redis may take for what is sent to it at a time."""
PAUSE_SECONDS: Final = 1.0
"""How long Redis is left alone when it has not answered."""
MAX_TOGETHER: Final = 200
"""How many scripts go out at a time."""


T = TypeVar("T")


class RedisAway(Exception):
    """Redis could not be asked, or has not answered: the script may have run, or not."""


class Script:
    """A script in Lua."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class _Call:
    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any]
    answer: asyncio.Future[Any]


class SharedState:
    """One Redis; `url` is as redis-py has it."""

    def __init__(self, url: str) -> None:
        self._redis = _redis(url)
        self._waiting: list[_Call] = []
        self._sending: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        """While Redis is away, when to ask it again, on the loop's clock; else 0."""

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """What a script returns; raises RedisAway."""
        loop = asyncio.get_running_loop()
        if self._retry_at:
            if loop.time() < self._retry_at:
                raise RedisAway
            self._retry_at = loop.time() + PAUSE_SECONDS  # one request tries it, not all
        call = _Call(script, keys, arguments, loop.create_future())
        self._waiting.append(call)
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await call.answer

    async def close(self) -> None:
        """Ask it nothing any more."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        await self._redis.aclose()

    async def _send(self) -> None:
        batch: list[_Call] = []
        try:
            while self._waiting:
                batch, self._waiting = (
                    self._waiting[:MAX_TOGETHER],
                    self._waiting[MAX_TOGETHER:],
                )
                answers = await _in_time(self._answers(batch))
                for call, answer in zip(batch, answers, strict=True):
                    if not call.answer.done():  # nor was its request left
                        call.answer.set_result(answer)
                if self._retry_at:
                    log.info("Redis is there again")
                    self._retry_at = 0.0
        except (RedisError, OSError, TimeoutError) as exc:
            self._note_away(exc)
        finally:
            self._sending = None
            left, self._waiting = [*batch, *self._waiting], []
            for call in left:
                if not call.answer.done():
                    call.answer.set_exception(RedisAway())

    async def _answers(self, batch: list[_Call]) -> list[Any]:
        """What the scripts return, which Redis is told if it does not know them; RedisError."""
        answers = await self._evaluated(batch)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            for script in {batch[n].script for n in unknown}:
                await self._redis.script_load(script.text)
            again = await self._evaluated([batch[n] for n in unknown])
            for n, answer in zip(unknown, again, strict=True):
                answers[n] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _evaluated(self, batch: list[_Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in batch:
                pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers

    def _note_away(self, exc: Exception) -> None:
        if not self._retry_at:
            log.error("Redis is away: %s", _reason(exc))
        self._retry_at = asyncio.get_running_loop().time() + PAUSE_SECONDS


async def _in_time(work: Awaitable[T]) -> T:
    """What the work returns; raises TimeoutError when Redis has had its time."""
    task = asyncio.ensure_future(work)
    try:
        if not await is_done_within(task, PATIENCE_SECONDS):
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # else asyncio would log that nobody asked for it


async def reach(url: str) -> str | None:
    """Why this Redis cannot be used, if it cannot; without a password."""
    async with _redis(url) as redis:
        try:
            await _in_time(redis.eval("return 1", 0))
        except (RedisError, OSError, TimeoutError) as exc:
            return _reason(exc)
    return None


def _redis(url: str) -> Redis:
    return Redis.from_url(
        url,
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),  # what has run must not run again
        decode_responses=True,
    )


def _reason(exc: Exception) -> str:
    return str(exc) or "it has not answered in time"
