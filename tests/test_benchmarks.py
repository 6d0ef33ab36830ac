"""The benchmarks run in their tiny form and write what they measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", ["stream", "reservoir", "clients", "ensemble", "soak"])
def test_writes_its_rows(name, tmp_path):
    """A list of cases, each with its value, unit, peer, peer's value and their ratio."""
    file = tmp_path / "rows.json"
    subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--json", str(file)],
        check=True,
        timeout=110,
    )
    rows = json.loads(file.read_text())
    assert len(rows) >= 4
    for row in rows:
        assert set(row) == {"case", "value", "unit", "peer", "peer_value", "ratio"}
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"], rel=0.01)
        assert row["value"] > 0


def call(name, *words, cwd):
    """Run a benchmark in a folder."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["laptop", "large", "fully_connected", "fno", "unet"])
def test_experiments_of_the_papers_run(name, tmp_path):
    """Each is a comparison; four batches of it."""
    call("papers", name, "--quick", "--arms", "reservoir", cwd=tmp_path)
    (row,) = (
        (tmp_path / "runs/papers" / name / "comparison.csv").read_text().split()[1:]
    )
    assert row.startswith("reservoir,0,4,")


def test_a_surrogate_of_the_combined_equation_beside_weno5(tmp_path):
    """Error and time of what the experiment of the message-passing network has left."""
    call("papers", "message_passing", "--quick", "--arms", "reservoir", cwd=tmp_path)
    (path,) = tmp_path.rglob("best.ckpt")
    call("burgers", path, "--simulations=2", "--json", "rows.json", cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"].rpartition(": ")[2] for row in rows] == [
        "error",
        "error",
        "time",
    ]
    # One that has seen four batches does not beat a solver; standing still does neither.
    assert rows[0]["ratio"] > 1
    assert rows[1]["ratio"] > 1
