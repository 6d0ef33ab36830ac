"""Seeded stores draw the batches that version 0.1 drew, from the beginning or from its snapshot."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_snapshot import Run
from test_store import POLICIES, WINDOWS, make_store

from surrogate_flow.reservoir import Snapshot
from surrogate_flow.testing import store as laws

RECORDED = Path(__file__).parents[1] / "data" / "v0.1"


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_draws_the_same_batches(policy, window):
    """A sample is recorded as ``100 * simulation + step``."""
    store = make_store(policy, window, capacity=24, seed=5)
    draws = laws.run_store(store, simulations=6, seed=3)
    recorded = json.loads((RECORDED / "draws.json").read_text())
    batches = [(100 * draw.simulation + draw.step).tolist() for draw in draws]
    assert batches == recorded[f"{policy} {window}"]


def test_a_snapshot_goes_on_with_the_same_batches():
    """Those that were drawn and not trained come first, and every field is checked."""
    recorded = dict(np.load(RECORDED / "store.npz"))
    plain = {
        name.removeprefix("snapshot."): value if value.ndim else value.item()
        for name, value in recorded.items()
        if name.startswith("snapshot.")
    }
    store = make_store("Reservoir", WINDOWS[1], 20, seed=99)
    snapshot = Snapshot(**plain)
    snapshot.check(store.spec)
    again = store.restore(snapshot, recorded["rows"])
    run = Run(store, dict(enumerate(recorded["next_step"].tolist())), again)
    for _ in again:
        run.fetch()
    run.finish()
    assert [len(batch) for batch in run.batches] == recorded["sizes"].tolist()
    samples = [100 * n + k for batch in run.batches for n, k in batch]
    assert samples == recorded["batches"].tolist()
