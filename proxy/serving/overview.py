"""How endpoints and models are now, from what is known already: nobody is asked, nothing woken."""

from collections import Counter
from typing import Any

from proxy.access.keys import Key
from proxy.backends.health import Health
from proxy.backends.health_monitor import HealthMonitor
from proxy.backends.registry import BackendRegistry
from proxy.serving.models import Models


def endpoints_now(backends: BackendRegistry, models: Models) -> list[dict[str, Any]]:
    """Each endpoint that is served: its state, its workers, and what is under way."""
    asked: dict[int, list[str]] = {}
    for model in models:
        for one in filter(None, (model, model.fallback)):
            asked.setdefault(id(one.backend), []).append(model.name)
    told: dict[str, dict[str, Any]] = {}
    for name, backend in backends.endpoints():
        in_flight = backend.in_flight()
        if id(backend) not in asked and not in_flight.waiting + in_flight.running:
            continue  # of a former configuration
        entry = told.setdefault(name, {"name": name, "models": [], "requests": Counter()})
        if (spent := backends.spent_today(name)) is not None:
            entry["daily_budget"] = {"dollars": spent[1], "spent": round(spent[0], 6)}
        entry["models"] += asked.get(id(backend), [])
        entry["requests"].update(
            waiting=in_flight.waiting, running=in_flight.running, in_line=in_flight.in_line
        )
        entry |= _state(backend.monitor)
    return list(told.values())


def models_now(models: Models, key: Key) -> list[dict[str, Any]]:
    """The models that this key may use."""
    listed = models.listing(key)["data"]
    return [{"id": entry["id"], "state": entry.get("state", "ready")} for entry in listed]


def under_way(endpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """What of it is kept in the history: requests under way, and workers as far as known."""
    requests, workers = Counter[str](), Counter[str]()
    for endpoint in endpoints:
        requests.update(endpoint["requests"])
        workers.update(endpoint["workers"] or {})
    is_known = any(endpoint["workers"] is not None for endpoint in endpoints)
    return {"requests": dict(requests), "workers": dict(workers) if is_known else None}


def _state(monitor: HealthMonitor | None) -> dict[str, Any]:
    if monitor is None:
        return {"state": "ready", "reason": "", "workers": None, "in_queue": None, "start": None}
    seen, clock = monitor.workers, monitor.clock
    return {
        "state": monitor.state,
        "reason": monitor.reason,
        "workers": None if seen is None else _workers(seen),
        "in_queue": None if seen is None else seen.in_queue,
        "start": {
            "elapsed_seconds": clock.elapsed_seconds,
            "usual_seconds": clock.usual_seconds,
            "phase": clock.phase,
        },
    }


def _workers(seen: Health) -> dict[str, int]:
    return {
        "idle": seen.up - seen.running,
        "running": seen.running,
        "starting": seen.initializing,
        "throttled": seen.throttled,
        "unhealthy": seen.unhealthy,
    }
