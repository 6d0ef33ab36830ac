"""Predicting from a history: by hand, from a checkpoint, from the command line."""

import csv
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as L
import torch
import xarray as xr
from matplotlib.image import imread

from surrogate_flow.cli.app import main
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.pictures.picture import picture
from surrogate_flow.report.rollouts import (
    baseline_curve,
    baseline_error,
    draw_curve,
    write_curve,
)
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate import error_curve
from surrogate_flow.surrogate.error_curve import ErrorCurve, validated_rollouts
from surrogate_flow.surrogate.surrogate import Surrogate

WALLS = {"initial": 300, "left": 100, "right": 500, "bottom": 200, "top": 400}
SOLVER = Heat2D(cells=(6, 4), steps=9)
SPEC = SOLVER.spec
TRUTH = xr.concat(SOLVER.solve(WALLS), "time")


def make(window):
    torch.manual_seed(0)
    surrogate = Surrogate(SPEC, FullyConnected, window=window)
    surrogate.normalisation.freeze(np.array([300.0]), np.array([80.0]))
    return surrogate


@pytest.fixture(
    params=[Autoregressive(2), Autoregressive(2, 3, unroll=1)],
    ids=["one by one", "three at once"],
)
def surrogate(request):
    return make(request.param)


def save(surrogate, path):
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=path.parent)
    trainer.strategy.connect(surrogate)
    trainer.save_checkpoint(path)
    return path


@torch.no_grad()
def by_hand(surrogate, first):
    """Every step from `first` on, each from numpy arrays of what came before."""
    steps = list(TRUTH.temperature.values[first - 2 : first, None])
    row = torch.tensor([list(map(float, WALLS.values()))])
    while len(steps) - 2 + first < SPEC.steps:
        at = torch.tensor([float(len(steps) - 2 + first)])
        seen = torch.tensor(np.stack(steps[-2:]))[None]
        steps += list(surrogate(row, at, seen)[0].numpy())
    return np.stack(steps)[2 : SPEC.steps - first + 2, 0]


@pytest.mark.parametrize("first", [2, 5])
def test_predict_is_rolling_out_by_hand(surrogate, first, tmp_path):
    """A loaded checkpoint gives, from any history, all steps after it, with labels."""
    path = save(surrogate, tmp_path / "some.ckpt")
    torch.load(path, weights_only=True)
    loaded = Surrogate.load(path)
    assert loaded.window == surrogate.window
    history = TRUTH.isel(time=slice(first - 2, first))
    field = loaded.predict(WALLS, history=history)
    np.testing.assert_allclose(
        field.temperature, by_hand(surrogate, first), rtol=1e-5, atol=1e-3
    )
    np.testing.assert_allclose(field.time, SPEC.times[first:])
    assert field.temperature.dims == ("time", "x", "y")
    assert field.temperature.attrs["units"] == "K"
    assert float(field.left) == 100


def test_times_and_longer_histories(surrogate):
    """Of a longer history the last steps count; times may be any of the steps after it."""
    history = TRUTH.isel(time=slice(0, 4))
    field = surrogate.predict(WALLS, [0.09, 0.05, 0.07], history)
    rolled = by_hand(surrogate, 4)
    np.testing.assert_allclose(field.time, [0.09, 0.05, 0.07])
    np.testing.assert_allclose(field.temperature, rolled[[4, 0, 2]], rtol=1e-5)


def changed(**names):
    return TRUTH.isel(time=slice(2)).rename(names)


