"""What operators read names settings that there are."""

import re

import pytest

from proxy.config.settings import environment_names
from tests.deploy.conftest import ROOT

DOCUMENTS = [
    *("README.md", "compose.yaml"),
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("deploy/**/*.*") if path.is_file()),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_variable_with_our_prefix_is_a_setting(document: str) -> None:
    named = re.findall(r"\bPROXY_[A-Z_]+[A-Z]\b", (ROOT / document).read_text())
    assert set(named) <= set(environment_names())
