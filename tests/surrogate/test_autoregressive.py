"""A whole fit of an autoregressive surrogate, as a user types it, on a tiny mesh."""

import collections
import csv
import json
import re

import numpy as np
import programs
import pytest
import torch
import xarray as xr
from conventions import findings
from matplotlib.image import imread
from programs import WORKFLOW, environment, fit
from test_ranks import HELD_OUT, TWO
from test_resume import SIMULATIONS, STEPS, kill_after, lines, start

from surrogate_flow.cli.sweep.trial import validations_of
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.folder.headline import error_of, headline
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.words import skill
from surrogate_flow.solvers import Heat2D, Lorenz
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.surrogate import Surrogate

WINDOW = [
    "--model.window=surrogate_flow.fields.Autoregressive",
    "--model.window.outputs=4",
    "--model.window.unroll=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output of a fit, and its folder."""
    folder = tmp_path_factory.mktemp("fit")
    process = fit(
        folder,
        {**WORKFLOW, "simulations": 600},
        *WINDOW,
        "--model.optimizer.lr=0.003",
        "--trainer.val_check_interval=100",
        env={**environment(), "SURROGATE_FLOW_REPORT": ""},
    )
    output, _ = process.communicate(timeout=250)  # on a busy machine
    assert process.returncode == 0, output
    (path,) = (folder / "runs" / "tiny").iterdir()
    return output, path


def curve(path):
    with (path / "rollout.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def copied():
    """Root mean square error of copying the first step to all others, over ten walls."""
    solver, errors = Heat2D(cells=(12, 8), steps=STEPS, time_step=0.005), []
    rng = np.random.default_rng(0)
    for _ in range(10):
        names = [p.name for p in solver.spec.parameters]
        walls = dict(zip(names, rng.uniform(100, 500, 5), strict=True))
        field = xr.concat(solver.solve(walls), "time").temperature.values
        errors.append(((field[1:] - field[:1]) ** 2).mean())
    return np.sqrt(np.mean(errors))


def test_beats_persistence_twofold(run):
    """Rolled out to the end it errs less than half as much as copying the first step."""
    output, path = run
    rows = curve(path)
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS))
    rmse = np.array([float(row["rmse_temperature"]) for row in rows])
    assert np.sqrt((rmse**2).mean()) < copied() / 2, output


def test_leaves_what_a_user_looks_at(run):
    """The error of the rollouts in words, in a table and in two pictures."""
    output, path = run
    assert re.search(
        r"Rollout error over 19 steps: [\d.]+% relative .*mean over 4 simulations",
        output,
    )
    assert re.search(
        r"Validation error: [\d.]+% ± [\d.]+% relative .*skill 0\.[89]", output
    )
    errors = json.loads((path / "outcome.json").read_text())["errors"]
    assert f"skill {skill(errors['val_skill'])} " in output
    guesses = ("no change", "linear extrapolation")
    for guess in guesses[: 1 + (f"of {guesses[1]}" in output)]:
        error = errors[f"val_relative_l2_of_{guess.replace(' ', '_')}"]
        assert f"of {guess}: {error:.2%}" in output
    rollout, single = re.findall(r"  of no change: ([\d.]+)%", output)
    assert 0 < float(single) < float(rollout)
    assert "worse than no change" not in output
    for name in ("rollout.png", "prediction.png"):
        image = imread(path / name)
        assert min(image.shape[:2]) > 400
        assert image[..., :3].std() > 0.02
    header = (path / "metrics.csv").read_text().splitlines()[0].split(",")
    errors = ["rmse", "nrmse", "vrmse", "p99", "max"]
    assert {"val_relative_l2", *(f"val_{e}_temperature" for e in errors)} <= set(header)


def validations(path):
    """val_rollout_relative_l2 and val_relative_l2 of each validation, in metrics.csv."""
    names = ("val_rollout_relative_l2", "val_relative_l2")
    with (path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(names[0])]
    return np.array([[float(row[name]) for name in names] for row in rows])


def test_each_validation_rolls_out_and_chooses_the_best_weights_by_that(run):
    """The figure is that of the curve; best.ckpt has the least, and says what it is of."""
    output, path = run
    rollouts, single = validations(path).T
    assert len(rollouts) > 2
    assert (rollouts > single).all()
    each = [float(row["relative_l2_temperature"]) for row in curve(path)]
    assert rollouts[-1] == pytest.approx(np.mean(each), rel=1e-5)
    errors = json.loads((path / "outcome.json").read_text())["errors"]
    figures = [errors[f"val_rollout_relative_l2{f}"] for f in ("", "_at_end")]
    assert figures == pytest.approx([np.mean(each), each[-1]], rel=1e-5)
    assert 0 < errors["val_rollout_relative_l2_standard_error"] < figures[0]
    assert f"best.ckpt had {rollouts.min():.2%} over rollouts" in output
    best = Surrogate.load(path / "checkpoints" / "best.ckpt")
    assert best.error == pytest.approx(rollouts.min(), rel=1e-5)
    assert f"{rollouts.min():.2%}, relative L2 of rollouts" in repr(best)
    found = [*validations_of(path).values()]
    assert found == pytest.approx(rollouts.tolist(), rel=1e-6)
    assert error_of(RunFolder(path)) == pytest.approx(rollouts[-1], rel=1e-5)
    assert "(relative L2 of rollouts over 4 held-out" in headline(RunFolder(path))
    telemetry = RunFolder(path).telemetry.validation.dropna()
    assert telemetry.iloc[-1] == pytest.approx(rollouts[-1], rel=1e-3)


