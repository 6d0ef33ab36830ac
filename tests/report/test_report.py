"""The picture of a run: maps of fields with two dims, curves of those with fewer."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint

from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.pictures.picture import picture
from surrogate_flow.report.report import Report, _best, _of_variation, next_command
from surrogate_flow.report.summary import WriteSummary
from surrogate_flow.solvers import Combined1D, Lorenz, NavierStokes2D
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing.store import trajectory

LINE = FieldSpec(
    parameters=(Parameter("speed", -1.0, 3.0, "m/s"),),
    variables=(Variable("u", "m"),),
    dims=("x",),
    shape=(7,),
    times=(0.5, 1.0, 2.0),
    time_units="s",
    coordinates=(Coordinate("x", "x", tuple(range(7)), "m"),),
)


def drawn(spec: FieldSpec, numbers: range = range(2)) -> tuple[Figure, ValidationSet]:
    """The picture of a surrogate that was not trained, for two simulations."""
    surrogate = Surrogate(spec, partial(FullyConnected, widths=(4,)))
    surrogate.normalisation.freeze(
        np.zeros(len(spec.variables)), np.ones(len(spec.variables))
    )
    first, step = numbers.start, numbers.step
    held_out = ValidationSet(spec, Direct(), 4, first, len(numbers), stride=step)
    for simulation in numbers:
        steps = trajectory(spec, simulation, 0, spec.steps)
        middle = np.array([parameter.at(0.5) for parameter in spec.parameters])
        held_out.offer(simulation, 0, steps, middle)
    return picture(surrogate, held_out), held_out


@pytest.mark.parametrize("drawn", [True, False])
def test_best_is_shown_with_its_own_error(drawn):
    """Not with what another checkpoint of the user's is chosen by."""
    theirs, ours = (
        ModelCheckpoint(monitor=name, filename=file)
        for name, file in (("train_loss", None), ("val_relative_l2", "best"))
    )
    theirs.best_model_score, ours.best_model_score = torch.tensor([0.03, 0.0931])
    (shown,) = _best(SimpleNamespace(checkpoint_callbacks=[theirs, ours]), drawn)
    assert shown.endswith("outcome.json; best.ckpt had 9.31%")
    assert ("prediction.png" in shown) == drawn
    assert not _best(SimpleNamespace(checkpoint_callbacks=[theirs]), drawn)


def test_a_mean_does_not_hide_an_error():
    """The share of the variation is said where it is far above the relative error."""
    shares = {"T2m": 0.371, "u": 0.1}
    metrics = {"val_nrmse_T2m": 0.001, "val_vrmse_T2m": 0.3}
    said = _of_variation(0.0014, shares, metrics, "val")
    assert said == "; that is 37.1% of the variation of T2m, since its mean is large"
    # Large fields err by more: their mean is 0.
    metrics["val_nrmse_T2m"] = 0.3
    said = _of_variation(0.0014, shares, metrics, "val")
    assert said == "; that is 37.1% of the variation of T2m"
    assert _of_variation(0.2, {"u": 0.25}, {}, "val") == ""


def test_the_next_command_takes_the_best_beside_the_last(tmp_path):
    """Of a run that was finished already, too; of another checkpoint that one."""
    surrogate = Surrogate(LINE, partial(FullyConnected, widths=(4,)))
    for name in ("best", "last", "mine"):
        (tmp_path / f"{name}.ckpt").touch()
    for asked, taken in (("last", "best"), ("mine", "mine")):
        trainer = SimpleNamespace(ckpt_path=tmp_path / f"{asked}.ckpt")
        command = next_command(tmp_path / "run", trainer, surrogate, None)
        assert f"--ckpt_path {tmp_path}/{taken}.ckpt" in command


def test_a_picture_that_cannot_be_drawn_takes_nothing_with_it(tmp_path, caplog):
    """It is said, with the reason; no part of a file is left."""
    figure = Figure()
    figure.suptitle("$no math")  # as a variable may be called
    figure.text(0.5, 0.5, "$\\nomath$")
    Report(tmp_path)._draw("prediction.png", lambda: figure)
    assert "prediction.png was not made" in caplog.text
    assert "nomath" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("of_others", [True, False])
