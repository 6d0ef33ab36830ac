"""The benchmarks run in their tiny form and write what they measure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

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


@pytest.mark.parametrize(
    "name", ["laptop", "large", "fully_connected", "fno", "unet", "message_passing"]
)
def test_experiments_of_the_papers_run(name, tmp_path):
    """Each is a comparison; four batches of it."""
    call("papers", name, "--quick", "--arms", "reservoir", cwd=tmp_path)
    (row,) = (
        (tmp_path / "runs/papers" / name / "comparison.csv").read_text().split()[1:]
    )
    assert row.startswith("reservoir,0,4,")


def test_surrogates_of_the_combined_equation_beside_weno5(tmp_path):
    """Error and time of both networks; and when they have paid for themselves."""
    words = ("e1", "--quick", "--simulations=2", "--json", "rows.json")
    call("burgers", *words, cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    kinds = [row["case"].rpartition(": ")[2] for row in rows]
    assert kinds == ["error", "error", "time"] * 2
    # One that has seen four batches does not beat a solver; standing still does neither.
    assert all(row["ratio"] > 1 for row in rows if row["unit"] != "s")
    runs = sorted(path.parent for path in tmp_path.rglob("outcome.json"))
    assert len(runs) == 2
    call("payback", runs[0], "--simulations=2", "--json", "pay.json", cwd=tmp_path)
    (row,) = json.loads((tmp_path / "pay.json").read_text())
    # What errs as much as this is coarse, and takes less than the full solver.
    assert row["peer"].startswith("WENO5 on")
    assert 0 < row["peer_error"] <= row["error"]
    assert row["peer_seconds"] < row["full_solver_seconds"]
    spent = row["solver_seconds"] + row["training_seconds"]
    saved = row["full_solver_seconds"] - row["seconds"]
    assert row["pays_after_full"] == (np.ceil(spent / saved) if saved > 0 else None)


def test_waves_of_a_coarse_grid_are_the_same_on_a_fine_one(monkeypatch):
    """Points at 0, or half a cell off it: five waves on 12 are the five waves on 30."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from coarser import trigonometric

    def field(x, y):
        return xr.Dataset(
            {"u": np.sin(2 * np.pi * (2 * x - y)) + np.cos(2 * np.pi * 5 * y)},
        ).transpose("y", "x")

    def points(count, offset, name):
        return xr.DataArray((np.arange(count) + offset) / count, dims=name, name=name)

    for offset in (0.0, 0.5):
        coarse, fine = (
            {name: points(count, offset, name) for name in "xy"} for count in (12, 30)
        )
        coarse = field(**coarse).assign_coords(coarse)
        got = trigonometric(coarse, {name: c.values for name, c in fine.items()})
        xr.testing.assert_allclose(
            got.u.drop_vars(["x", "y"]), field(**fine).u, atol=1e-12
        )
