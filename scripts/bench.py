"""The environments of `make bench`: what it runs beside the project, made once per machine.

Their locks are `requirements/bench-*.txt`: LiteLLM to be measured, matplotlib to draw, py-spy to
profile. None of them enters the project's own environment.
"""

from pathlib import Path

from scripts.environments import Environment, cache_folder, python_version, stamp_of
from scripts.installer import ROOT, create, install
from scripts.progress import phase


def bench_lock(name: str) -> Path:
    """The lock of such an environment."""
    return ROOT / "requirements" / f"bench-{name}.txt"


def set_up_for_bench(name: str) -> Environment:
    """The environment `litellm`, `plots` or `profile`, made if it is not ready.

    Raises:
        SetUpError: a package could not be installed.
    """
    lock = bench_lock(name)
    stamp = stamp_of(lock)
    folder = cache_folder() / f"bench-{name}-python{python_version()}-{stamp}"
    environment = Environment(f"the environment bench-{name}", folder, stamp)

    def make() -> None:
        with phase(f"packages of bench-{name}"):
            create(environment)
            install(environment, lock)

    environment.ensure(make)
    return environment
