"""The pages name files that are there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment

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


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/python.ipynb"])
def test_training_from_python_runs(page, tmp_path):
    """The script as it stands, and the notebook cell by cell; the page has README's."""
    text = (ROOT / page).read_text("utf-8")
    if page.endswith("ipynb"):
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        script = "\n".join("".join(cell["source"]) for cell in cells)
    else:
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        (script,) = (block for block in blocks if "run_callbacks" in block)
        if page != "README.md":
            assert script in (ROOT / "README.md").read_text("utf-8")
            return
    (tmp_path / "train.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env={**environment(), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation error: " in done.stdout
    run = tmp_path / "runs" / "python"
    for name in ("checkpoints/best.ckpt", "prediction.png", "telemetry.csv"):
        assert (run / name).is_file(), name
