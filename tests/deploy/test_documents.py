"""What operators read names settings and alerts that there are."""

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


def test_every_alert_has_a_row_that_says_what_to_do() -> None:
    rules = "".join(path.read_text() for path in ROOT.glob("deploy/prometheus/*.yml"))
    alerts = re.findall(r"- alert: (\w+)", rules)
    rows = re.findall(r"^\| `(Proxy\w+)` \|", (ROOT / "docs/operate.md").read_text(), re.M)
    assert sorted(alerts or rows) == sorted(rows)
