"""The pages name files that are there."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nbmake.nb_run import NotebookRun
from programs import environment

from surrogate_flow.cli.app import main
from surrogate_flow.dataset import Archive
from surrogate_flow.report.folder.run_folder import RunSummary
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.metrics import field_metrics

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


def training(page):
    """The script of a page that trains."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    (script,) = (block for block in blocks if "run_callbacks" in block)
    return script


def test_the_campaign_of_the_page_is_imported(tmp_path, monkeypatch, capsys):
    """As its attributes say, and as its table says."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "import.md").read_text("utf-8")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})
    (table,) = re.findall(r"( {4}run_id,.*?)\n\n", page, re.DOTALL)
    Path("runs.csv").write_text(textwrap.dedent(table))
    main(["import", "run_*.nc", "--output", "plume.zarr"])
    (shown,) = re.findall(r"( {4}Data set: .*?)\n\n", page, re.DOTALL)
    printed = " ".join(capsys.readouterr().out.split())
    for line in textwrap.dedent(shown).split("\n  ")[1:]:
        assert " ".join(line.split()) in printed
    main(["import", "run_*.nc", "--output", "t.zarr", "--parameters", "runs.csv"])
    both = [
        Archive(tmp_path / f"{name}.zarr").spec.parameters for name in ("plume", "t")
    ]
    for of_files, of_table in zip(*both, strict=True):
        assert (of_files.name, of_files.low) == (of_table.name, of_table.low)


def test_the_page_has_all_names_of_an_outcome():
    """Of the file, and of the errors in it."""
    page = (ROOT / "docs" / "outcome.md").read_text("utf-8")
    spec = Heat2D(cells=(4, 4)).spec
    errors = {name.replace("temperature", "u") for name in field_metrics(spec, "val_")}
    for name in {field.name for field in dataclasses.fields(RunSummary)} | errors:
        assert f"`{name}`" in page


def test_the_page_has_the_script_of_readme():
    assert training("docs/python.md") == training("README.md")


def test_the_reference_has_all_public_names():
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    for package in re.findall("currentmodule:: (.*)", page):
        for name in importlib.import_module(package).__all__:
            assert re.search(rf"^   {name}$|^`{name}` is", page, re.MULTILINE), name


def test_the_notebook_runs_in_jupyter(tmp_path, monkeypatch):
    """Each cell, of fewer simulations, in a kernel of its own; none has kept what it left."""
    page = ROOT / "docs" / "tutorial.ipynb"
    for cell in json.loads(page.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs"), "strip its outputs"
    shorter = page.read_text("utf-8").replace("simulations=200", "simulations=40")
    assert "simulations=40" in shorter
    (tmp_path / page.name).write_text(shorter, "utf-8")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SURROGATE_FLOW_REPORT", "")  # left out in other tests
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    done = NotebookRun(tmp_path / page.name, default_timeout=250).execute()
    assert done.error is None, done.error.trace
    left = [output for cell in done.nb.cells for output in cell.get("outputs", [])]
    said = [str(output.get("data", {}).get("text/plain")) for output in left]
    assert any(line.startswith("Validation error: ") for line in said)
    assert (tmp_path / "runs" / "tutorial" / "report.html").is_file()


def test_training_from_python_runs(tmp_path):
    """The script of README as it stands."""
    (tmp_path / "train.py").write_text(training("README.md"))
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation error: " in done.stdout
    run = tmp_path / "runs" / "python"
    left = ("checkpoints/best.ckpt", "prediction.png", "telemetry.csv", "metrics.csv")
    for name in left:
        assert (run / name).is_file(), name
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "runs"}
