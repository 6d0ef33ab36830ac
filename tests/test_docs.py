"""The pages name files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The changelog also names what is gone.
PAGES = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "CHANGELOG.md"}


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    """Each path in backticks: from the root, or from the package."""
    for path in re.findall(
        r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml|sh|cfg))`", page.read_text()
    ):
        found = (ROOT / path, ROOT / "surrogate_flow" / path)
        assert any(p.is_file() for p in found), path
