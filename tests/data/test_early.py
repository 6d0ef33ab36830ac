"""Simulations that end early: each of their steps is trained, kept and counted, and no other."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from troubled import STEPS, Fading, Wave

from surrogate_flow.data.checkpoint import StudyCheckpoint
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.stored import StoredData
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.dataset import Archive
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.rollouts import baseline_error
from surrogate_flow.reservoir import FIFO, FIRO, Store
from surrogate_flow.sampling import Sobol
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.surrogate import Surrogate

SPEC = Wave.spec


def samples(batches):
    """The (phase, step) of every sample of some batches."""
    return Counter(
        (round(float(phase), 5), int(step))
        for batch in batches
        for phase, step in zip(batch.parameters[:, 0], batch.step, strict=True)
    )


def expected(phases):
    """Each step that these waves have."""
    return Counter(
        (round(float(np.float32(p)), 5), step)
        for p in phases
        for step in range(Fading.length(p))
    )


def wave(phase):
    """All steps of a wave."""
    t = np.arange(1, STEPS + 1)[:, None, None]
    return (phase + t + np.arange(4) / 10).astype(np.float32)


def test_what_there_is_is_trained_and_kept(tmp_path, monkeypatch):
    """Online and from the data set: each step once, of each simulation as many as it has."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "waves.zarr"
    data = OnlineData(
        Fading(),
        sampler=Sobol(seed=5),
        simulations=20,
        held_out=4,
        batch_size=7,
        reservoir=FIFO(capacity=40),
        archive=path,
    )
    data.setup("fit")
    try:
        held_out = data.val_dataloader()
        phases = Sobol(seed=5).ask(0, 20, SPEC.parameters)[:, 0]
        assert samples(data.train_dataloader()) == expected(phases)
        assert samples(held_out) == expected(held_out.parameters[:, 0])
        stats = data.status().ensemble
        short = sum(Fading.length(p) < STEPS for p in phases)
        short += sum(held_out.steps(row) < STEPS for row in range(4))
        assert (stats.done, stats.failed) == (24, 0)
        assert stats.early == data.cost().early == {"faded at ...": short}
    finally:
        data.close()
    assert not (tmp_path / "failures.csv").exists()

    archive = Archive(path)
    lengths = [Fading.length(p) for p in archive.parameters[:, 0]]
    assert archive.steps().tolist() == lengths
    assert len(archive.complete()) == 24
    ((reason, ranges),) = archive.early.items()
    early = [n for start, end in ranges for n in range(start, end)]
    assert reason == "faded at ..."
    assert early == [n for n, length in enumerate(lengths) if length < STEPS]
    u = archive._group["u"][:]
    there = np.arange(STEPS) < np.array(lengths)[:, None]
    assert (np.isfinite(u).all(axis=2) == there).all()
    archive.require_chunks(archive.complete())

    stored = StoredData(path, batch_size=7)
    stored.setup("fit")
    try:
        got = samples(stored.train_dataloader())
        assert got == expected(archive.parameters[4:, 0])
        assert samples(stored.val_dataloader()) == expected(archive.parameters[:4, 0])
    finally:
        stored.close()


def test_an_attempt_that_ended_elsewhere_leaves_nothing(tmp_path, monkeypatch):
    """What a longer attempt has written is gone; one that comes to its end has all again."""
    monkeypatch.setattr("surrogate_flow.dataset.layout._CHUNK", 2 * SPEC.step_bytes)
    data = OnlineData(Wave(), simulations=2, held_out=1)
    archive, _ = data.planned(tmp_path / "waves.zarr")
    for steps, end in ((5, False), (3, True)):
        writing = archive.writer.begin(SPEC, 1)
        writing.write(wave(0.5)[: min(steps, 4)])
        if end:
            writing.end()
    assert archive.steps().tolist() == [STEPS, 3, STEPS]
    u = archive._group["u"]
    np.testing.assert_array_equal(u[1, :3], wave(0.5)[:3, 0])
    assert np.isnan(u[1, 3:]).all()
    assert not (archive.path / "u" / "c.1.2.0").exists()
    assert archive.drop_incomplete() == []
    again = archive.writer.begin(SPEC, 1)
    assert (again.complete, again.steps) == (True, 3)
    (archive.path / "u" / "c.1.1.0").unlink()
    assert archive.drop_incomplete() == [1]
    archive.writer.begin(SPEC, 1).write(wave(0.5))
    assert archive.steps().tolist() == [STEPS] * 3
    # No step was written: there is nothing to be complete.
    empty = archive.writer.begin(SPEC, 2)
    empty.end()
    assert archive.complete() == [1]
    archive.release()


