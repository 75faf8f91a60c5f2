"""The systemd unit, as systemd itself reads it."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from proxy.backends.transport import MAX_CONNECTIONS
from proxy.config.settings import MAX_POLL_SECONDS, Settings, environment_names
from proxy.http.server import OTHER_DESCRIPTORS
from tests.deploy.conftest import ROOT, output_of

UNIT = ROOT / "deploy/systemd/runpod-openai-proxy.service"
MAX_EXPOSURE = 15
"""In tenths, of 100: what is left is that a proxy has a network."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze"
)


def value_of(name: str) -> str:
    [value] = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(value)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is on this machine."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(value_of("ExecStart"), sys.executable))
    return copy


@needs_systemd
@pytest.mark.slow
def test_systemd_finds_nothing_to_say_against_it(unit: Path) -> None:
    assert output_of("systemd-analyze", "verify", "--recursive-errors=no", unit) == ""


@needs_systemd
@pytest.mark.slow
def test_it_may_do_little_but_serve(unit: Path) -> None:
    analyze = ("systemd-analyze", "security", "--offline=yes", "--no-pager")
    output_of(*analyze, f"--threshold={MAX_EXPOSURE}", unit)


def test_its_folder_and_variables_are_those_of_the_proxy() -> None:
    name, _, folder = value_of("Environment").partition("=")
    assert name in environment_names()
    assert folder == f"/var/lib/{value_of('StateDirectory')}" == value_of("WorkingDirectory")


def test_the_proxy_is_given_time_to_drain_and_files_for_its_connections() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    assert int(value_of("TimeoutStopSec")) >= drain + MAX_POLL_SECONDS + 1 + 30
    connections = Settings.model_fields["max_connections"].default
    assert int(value_of("LimitNOFILE")) >= connections + MAX_CONNECTIONS + OTHER_DESCRIPTORS
