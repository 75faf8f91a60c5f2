"""The one handler: takes a job from the runpod SDK, asks vLLM, yields the job's outputs."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from worker.answer import Answer, VLLMClient
from worker.direct.road import DirectRoad
from worker.errors import ModelStartFailed, UnexpectedError, WorkerError
from worker.job_input import channel_of, parse, wants_frames
from worker.outputs import BareOutputs, FramedOutputs, Output, Outputs
from worker.sealing import Seal, Seals
from worker.server import ServedModel

log = logging.getLogger(__name__)

Job = dict[str, Any]
Handler = Callable[[Job], AsyncGenerator[Output, None]]


def create_handler(
    client: VLLMClient,
    models: Sequence[ServedModel],
    road: DirectRoad | None = None,
    seals: Seals | None = None,
) -> Handler:
    """A handler that asks this vLLM, which serves these models; the first is for input that names
    none. Jobs that ask for a direct channel take the road, if there is one; the seals open sealed
    ones.

    It is a plain asynchronous generator function, since the SDK looks for exactly that
    (`inspect.isasyncgenfunction`). The SDK posts each output before it asks for the next.
    """

    model = str(models[0]["id"]) if models else None
    seals = seals or Seals()

    async def handler(job: Job) -> AsyncGenerator[Output, None]:
        try:
            job, seal = seals.open(job)
        except WorkerError as error:
            for output in _outputs_for(job, ()).fail(error):
                yield output
            return
        channel = channel_of(job)
        if road is None or channel is None:
            said = ask(job, _outputs_for(job, models, seal))
        else:
            run = _new_run(seal)
            relay, told = road.relay(channel, run)
            said = ask(job, FramedOutputs(run, models, channel=told, seal=seal))
            said = said if relay is None else relay.outputs(said)
        async with aclosing(said):
            async for output in said:
                yield output

    async def ask(job: Job, outputs: Outputs) -> AsyncGenerator[Output, None]:
        answer: Answer | None = None
        try:
            answer = client.ask(parse(job, model))
            _close_with_job(answer)
            await answer.begin()
            while not answer.is_complete:
                for output in outputs.add(answer, await answer.next_piece()):
                    yield output
        except WorkerError as error:
            for output in outputs.fail(error):
                yield output
        except Exception:  # a job ends here; its client must hear of it
            log.exception("job %s failed", job.get("id"))
            for output in outputs.fail(UnexpectedError()):
                yield output
        finally:
            if answer is not None:
                answer.close()

    return handler


def create_refusing_handler(error: ModelStartFailed) -> Handler:
    """A handler that ends each job with this error, for a worker whose model did not start."""

    async def handler(job: Job) -> AsyncGenerator[Output, None]:
        for output in _outputs_for(job, ()).fail(error):
            yield output

    return handler


def _outputs_for(job: Job, models: Sequence[ServedModel], seal: Seal | None = None) -> Outputs:
    if seal is None and not wants_frames(job):
        return BareOutputs()
    return FramedOutputs(_new_run(seal), models, seal=seal)


def _new_run(seal: Seal | None) -> str:
    return secrets.token_hex(4) if seal is None else seal.run


def _close_with_job(answer: Answer) -> None:
    """Close the answer when the task that reads it ends, however it ends: the SDK's for this job,
    or the relay's.

    A cancelled job's task is most often waiting for a post, while the handler stands at a `yield`.
    Nothing is raised in the handler then; it would only be closed by the garbage collector, and
    vLLM would generate in vain until that happens.
    """
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(lambda _: answer.close())
