"""EmulatorState: the parts of one running emulator, and where a request finds them."""

import asyncio
from dataclasses import dataclass, field

from starlette.applications import Starlette

from emulator.endpoint import Endpoint
from emulator.gateway.faults import Faults
from emulator.gateway.limits import Meter, Quotas
from emulator.settings import EmulatorSettings


@dataclass(eq=False, slots=True)
class EmulatorState:
    """What an emulator consists of, for as long as its application lives."""

    settings: EmulatorSettings
    endpoints: dict[str, Endpoint]
    faults: Faults
    quotas: Quotas
    """Of the REST API, whose callers are all one here."""
    meters: dict[tuple[str, str], Meter] = field(default_factory=dict)
    """The calls that limits count, by endpoint id and operation."""
    is_closing: bool = False
    """True once the workers have gone: every held call returns."""

    async def close(self) -> None:
        """Stop all workers, until none of their processes is left, then end all held calls."""
        async with asyncio.TaskGroup() as group:
            for endpoint in self.endpoints.values():
                group.create_task(endpoint.scaler.stop())
        self.is_closing = True
        for endpoint in self.endpoints.values():
            await endpoint.close()

    def kill_stopping(self) -> None:
        """Kill the workers that are stopping: they get no more time."""
        for endpoint in self.endpoints.values():
            endpoint.scaler.kill_stopping()


def state_of(app: Starlette) -> EmulatorState:
    """The state that `create_app` has given the application; a request has it as `request.app`."""
    state: EmulatorState = app.state.emulator
    return state