def test_a_run_that_is_ended_before_its_first_batch_leaves_nothing(of_others, tmp_path):
    """Though its held-out simulations have arrived, and whichever rank is stopped."""
    data = OnlineData(Lorenz(steps=4), name="mine")
    surrogate = Surrogate(data.spec, partial(FullyConnected, widths=(4,)))
    surrogate.normalisation.freeze(np.zeros(3), np.ones(3))
    data.validation = ValidationSet(data.spec, Direct(), 4, 0, 1)
    middle = np.array([p.at(0.5) for p in data.spec.parameters])
    data.validation.offer(0, 0, trajectory(data.spec, 0, 0, 4), middle)
    if of_others:
        data.ranks.gather = lambda stopped: [stopped, True]
    else:
        data.stop()
    trainer = SimpleNamespace(
        **{"datamodule": data, "is_global_zero": True, "ckpt_path": "last.ckpt"},
        **{"callback_metrics": {}, "checkpoint_callbacks": [], "global_step": 7},
    )
    report = Report(tmp_path)
    for callback in (report, WriteSummary(tmp_path)):
        callback.on_fit_end(trainer, surrogate)
    assert report._lines == ["The run was ended before its first batch."]
    assert not list(tmp_path.iterdir())


def test_numbers_are_curves_over_time():
    """A field without dims: solver and surrogate in one, the difference beside it."""
    spec = Lorenz(steps=5).spec
    figure, held_out = drawn(spec)
    assert len(figure.axes) == 2 * 2 * 3
    fields = iter(np.moveaxis(held_out.fields, 2, 1).reshape(6, 5))
    for both, difference in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        solver, surrogate = both.lines
        labels = [text.get_text() for text in both.get_legend().get_texts()]
        assert labels == ["solver", "surrogate"]
        truth = next(fields)
        np.testing.assert_allclose(solver.get_xdata(), spec.times)
        np.testing.assert_array_equal(solver.get_ydata(), truth)
        (line,) = difference.lines
        np.testing.assert_allclose(
            line.get_ydata(), surrogate.get_ydata() - truth, rtol=1e-5, atol=1e-4
        )
    assert [axis.get_ylabel() for axis in figure.axes[:6:2]] == [
        "x [1]",
        "y [1]",
        "z [1]",
    ]


def test_titles_name_the_simulations_of_a_rank():
    """Those of one rank of three have every third number."""
    figure, _ = drawn(LINE, range(1, 7, 3))
    titles = [part.get_supylabel() for part in figure.subfigs]
    assert [title.split()[:2] for title in titles] == [
        ["simulation", "1"],
        ["simulation", "4"],
    ]


def test_two_dims_are_maps():
    """A field in the plane: three maps with their scales, and a title in short lines."""
    figure, held_out = drawn(NavierStokes2D(points=8, steps=3).spec)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["solver", "surrogate", "surrogate - solver"] * 2
    solver = figure.axes[0].collections[0].get_array()
    np.testing.assert_array_equal(np.ravel(solver), held_out.fields[0, 0, 0].T.ravel())
    title = figure.subfigs[0].get_supylabel()
    assert max(map(len, title.split("\n"))) <= 24


def test_a_title_names_some_of_many_parameters_and_says_so(tmp_path):
    """Twenty parameters: seven with their values, whole, and how many there are besides."""
    figure, _ = drawn(Combined1D(cells=8, fine_cells=8, steps=3).spec)
    figure.savefig(tmp_path / "prediction.png")
    (part, *_) = figure.subfigs
    first, *lines, last = part.get_supylabel().split("\n")
    count = len(Combined1D().spec.parameters)
    assert (first, last) == ("simulation 0", f"and {count - 7} more")
    # A number stays beside its name and its units.
    assert [line.split()[0] for line in lines[:2]] == ["A_1", "A_2"]
    assert sum(line.endswith("m/s2") for line in lines) == 5
    # Beside the panels, not over them.
    title = part._supylabel.get_window_extent()
    left = min(axis.get_tightbbox().x0 for axis in part.axes)
    assert 0 <= title.x0 < title.x1 < left
    assert title.height < part.bbox.height
    assert max(len(axis.get_xticks()) for axis in figure.axes) <= 7


@pytest.mark.parametrize("spec", [Lorenz(steps=5).spec, LINE], ids=["0d", "1d"])
def test_pictures_are_drawn_whole(spec, tmp_path):
    """The file is written, with one scale for the differences of a variable."""
    figure, _ = drawn(spec)
    differences = [a for a in figure.axes if a.get_title() == "surrogate - solver"]
    count = len(spec.variables)
    for channel in range(count):
        of_one = differences[channel::count]
        maps = [axis.collections[0].get_clim() for axis in of_one if axis.collections]
        scales = maps or [axis.get_ylim() for axis in of_one]
        assert len(scales) == 2
        assert len(set(scales)) == 1
    figure.savefig(tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 10_000
