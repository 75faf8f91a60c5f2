"""Road: the public ports of one endpoint's workers, and what happens to the bytes that use them.

A container has a network of its own; here workers share one machine, so each is told an address of
its own to listen on.
"""

import secrets
import sys
from typing import Any

from emulator.road.conditions import Conditions
from emulator.road.connection import Connection
from emulator.road.public_port import PUBLIC_IP, PublicPort
from emulator.settings import EndpointSettings, RoadSettings


class Road:
    """The public ports of every worker of one endpoint."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._internal_ports = settings.tcp_ports
        self._conditions = Conditions(settings.road)
        self._workers: dict[str, dict[int, PublicPort]] = {}
        self.connections: set[Connection] = set()

    def open(self, worker_id: str) -> dict[str, str]:
        """Open the ports of a worker that is about to start; what its environment says of them.

        Raises:
            OSError: there is no port left.
        """
        if not self._internal_ports:
            return {}
        host = _own_address()
        ports = self._workers[worker_id] = {}
        for internal in self._internal_ports:
            ports[internal] = self._port(host, internal)
        numbers = {f"RUNPOD_TCP_PORT_{port}": str(one.number) for port, one in ports.items()}
        return {"RUNPOD_PUBLIC_IP": PUBLIC_IP, "WORKER_DIRECT_LISTEN_HOST": host, **numbers}

    def close(self, worker_id: str) -> None:
        """Close the ports of a worker that has ended."""
        for port in self._workers.pop(worker_id, {}).values():
            port.close()

    def follow(self, settings: RoadSettings) -> None:
        """Be like this from now on, for the connections that there are as well."""
        self._conditions.now = settings
        self._heed()

    def reset(self) -> None:
        """Be as at the start again."""
        self._conditions.reset()
        self._heed()

    def move(self) -> None:
        """Change the public ports of every worker; the workers are not told.

        Raises:
            OSError: there is no port left.
        """
        for port in self._ports():
            port.move()
        self.cut()

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        connections = list(self.connections)
        for connection in connections:
            connection.cut()
        return len(connections)

    def view(self) -> dict[str, Any]:
        """Each worker's ports, for the control API."""
        workers = {
            worker_id: {f"{internal}/tcp": port.view() for internal, port in ports.items()}
            for worker_id, ports in self._workers.items()
        }
        return {"conditions": self._conditions.now.model_dump(), "workers": workers}

    def _heed(self) -> None:
        for port in self._ports():
            port.heed()
        for connection in self.connections:
            connection.heed()

    def _ports(self) -> list[PublicPort]:
        return [port for ports in self._workers.values() for port in ports.values()]

    def _port(self, host: str, internal: int) -> PublicPort:
        return PublicPort(host, internal, self._conditions, self.connections)


def _own_address() -> str:
    """An address of loopback that no other worker has; outside Linux there is only one."""
    if sys.platform != "linux":
        return PUBLIC_IP
    return "127." + ".".join(str(1 + secrets.randbelow(254)) for _ in range(3))
