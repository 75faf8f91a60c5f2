"""What the documents name exists."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}


def test_every_test_named_in_the_reliability_table_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    defined = set(re.findall(r"def (test_\w+)", "\n".join(TESTS.values())))
    assert len(named) > 20
    assert named - defined == set()


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "emulator/README.md",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
    ],
)
def test_every_file_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:proxy|worker|emulator|tests|docs|scripts)/[\w./-]*)`", text)
    names = [Path(document).parent / link for link in links] + [Path(path) for path in paths]
    assert [str(name) for name in names if not (ROOT / name).exists()] == []
    files = re.findall(r"`(test_\w+\.py)`", text)
    assert [name for name in files if name not in {path.name for path in TESTS}] == []


def test_the_guides_name_the_versions_they_are_tried_with() -> None:
    lock = (ROOT / "requirements/open-webui.txt").read_text()
    pinned = re.search(r"^open-webui==(\S+)", lock, re.MULTILINE)
    assert pinned is not None
    assert f"Tried with Open WebUI {pinned[1]} " in (ROOT / "docs/guides/open-webui.md").read_text()
    packages = json.loads((ROOT / "requirements/node/package-lock.json").read_text())["packages"]
    version = packages["node_modules/librechat-data-provider"]["version"]
    assert f"`librechat-data-provider`, {version})" in (
        ROOT / "docs/guides/librechat.md"
    ).read_text().replace("\n", " ")