MISTAKES = {
    "none": (None, None, r"history of 2 steps, got none.*\[0.01, 0.02\] s"),
    "too few": (TRUTH.isel(time=slice(1)), None, "history of 2 steps, got 1"),
    "all": (TRUTH, None, r"nothing is left to predict.*isel\(time=slice\(2\)\)"),
    "another variable": (
        changed(temperature="heat"),
        None,
        r"history, step 0: expected the variable 'temperature', got \['heat'\]",
    ),
    "another dim": (changed(x="z"), None, "expected the dims"),
    "other cells": (
        TRUTH.isel(time=slice(2), x=slice(3)),
        None,
        r"expected the shape \(2, 6, 4\)",
    ),
    "a gap": (TRUTH.isel(time=[0, 2]), None, "steps 1 to 1 are skipped"),
    "no time": (TRUTH.isel(time=0, drop=True), None, "expected a coordinate 'time'"),
    "other times": (
        TRUTH.isel(time=slice(2)).assign_coords(time=[0.5, 0.6]),
        None,
        "expected time 0.01 s, got 0.5 s, no time of the spec",
    ),
    "NaN": (TRUTH.isel(time=slice(2)) * np.nan, None, "NaN or infinite"),
    "no dataset": ({"temperature": [1.0]}, None, "a Dataset, such as .*, got dict"),
    "between": (
        TRUTH.isel(time=slice(2)),
        [0.055],
        "got 0.055, between 0.05 and 0.06 s.*interpolate what it predicts",
    ),
    "before": (
        TRUTH.isel(time=slice(2)),
        [0.02],
        "times from 0.03 s on, which come after the history, got 0.02",
    ),
    "outside": (TRUTH.isel(time=slice(2)), [9.0], r"expected times in \[0.01, 0.09\]"),
}


@pytest.mark.parametrize(
    ("history", "times", "message"), MISTAKES.values(), ids=MISTAKES
)
def test_mistakes_are_named(history, times, message):
    """What a history lacks, or a time, is said with what was expected."""
    with pytest.raises(ValueError, match=message):
        make(Autoregressive(2)).predict(WALLS, times, history)


def test_a_direct_surrogate_takes_no_history():
    """It would not look at it, so it is refused."""
    with pytest.raises(ValueError, match=r"expected no history, got one.*leave it out"):
        make(Direct()).predict(WALLS, history=TRUTH)


