"""validation.csv and cases.nc: errors of each held-out simulation, fields of three."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filled import Filled
from test_records import spec

from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.callbacks import WritePage
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.held_out import HeldOut, thinned
from surrogate_flow.report.summary import WriteSummary
from surrogate_flow.solvers import Heat2D, Lorenz
from surrogate_flow.surrogate.metrics import StandardError
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing.store import trajectory


class Rank(Ranks):
    """One of several, whose gathers meet in a list that the test reads in turn."""

    def __init__(self, rank, shares):
        super().__init__()
        self.rank, self.shares = rank, iter(shares)

    def gather(self, value):
        return next(self.shares)(value)


def trained(spec, window=None, simulations=5, first=0, stride=1):
    """A surrogate, its validation set of this rank, and what Lightning would have of both."""
    window = window or Direct()
    torch.manual_seed(0)
    network = partial(FullyConnected, widths=(8,))
    surrogate = Surrogate(spec, network, window=window)
    surrogate.normalisation.freeze(
        np.full(len(spec.variables), 0.5), np.ones(len(spec.variables))
    )
    held_out = ValidationSet(spec, window, 3, first, simulations, stride=stride)
    for row in range(simulations):
        number = held_out.number(row)
        steps = trajectory(spec, number, 0, spec.steps)
        held_out.offer(number, 0, steps, np.full(len(spec.parameters), number / 10))
    validate(surrogate, held_out)
    return surrogate, held_out


@torch.no_grad()
def validate(surrogate, *shares):
    """As a validation of all ranks."""
    spread = surrogate.spreads["val"]
    for held_out in shares:
        for batch in held_out:
            guess = surrogate(batch.parameters, batch.step, batch.history)
            spread.update(guess, batch.target, batch.simulation)
    spread.compute()
    spread.reset()


def end(folder, surrogate, held_out, ranks=None):
    data = OnlineData(Lorenz(steps=4), name="mine")
    data.spec, data.validation = surrogate.spec, held_out
    data.ranks = ranks or data.ranks
    trainer = SimpleNamespace(datamodule=data)
    callback = HeldOut(folder)
    callback.on_train_batch_start()
    callback.on_fit_end(trainer, surrogate)
    (folder / "telemetry.csv").touch()
    return RunFolder(folder)


@pytest.mark.parametrize("window", [Direct(), Autoregressive(1, 2)])
def test_each_simulation_has_its_errors(window, tmp_path):
    """Those of its samples; their mean is the error that the validation logs."""
    fields = spec((6, 4), variables=2)
    surrogate, held_out = trained(fields, window)
    table = end(tmp_path, surrogate, held_out).validation
    assert table.simulation.tolist() == [*range(5)]
    np.testing.assert_allclose(table.p1, np.arange(5) / 10, rtol=1e-6)
    for number in range(5):
        one = ValidationSet(fields, window, 3, number, 1)
        one.offer(number, 0, held_out.fields[number], held_out.parameters[number])
        errors = surrogate.val_errors
        for batch in one:
            guess = surrogate(batch.parameters, batch.step, batch.history)
            errors.update(guess.detach(), batch.target)
        expected = {name: float(value) for name, value in errors.compute().items()}
        errors.reset()
        for column in ("relative_l2", "rmse_u0", "rmse_u1"):
            value = float(table[column][number])
            assert value == pytest.approx(expected[f"val_{column}"], rel=1e-5)


def test_numbers_have_errors_too():
    """The ratio is of sums over all samples of a simulation."""
    spread = StandardError(of_numbers=True)
    truth = torch.tensor([3.0, 4.0, 1.0, 2.0]).reshape(4, 1, 1)
    guess = truth + torch.tensor([0.3, 0.4, 0.0, 1.0]).reshape(4, 1, 1)
    spread.update(guess, truth, torch.tensor([7, 7, 2, 2]))
    spread.compute()
    expected = [[2, np.sqrt(1 / 5), np.sqrt(1 / 2)], [7, 0.1, np.sqrt(0.25 / 2)]]
    np.testing.assert_allclose(spread.by_simulation, expected, rtol=1e-6)


@pytest.mark.parametrize("window", [Direct(), Autoregressive(1, 1)])
def test_cases_are_the_best_the_median_and_the_worst(window, tmp_path):
    """The solver's fields, and what `predict` says of them."""
    fields = Heat2D(cells=(6, 4), steps=7).spec
    surrogate, held_out = trained(fields, window)
    run = end(tmp_path, surrogate, held_out)
    cases, table = run.cases, run.validation.sort_values("relative_l2")
    assert cases.case.values.tolist() == ["best", "median", "worst"]
    numbers = cases.simulation.values.tolist()
    assert numbers == table.simulation.iloc[[0, 2, 4]].tolist()
    np.testing.assert_allclose(
        cases.relative_l2, table.relative_l2.iloc[[0, 2, 4]], 1e-6
    )
    first = window.inputs
    np.testing.assert_array_equal(cases.time, fields.times[first:])
    for number, case in zip(numbers, cases.case, strict=True):
        one = cases.sel(case=case)
        truth = trajectory(fields, number, 0, fields.steps)[first:, 0]
        np.testing.assert_array_equal(one.temperature, truth)
        named = {p.name: float(one[p.name]) for p in fields.parameters}
        assert named["left"] == pytest.approx(number / 10)
        history = held_out.simulation(number, slice(first)) if first else None
        guess = surrogate.predict(named, history=history).temperature
        np.testing.assert_allclose(one.temperature_surrogate, guess, rtol=1e-6)


