"""Running emulators for tests: real ones, served by their own server, with clients of both faces.

Any test may use `emulator()` or `one_endpoint()`; `uvicorn.Server` alone would take five seconds to
end a worker's held polls.
"""

import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from starlette.applications import Starlette

from emulator.app import create_app
from emulator.endpoint import QueueEndpoint
from emulator.gateway.state import state_of
from emulator.server import Server
from emulator.settings import EmulatorSettings
from emulator.work.queue import Queue
from tests.waiting import wait_until

API_KEY = "rpa_test"
HANDLERS = Path(__file__).parent / "handlers"
SCRIPTED = f"{sys.executable} {HANDLERS / 'scripted.py'}"
PLAIN = f"{sys.executable} {HANDLERS / 'plain.py'}"
LIGHT = f"{sys.executable} {HANDLERS / 'light.py'}"
WEB = f"{sys.executable} {HANDLERS / 'web.py'}"
DEADLINE_SECONDS = 60.0

Json = dict[str, Any]
T = TypeVar("T")


class Client:
    """Both faces of one endpoint over HTTP; answers come back parsed."""

    def __init__(self, base_url: str, endpoint_id: str) -> None:
        self.url = f"{base_url}/v2/{endpoint_id}"
        self.relay_url = f"{base_url}/lb/{endpoint_id}"
        self.http = httpx.Client(
            headers={"Authorization": f"Bearer {API_KEY}"},
            timeout=DEADLINE_SECONDS,
            limits=httpx.Limits(max_connections=None),
        )

    def get(self, path: str, **params: Any) -> httpx.Response:
        """A GET below the endpoint."""
        return self.http.get(self.url + path, params=params)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        """A POST below the endpoint, with a JSON body if there is one."""
        return self.http.post(self.url + path, json=body)

    def relayed(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        """A call to a worker of a load-balancing endpoint."""
        return self.http.request(method, self.relay_url + path, **options)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """A call to /_emulator; its parsed answer."""
        url = self.url.partition("/v2/")[0] + "/_emulator" + path
        return self.http.request(method, url, json=body).raise_for_status().json()

    def inject(self, **fault: Any) -> None:
        """Put a fault in force."""
        self.control("POST", "/faults", fault)

    def take(self, worker_id: str | None = None) -> tuple[str, str]:
        """Play a worker that takes one job: the worker's id and the job's."""
        worker_id = worker_id or uuid.uuid4().hex
        answer = self.get(f"/job-take/{worker_id}", gpu="x").raise_for_status()
        return worker_id, str(answer.json()["id"])

    def chunk(self, worker_id: str, job_id: str, output: Any) -> None:
        """Play a handler that yields."""
        self.post(f"/job-stream/{worker_id}/{job_id}", {"output": output}).raise_for_status()

    def done(self, worker_id: str, job_id: str, result: Any) -> None:
        """Play a handler that returns."""
        self.post(f"/job-done/{worker_id}/{job_id}", result).raise_for_status()

    def run(self, job_input: Json, **extras: Any) -> str:
        """Submit a job; its id."""
        answer = self.post("/run", {"input": job_input, **extras}).raise_for_status().json()
        return str(answer["id"])

    def status(self, job_id: str) -> Json:
        """What /status says."""
        return dict(self.get(f"/status/{job_id}").raise_for_status().json())

    def stream(self, job_id: str, wait: int | None = None) -> Json:
        """One /stream call."""
        params = {} if wait is None else {"wait": wait}
        return dict(self.get(f"/stream/{job_id}", **params).raise_for_status().json())

    def news(self, job_id: str) -> Json:
        """The first answer to /stream with chunks in it, however long they take to come."""
        while True:
            answer = self.stream(job_id, 20_000)
            if answer["stream"] or answer["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                return answer

    def outputs(self, job_id: str) -> list[Any]:
        """Every chunk of the job's stream, until it is terminal and empty."""
        outputs: list[Any] = []
        while True:
            answer = self.stream(job_id)
            outputs += [chunk["output"] for chunk in answer["stream"]]
            if not answer["stream"] and answer["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                return outputs

    def result(self, job_id: str) -> Json:
        """What /status says once the job is over."""
        return dict(self.get(f"/status-sync/{job_id}").raise_for_status().json())

    def health(self) -> Json:
        """What /health says."""
        return dict(self.get("/health").raise_for_status().json())

    def admitted(self, operation: str) -> int:
        """How many calls have come that are counted, which is where `rate_limits` hold.

        A call is counted before it is held.
        """
        calls = self.control("GET", "")["endpoints"][self.url.rpartition("/")[2]]["calls"]
        return int(calls.get(operation, {"admitted": 0})["admitted"])

    def workers(self, state: str) -> int:
        """How many workers are in this state."""
        return int(self.health()["workers"][state])


@contextmanager
def emulator(**endpoints: Json) -> Iterator[Callable[[str], Client]]:
    """Serve an emulator with these endpoints, by id; yields a maker of clients by endpoint id."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    settings = EmulatorSettings.model_validate(
        {
            "port": listener.getsockname()[1],
            "api_key": API_KEY,
            "endpoints": [{"id": name, **values} for name, values in endpoints.items()],
        }
    )
    app = create_app(settings)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    eventually(lambda: server.started)
    clients: list[Client] = []

    def client(endpoint_id: str) -> Client:
        clients.append(Client(settings.base_url, endpoint_id))
        return clients[-1]

    try:
        yield client
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        for one in clients:
            one.http.close()
        assert not thread.is_alive(), "the emulator did not stop"


@contextmanager
def one_endpoint(**settings: Any) -> Iterator[Client]:
    """An emulator with the endpoint `ep` alone, and a client of it."""
    with emulator(ep=settings) as client:
        yield client("ep")


def queue_of(app: Starlette) -> Queue:
    """The queue of the endpoint `ep`, for a test that looks inside without HTTP."""
    endpoint = state_of(app).endpoints["ep"]
    assert isinstance(endpoint, QueueEndpoint)
    return endpoint.queue


def eventually(claim: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> None:
    """Return as soon as the claim is true; fail when it still is not after a generous while."""
    wait_until(lambda: bool(claim()), seconds=seconds)


def while_held(call: Callable[[], T], act: Callable[[], object]) -> T:
    """Make a call that is held, act meanwhile, and return the call's answer.

    Nothing shows from outside that a call is held, so it gets a moment to arrive; should the act
    win the race all the same, the answer has to be the same.
    """
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(call)
        time.sleep(0.05)
        act()
        return answer.result(timeout=DEADLINE_SECONDS)
