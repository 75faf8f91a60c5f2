"""The code blocks of the documents, so that tests can run them as they are written."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
ADDRESS = "127.0.0.1:8080"
"""Where the documents say that the proxy is."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    def for_proxy_at(self, base_url: str) -> str:
        """The text with the address of a running proxy in it."""
        return self.text.replace(ADDRESS, re.sub(r"^http://|/v1$", "", base_url))

    def commands(self) -> list[str]:
        """The commands after each `$`, with their continuation lines."""
        return re.findall(r"^\$ (.*(?:\n .*)*)", self.text, re.MULTILINE)


def blocks(language: str, *documents: Path) -> list[Block]:
    """The blocks in one language of some documents."""
    return [
        block
        for document in documents
        for block in _blocks_of(document)
        if block.language == language
    ]


def _blocks_of(document: Path) -> list[Block]:
    text = document.read_text()
    found = []
    for match in re.finditer(r"^( *)```(\w+)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        indent, language, inner = match.groups()
        dedented = re.sub(rf"^{indent}", "", inner, flags=re.MULTILINE)
        line = text[: match.start()].count("\n") + 1
        found.append(Block(document, line, language, dedented))
    return found