def fill(store, held_out, ledger, lengths):
    """Have simulations arrive, as an inlet hands them over; the first one is held out."""
    for number, steps in enumerate(lengths):
        sink = store if number else held_out
        ledger.begin(Simulation(number, "training", {"phase": number / 10}))
        sink.offer(number, 0, wave(number / 10)[:steps], np.array([number / 10]))
        early = "faded" if steps < STEPS else ""
        sink.close(number, True, early)
        ledger.complete(number, early)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("window", [Direct(), Autoregressive()])
def test_a_run_that_goes_on_knows_what_has_ended(tmp_path, kept, window):
    """Nothing runs again that has ended early, unless its samples were neither trained nor kept."""

    def make():
        policy = FIRO(capacity=30, threshold=1, seed=1)
        store, book = Store(SPEC, window, 4, policy), Ledger()
        held_out = ValidationSet(SPEC, window, 4, 0, 1)
        state = StudyCheckpoint(store, held_out, book, {"phase": 0.1}, fields=kept)
        return store, held_out, book, state

    lengths = (3, 5, 2, 1, 4)
    store, held_out, book, first = make()
    fill(store, held_out, book, lengths)
    every = {(n, k) for n in range(1, 5) for k in range(window.samples(lengths[n]))}
    assert sorted(store.samples()) == sorted(every)
    assert store.stats().unfinished == 0
    draw = store.draw(0, first.pending)
    trained = set(zip(draw.simulation.tolist(), draw.step.tolist(), strict=True))
    plain = first.save(1, 1, tmp_path)

    store, held_out, book, second = make()
    second.load(plain, tmp_path)
    left = every - trained
    if kept:
        assert set(store.samples()) == left
        assert [*book.to_plain()["complete"]] == [(0, 5)]
        assert book.counts_early() == {"faded": 4}
        assert (held_out.finished, held_out.steps(0)) == ([0], 3)
        np.testing.assert_array_equal(held_out.fields[0, :3], wave(0.0)[:3])
        assert len(list(held_out)) == 1
        return
    again = {n for n, _ in left}
    assert {
        n for start, end in book.to_plain()["complete"] for n in range(start, end)
    } == (set(range(1, 5)) - again)
    for number in sorted(again):
        first_step, last = store.open(number), lengths[number]
        steps = wave(number / 10)[first_step:last]
        store.offer(number, first_step, steps, np.array([number / 10]))
        store.close(number, True, "faded" if last < STEPS else "")
    assert set(store.samples()) == left
    assert [*store.finished] == [1, 2, 3, 4]


@pytest.mark.parametrize("window", [Direct(), Autoregressive()])
def test_errors_are_of_steps_that_exist(window):
    """What is behind the end of a simulation is in no batch, and in no mean."""
    lengths = (5, 1, 3)
    held_out = ValidationSet(SPEC, window, 4, 0, 3)
    for number, steps in enumerate(lengths):
        held_out.offer(number, 0, wave(number)[:steps], np.array([float(number)]))
        held_out.close(number, True, *(("faded",) if steps < STEPS else ()))
    assert held_out.complete
    usable = [row for row, steps in enumerate(lengths) if steps >= window.span]
    assert (held_out.ended, held_out.finished) == ([0, 1, 2], usable)
    assert samples(held_out).total() == sum(map(window.samples, lengths))
    surrogate = Surrogate(SPEC, partial(FullyConnected, widths=[4]), window=window)
    curve = ErrorCurve.of(surrogate, held_out)
    start = window.inputs
    there = np.array([np.arange(start, STEPS) < lengths[row] for row in usable])
    assert (np.isfinite(curve.squares[..., 0]) == there).all()
    errors = np.where(there, curve.squared_errors[..., 0], 0)
    rmse = np.sqrt(errors.sum(0) / there.sum(0))
    np.testing.assert_allclose(curve.rmse[:, 0], rmse, rtol=1e-6)
    assert np.isfinite(curve.relative_l2).all()
    assert np.isfinite(baseline_error(held_out, 0, torch.device("cpu"))) or not start
    assert held_out.simulation(usable[-1]).sizes["time"] == lengths[usable[-1]]
    short = ValidationSet(SPEC, Direct(), 4, 0, 1)
    short.offer(0, 0, wave(0)[:2], np.zeros(1))
    short.close(0, True, "faded")
    curve = ErrorCurve.of(surrogate, short).of_all(Ranks()) if not start else None
    assert curve is None or (len(curve.times), len(curve.rmse)) == (2, 2)


def test_held_out_simulations_that_end_before_a_window_are_named():
    """Without a single sample there is nothing to validate with: not a wait, nor a failed run."""
    held_out = ValidationSet(SPEC, Autoregressive(2), 4, 0, 1)
    held_out.offer(0, 0, wave(0)[:2], np.zeros(1))
    held_out.close(0, True, "faded")
    assert held_out.complete
    with pytest.raises(Exception, match="ended before a sample was complete"):
        held_out.validated(Ranks(), 1)
