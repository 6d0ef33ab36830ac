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