def test_command_line(tmp_path, monkeypatch, capsys):
    """predict --history FILE writes what Python gives; each wrong FILE has its message."""
    monkeypatch.chdir(tmp_path)
    surrogate = make(Autoregressive(2))
    save(surrogate, tmp_path / "some.ckpt")
    TRUTH.isel(time=slice(2)).to_netcdf("first.nc")
    words = ["--ckpt_path=some.ckpt", f"--parameters={WALLS}", "--output=out.nc"]
    main(["predict", *words, "--history=first.nc"])
    got = xr.load_dataset("out.nc").temperature
    expected = surrogate.predict(WALLS, history=TRUTH.isel(time=slice(2)))
    np.testing.assert_allclose(got, expected.temperature, rtol=1e-5)

    (tmp_path / "text.nc").write_text("no netCDF")
    TRUTH.isel(time=slice(1)).to_netcdf("short.nc")
    for option, message in (
        ([], "expected a history of 2 steps, got none. Such as --history /"),
        (["--history=none.nc"], "no file 'none.nc'"),
        (["--history=text.nc"], "cannot be read as netCDF"),
        (["--history=short.nc"], "history of 2 steps, got 1"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", *words, *option])
        assert message in capsys.readouterr().err


def test_a_field_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """Through a link into what it points to; Ctrl-C leaves the old one, and no other."""
    (tmp_path / "real.nc").write_text("old")
    link = tmp_path / "link.nc"
    link.symlink_to("real.nc")
    save(make(Direct()), tmp_path / "some.ckpt")
    words = [f"--ckpt_path={tmp_path / 'some.ckpt'}", f"--parameters={WALLS}"]

    def interrupt(dataset, path):
        path.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(xr.Dataset, "to_netcdf", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(["predict", *words, f"--output={link}"])
    assert (tmp_path / "real.nc").read_text() == "old"
    assert not list(tmp_path.glob("*.part"))
    main(["predict", *words, f"--output={link}"])
    assert link.is_symlink()
    assert "temperature" in xr.load_dataset(tmp_path / "real.nc")


@pytest.fixture
def held_out():
    """Three simulations of other walls, of which one never finished."""
    held = ValidationSet(SPEC, Autoregressive(2), 4, 0, 3)
    for row in (0, 2):
        walls = {**WALLS, "left": 100 + 50 * row}
        truth = xr.concat(SOLVER.solve(walls), "time").temperature.values[:, None]
        held.offer(row, 0, truth, SPEC.vector(walls))
    return held


@pytest.mark.parametrize("start", [None, 5])
def test_error_curve_by_hand(surrogate, held_out, start, tmp_path):
    """Each step's error over all whole simulations; summed it is Brandstetter's figure."""
    curve = ErrorCurve.of(surrogate, held_out, start)
    first = start or 2
    errors, sizes = [], []
    for row in (0, 2):
        walls = {**WALLS, "left": 100 + 50 * row}
        truth = xr.concat(SOLVER.solve(walls), "time")
        field = surrogate.predict(
            walls, history=truth.isel(time=slice(first - 2, first))
        )
        errors.append(field.temperature.values - truth.temperature.values[first:])
        sizes.append(truth.temperature.values[first:])
    errors, sizes = np.array(errors, np.float64), np.array(sizes, np.float64)
    squares = (errors**2).mean((2, 3))
    np.testing.assert_allclose(curve.rmse[:, 0], np.sqrt(squares.mean(0)), rtol=1e-4)
    size = np.sqrt((sizes**2).mean((1, 2, 3)))[:, None]
    relative = np.sqrt(squares) / size
    np.testing.assert_allclose(curve.relative_l2[:, 0], relative.mean(0), rtol=1e-4)
    figure_of_merit = (errors**2).sum((1, 2, 3)).mean() / 24
    np.testing.assert_allclose(curve.accumulated, [figure_of_merit], rtol=1e-4)

    write_curve(curve, tmp_path / "rollout.csv")
    with (tmp_path / "rollout.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(first, 9))
    assert [float(row["time"]) for row in rows] == pytest.approx(SPEC.times[first:])
    written = [float(row["rmse_temperature"]) for row in rows]
    assert written == pytest.approx(curve.rmse[:, 0], rel=1e-5)
    draw_curve(curve).savefig(tmp_path / "rollout.png")
    assert imread(tmp_path / "rollout.png")[..., :3].std() > 0.02


def test_a_step_near_zero_counts_no_more_than_others():
    """An error of 0.1 beside a field of 1, 0 and 1: 0.1 over the root of 2/3, at each step."""
    squares = np.array([1.0, 0.0, 1.0]).reshape(1, 3, 1)
    curve = ErrorCurve(SPEC, 0, np.full((1, 3, 1), 0.01), squares)
    np.testing.assert_allclose(curve.relative_l2, 0.1 / np.sqrt(2 / 3))
    nothing = ErrorCurve(SPEC, 0, np.full((1, 3, 1), 0.01), 0 * squares)
    assert np.isnan(nothing.relative_l2).all()


def test_a_rollout_that_is_not_finite_is_the_worst(surrogate, held_out):
    """A network that makes NaN or infinity gives a number, and no simulation is lost."""
    whole = ErrorCurve.of(surrogate, held_out)
    errors = whole.squared_errors.copy()
    errors[0, 3:] = [[np.nan], [np.inf], *[[1e300]] * (len(errors[0]) - 5)]
    curve = replace(whole, squared_errors=errors)
    np.testing.assert_allclose(curve.relative_l2[:3], whole.relative_l2[:3])
    half = ErrorCurve(SPEC, 2, errors[1:], whole.squares[1:])
    after = (100 + half.relative_l2[3:]) / 2
    np.testing.assert_allclose(curve.relative_l2[3:], after)
    figures = curve.errors
    assert figures["relative_l2"] == pytest.approx(curve.relative_l2.mean())
    assert figures["relative_l2_at_end"] == pytest.approx(after[-1, 0])
    own = [np.mean(ErrorCurve(SPEC, 2, *u).relative_l2) for u in _each(curve)]
    spread = figures["relative_l2_standard_error"]
    assert spread == pytest.approx(np.std(own, ddof=1) / np.sqrt(2))
    assert np.isnan(half.errors["relative_l2_standard_error"])
    assert np.isnan([*ErrorCurve.joined(SPEC, 2, []).errors.values()]).all()


def _each(curve):
    for k in range(len(curve.squares)):
        yield curve.squared_errors[[k]], curve.squares[[k]]


def test_long_simulations_are_rolled_out_in_part(
    surrogate, held_out, monkeypatch, caplog
):
    """Validations take some of them, the same each time, and say so once."""
    caplog.set_level(logging.INFO)
    data = SimpleNamespace(validation=held_out, ranks=Ranks())
    surrogate.trainer = trainer = L.Trainer(logger=False, accelerator="cpu")
    assert not trainer.sanity_checking
    whole = validated_rollouts(surrogate, data)
    assert (len(whole.squares), caplog.text) == (2, "")
    monkeypatch.setattr(error_curve, "_VALUES", 100)
    surrogate.rollouts = None
    for _ in range(2):
        surrogate.rollouts = validated_rollouts(surrogate, data)
        np.testing.assert_array_equal(surrogate.rollouts.squares, whole.squares[:1])
    assert caplog.text.count("roll out 1 of 2 held-out simulations") == 1


def test_error_curve_of_a_direct_surrogate(held_out):
    """Every step counts, from the first on, and each is predicted on its own."""
    surrogate = make(Direct())
    curve = ErrorCurve.of(surrogate, held_out)
    assert curve.start == 0
    got = surrogate.predict(WALLS).temperature.values
    error = np.sqrt(((got - TRUTH.temperature.values) ** 2).mean((1, 2)))
    np.testing.assert_allclose(np.sqrt(curve.squared_errors[0, :, 0]), error, rtol=1e-4)


def test_baselines_by_hand():
    """u = 2 + 3t at uneven times: extrapolation is exact, and no change errs by 3 dt."""
    times = np.array([0.0, 1.0, 3.0, 4.0, 8.0])
    u = 2 + 3 * times
    held = ValidationSet(
        replace(SPEC, times=tuple(times), shape=(2, 1), coordinates=()),
        Autoregressive(1, 2),
        2,
        0,
        2,
    )
    steps = np.broadcast_to(u[:, None, None, None], (5, 1, 2, 1))
    for row in (0, 1):
        held.offer(row, 0, steps, SPEC.vector(WALLS))
    cpu = torch.device("cpu")
    # Windows of one step and the two after it; before the first is no second one.
    expected = [
        np.linalg.norm(u[k + 1 : k + 3] - u[k]) / np.linalg.norm(u[k + 1 : k + 3])
        for k in range(3)
    ]
    assert baseline_error(held, 0, cpu) == pytest.approx(np.mean(expected))
    assert baseline_error(held, 1, cpu) == pytest.approx(0, abs=1e-6)
    curve = baseline_curve(held, 1, 0)
    np.testing.assert_allclose(curve.rmse[:, 0], u[1:] - u[0], rtol=1e-6)
    curve = baseline_curve(held, 2, 1)
    np.testing.assert_allclose(curve.rmse, 0, atol=1e-5)


def test_a_window_as_long_as_a_simulation_is_not_extrapolated():
    """With one step before it there is no second one: no number."""
    held = ValidationSet(SPEC, Autoregressive(1, 8), 2, 0, 1)
    held.offer(0, 0, TRUTH.temperature.values[:, None], SPEC.vector(WALLS))
    assert baseline_error(held, 1, torch.device("cpu")) is None


@pytest.mark.parametrize("start", [1, 9])
def test_error_curve_needs_history_and_steps(surrogate, held_out, start):
    """A start before the history's end, or behind the last step, is refused."""
    with pytest.raises(ValueError, match=r"expected a step from 2 .* to 8, got"):
        ErrorCurve.of(surrogate, held_out, start)


def test_picture_shows_the_last_step_rolled_out(held_out):
    """Of each whole simulation: the last step of the solver, and of the rollout."""
    surrogate = make(Autoregressive(2))
    figure = picture(surrogate, held_out)
    titles = [part.get_supylabel() for part in figure.subfigs]
    assert len(titles) == 2
    assert all("at 0.09 s" in title for title in titles)
    shown = figure.subfigs[0].axes[1].collections[0].get_array()
    guess = surrogate.predict(WALLS, history=TRUTH.isel(time=slice(2)))
    # Drawn with y upwards.
    np.testing.assert_allclose(
        shown.reshape(4, 6), guess.temperature[-1].values.T, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--times=[]"], "expected at least one time, got none"),
        (["--output=."], "--output .: expected a file's name, got a folder"),
        (["--output=no/field.nc"], "there is no folder no"),
        (["--output=/proc/field.nc"], "--output /proc/field.nc: no space on its disk"),
    ],
)
def test_predict_refuses_what_it_cannot_do(
    words, message, tmp_path, monkeypatch, capsys
):
    """One message, status 2, and no file."""
    save(make(Direct()), tmp_path / "some.ckpt")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    parameters = f"--parameters={WALLS}"
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--ckpt_path=some.ckpt", parameters, *words])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert message in said.err
    assert said.err.splitlines()[-1].startswith("surrogate-flow: error: ")
    assert sorted(tmp_path.iterdir()) == before