def test_the_next_command_works_as_it_is_printed(run):
    """It predicts the rest of a held-out simulation, from the history beside it."""
    output, path = run
    line = re.search(r"Next: surrogate-flow (predict .*)", output)[1]
    words = re.match(r"(.*--parameters) '(.*)' (.*)", line)
    folder = path.parents[2]
    programs.run(*words[1].split(), words[2], *words[3].split(), cwd=folder)
    field = xr.load_dataset(folder / "field.nc").temperature
    history = xr.load_dataset(path / "history.nc")
    assert findings(path / "history.nc") == []
    assert (history.sizes["time"], field.sizes["time"]) == (1, STEPS - 1)
    solver = Heat2D(cells=(12, 8), steps=STEPS, time_step=0.005)
    walls = {p.name: float(history[p.name]) for p in solver.spec.parameters}
    truth = xr.concat(solver.solve(walls), "time").temperature[1:]
    np.testing.assert_allclose(field.time, truth.time)
    assert float(np.sqrt(((field - truth) ** 2).mean())) < copied() / 2


def test_test_rolls_out_too(run, tmp_path):
    """`test` from the checkpoint: errors in detail, and the curve, in a folder of its own."""
    _, path = run
    programs.run(
        "test",
        f"--data={path.parents[2] / 'workflow.yaml'}",
        "--model=fully_connected",
        *WINDOW,
        f"--ckpt_path={path / 'checkpoints' / 'last.ckpt'}",
        cwd=tmp_path,
    )
    (folder,) = {p.parent for p in tmp_path.rglob("rollout.csv")}
    assert len(curve(folder)) == STEPS - 1
    assert not (folder / "history.nc").exists()
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "test_mse_temperature" in header
    assert "test_rollout_relative_l2_at_end" in header


def test_goes_on_after_sigkill(tmp_path):
    """FIFO trains each window once, whatever a kill cut off, and ends like any run."""
    path = tmp_path / "batches"
    until = "--trainer.callbacks.until=40"
    process = start(tmp_path, "FIFO", *WINDOW, until, checkpoint_reservoir=True)
    kept = lambda: tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt")  # noqa: E731
    kill_after(process, path, 20, kept)
    first = lines(path)
    path.unlink()
    process = start(
        tmp_path, "FIFO", *WINDOW, "--ckpt_path=last", checkpoint_reservoir=True
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    second = lines(path)
    trained = [tuple(s) for step, batch in first if step < second[0][0] for s in batch]
    trained += [tuple(s) for _, batch in second for s in batch]
    counts = collections.Counter(trained)
    window = Autoregressive(1, 4, unroll=1)
    assert len(counts) == SIMULATIONS * window.samples(STEPS)
    assert set(counts.values()) == {1}
    (last,) = {max(kept(), key=lambda p: p.stat().st_mtime)}
    torch.load(last, weights_only=True)
    assert Surrogate.load(last).window == window


@pytest.mark.timeout(240)
def test_two_ranks_roll_out_what_both_hold_out(tmp_path):
    """Each rank has its share of the held-out set; the table is over all of them."""
    process = start(tmp_path, "FIFO", *TWO, *WINDOW, held_out=HELD_OUT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert output.count("Rollout error") == 1
    assert output.count("  of no change:") == 2
    assert f"at the last step (mean over {HELD_OUT} simulations)" in output
    (path,) = (tmp_path / "runs" / "tiny").iterdir()
    assert len(curve(path)) == STEPS - 1
    each = [float(row["relative_l2_temperature"]) for row in curve(path)]
    assert validations(path)[-1, 0] == pytest.approx(np.mean(each), rel=1e-5)


def test_numbers_without_dims_are_rolled_out():
    """Of an equation without a grid, each variable is a cell of its own."""
    solver = Lorenz(steps=6)
    held_out = ValidationSet(solver.spec, Autoregressive(2), 4, 0, 1)
    parameters = {p.name: p.at(0.7) for p in solver.spec.parameters}
    fields = np.concatenate([*solver.fields(parameters)])
    vector = solver.spec.vector(parameters)
    held_out.offer(0, 0, fields, vector)
    held_out.close(0, complete=True)
    surrogate = Surrogate(solver.spec, FullyConnected, window=Autoregressive(2))
    curve = ErrorCurve.of(surrogate, held_out)
    assert curve.squares[0] == pytest.approx(np.square(fields[2:]), rel=1e-5)
    assert np.isfinite(curve.relative_l2).all()