def test_cases_of_all_ranks_and_none_hangs(tmp_path):
    """One has no finished simulation, another the worst; the first writes."""
    fields = spec((5,))
    surrogate, mine = trained(fields, simulations=2, stride=3)
    _, theirs = trained(fields, simulations=2, first=1, stride=3)
    none = ValidationSet(fields, Direct(), 3, 2, 2, stride=3)
    validate(surrogate, mine, theirs, none)
    kept = {}
    for rank, held_out in ((1, theirs), (2, none), (0, mine)):

        def points(value, rank=rank):
            kept[rank, "points"] = value
            return [kept.get((k, "points"), {}) for k in range(3)]

        def cases(value, rank=rank):
            kept[rank, "cases"] = value
            return [kept.get((k, "cases"), {}) for k in range(3)]

        folder = tmp_path / str(rank)
        folder.mkdir()
        run = end(folder, surrogate, held_out, Rank(rank, [points, cases]))
        assert (folder / "validation.csv").exists() == (rank == 0)
    assert kept[2, "cases"] == {}
    assert kept[1, "cases"]
    assert run.validation.simulation.tolist() == [0, 1, 3, 4]
    assert run.validation.p0.notna().all()
    assert {*run.cases.simulation.values} <= {0, 1, 3, 4}
    assert run.cases.sizes["case"] == 3


@pytest.mark.parametrize(
    "spec",
    [
        spec((), variables=3),
        spec((500,), variables=2),
        spec((128, 128), parameters=30),
        spec((400, 300), variables=4, offset=1e5),
        spec((30, 40, 50), variables=2),
        spec((2000,), mesh=True),
        spec((60_000,), mesh=True),
    ],
    ids=lambda s: f"{len(s.variables)}-{s.shape}-{s.cells is not None}",
)  # fmt: skip
def test_cases_nc_stays_under_two_megabytes(spec, tmp_path):
    """At most 40 of many times, and cells are left out rather than times below twelve."""
    spec = FieldSpec(
        **{**vars(spec), "times": tuple(np.linspace(0, 1, 50))},
    )
    surrogate, held_out = trained(spec, simulations=3)
    cases = end(tmp_path, surrogate, held_out).cases
    size = (tmp_path / "cases.nc").stat().st_size
    assert size < 2_000_000
    assert 12 <= cases.sizes["time"] <= 40
    thin, steps = thinned(spec, 3, 0)
    assert size > 1_000_000 or thin.spec.shape == spec.shape
    channel, last = len(spec.variables) - 1, steps[-1]
    name = spec.variables[-1].name
    number = int(cases.simulation[0])
    truth = held_out.fields[number, last, channel][thin.index].squeeze()
    stored = cases[name].isel(case=0, time=-1).values
    np.testing.assert_allclose(stored, spec.variables[-1].offset + truth, rtol=1e-6)
    assert ("cells" in cases) == (
        spec.cells is not None and thin.spec.cells is not None
    )


def test_what_the_network_cannot_predict_ends_no_run(tmp_path, caplog):
    """The table is there, and the log says why the fields are not."""
    surrogate, held_out = trained(spec((5,)))
    surrogate.predict = lambda *_, **__: 1 / 0
    run = end(tmp_path, surrogate, held_out)
    assert len(run.validation) == 5
    assert run.cases is None
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("variable", "dim"), [("u", "case"), ("case", "simulation")])
def test_names_of_the_files_are_kept_apart_from_those_of_the_spec(
    variable, dim, tmp_path, caplog
):
    """Own columns keep their names, and those of the spec have a suffix."""
    names = ("simulation", "relative_l2", "rmse_u")
    fields = FieldSpec(
        parameters=tuple(Parameter(n, 0.0, 1.0) for n in names if n != dim),
        variables=(Variable(variable),),
        dims=(dim,),
        shape=(5,),
        times=(0.0, 1.0),
    )
    run = end(tmp_path, *trained(fields))
    assert run.validation.simulation.tolist() == [*range(5)]
    apart = run.validation.relative_l2_parameter
    np.testing.assert_allclose(apart, np.arange(5) / 10, rtol=1e-6)
    case = run.cases.sel(case="median")
    row = run.validation.set_index("simulation").loc[int(case.simulation)]
    assert float(case.relative_l2) == pytest.approx(row.relative_l2, rel=1e-5)
    field = case[variable if variable == "u" else "case_field"]
    assert field.dims == ("time", f"{dim}_field")
    truth = trajectory(fields, int(case.simulation), 0, 2)[:, 0]
    np.testing.assert_array_equal(field, truth)
    assert not caplog.text


def test_what_a_fit_took_is_written_whatever_the_network_does(tmp_path, caplog):
    """And where a package was replaced during the run, only the page is missing."""
    surrogate, held_out = trained(spec((5,)))
    surrogate.predict = lambda *_, **__: 1 / 0
    data = Filled()
    data.spec, data.validation = surrogate.spec, held_out
    trainer = SimpleNamespace(
        datamodule=data,
        is_global_zero=True,
        global_step=7,
        callback_metrics={"val_relative_l2": torch.tensor(0.25)},
        loggers=[],
    )
    WriteSummary(tmp_path).on_fit_end(trainer, surrogate)
    outcome = RunFolder(tmp_path).outcome
    assert (outcome.batches, outcome.errors) == (7, {"val_relative_l2": 0.25})
    assert outcome.surrogate_seconds is None
    assert caplog.text.count("ZeroDivisionError") == 1
    page = WritePage(tmp_path)
    with pytest.MonkeyPatch.context() as gone:
        for name in (
            "surrogate_flow.report.html.run_page",
            "rocrate.model.softwareapplication",
        ):
            gone.setitem(sys.modules, name, None)
        page.on_fit_end(trainer)
        page.teardown(trainer, surrogate, "fit")
    assert caplog.text.count("ModuleNotFoundError") == 2
    assert not (tmp_path / "report.html").exists()
