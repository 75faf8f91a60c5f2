"""What the documents name exists."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_FILE = re.compile(r"\.(?:py|md|toml|json|sh|txt|yml|lock)$")
FOLDERS = "proxy|worker|emulator|tests|docs|scripts|deploy|requirements"
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}


def test_every_test_named_in_the_reliability_table_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text()))
    defined = set(re.findall(r"def (test_\w+)", "\n".join(TESTS.values())))
    assert len(named) > 20
    assert named - defined == set()


@pytest.mark.parametrize("document", ["architecture", "contributing", "reliability"])
def test_files_are_named_by_their_whole_paths(document: str) -> None:
    words = re.findall(r"`([\w./-]+)`", (ROOT / f"docs/{document}.md").read_text())
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = {word for word in words if word.partition("/")[0] in folders or _FILE.search(word)}
    assert len(named) > 5
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_tree_of_the_proxy_is_what_there_is() -> None:
    tree = re.search(
        r"```\nproxy/\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL
    )
    assert tree is not None
    folders, shown = ["proxy/"], set()
    for indent, name in re.findall(r"^( +)(\S+)", tree[1], re.MULTILINE):
        del folders[len(indent) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            shown.add("".join([*folders, name]))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "proxy").rglob("*.py")}
    assert shown == {path for path in there if not path.endswith("__init__.py")}


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
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    names = [Path(document).parent / link for link in links] + [Path(path) for path in paths]
    assert [str(name) for name in names if not (ROOT / name).exists()] == []


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
