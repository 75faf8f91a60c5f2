"""Checks are run in a process of their own, and what they tell is what became of them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.environments import Environment
from scripts.progress import SetUpError
from tests.conformance.__main__ import main
from tests.conformance.clients import CLIENTS, Client
from tests.conformance.run import Result, Target, run_checks

pytestmark = pytest.mark.slow
TARGET = Target(
    name="vllm",
    base_url="http://here/v1",
    api_key="sk",
    model="m",
    vllm_url="http://there",
    asks_for_keys=False,
    embeddings_model="e",
    embeddings_url="http://here/v1",
    vllm_embeddings_url="http://elsewhere",
)
HEAD = "import pytest, os\nfeature = pytest.mark.feature\n"


@pytest.fixture
def environment() -> Environment:
    """This one, which has pytest as those of the clients have."""
    return Environment("ours", Path(sys.prefix), "")


def checks(tmp_path: Path, text: str) -> Client:
    file = tmp_path / "checks.py"
    file.write_text(HEAD + text)
    return replace(CLIENTS[0], checks=file)


def test_each_check_is_told_with_its_feature(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-user")
    client = checks(
        tmp_path,
        "@feature('chat')\ndef test_good(): pass\n"
        "@feature('stream')\ndef test_bad(): assert 1 == 2, 'one\\ntwo'\n"
        "@feature('tools')\ndef test_not(): pytest.skip('nothing there')\n"
        "@pytest.fixture\ndef broken(): raise OSError('no')\n"
        "@feature('stop')\ndef test_broken(broken): pass\n"
        "@feature('error-key')\ndef test_target(target):\n"
        "    assert (target.base_url, target.root_url) == ('http://here/v1', 'http://here')\n"
        "    assert not [name for name in os.environ if name.startswith('OPENAI_')]\n"
        "@feature('leaving')\ndef test_without(keyed): pass\n",
    )
    assert run_checks(client, environment, TARGET, tmp_path / "log") == [
        Result("chat", "test_good", "passed", ""),
        Result("stream", "test_bad", "failed", "AssertionError: one"),
        Result("tools", "test_not", "skipped", "Skipped: nothing there"),
        Result("stop", "test_broken", "failed", "OSError: no"),
        Result("error-key", "test_target", "passed", ""),
        Result("leaving", "test_without", "skipped", "Skipped: this vLLM asks for no key"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module\n", "no_such_module"),
        (
            "@feature('chat')\n@pytest.mark.parametrize('n', [1, 2])\ndef test_it(n): pass\n"
            "def test_end(): os._exit(0)\n",
            "exit code 0",
        ),
        ("@feature('chit')\ndef test_it(): pass\n", "unlisted features: chit"),
    ],
)
def test_a_file_that_is_not_run_to_its_end_is_no_pass(
    environment: Environment, tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(SetUpError, match=says):
        run_checks(checks(tmp_path, text), environment, TARGET, tmp_path / "log")


def test_a_client_that_there_is_not_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["conformance", "LangChain", "netscape"])
    assert main() == 2
    assert 'no such client: netscape; there are "openai-python"' in capsys.readouterr().err
