"""What a run records while it goes on: true to the training, small, at next to no cost."""

import json
import logging
import resource
import shlex
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filled import SIMULATIONS, SPEC, Filled, fit, parameters_of
from pytorch_lightning.callbacks import LambdaCallback

from surrogate_flow.fields.conventions import about
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report import about as about_module
from surrogate_flow.report import records as records_module
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.records import LossTable, NewestFile, Records, Throttle
from surrogate_flow.sampling import Observations
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.observation import Look, Probe
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing.store import trajectory

LIMIT = 65_536


def spec(shape, *, variables=1, parameters=2, mesh=False, offset=0.0):
    """A spec of fields with so many cells; of a mesh, triangles in a strip."""
    dims = ("node",) if mesh else ("x", "y", "z")[: len(shape)]
    names = ("x", "y") if mesh else dims
    cells = [(k, k + 1, k + 2) for k in range(shape[0] - 2)] if mesh else None
    return FieldSpec(
        parameters=tuple(Parameter(f"p{k}", 0.0, 1.0, "m") for k in range(parameters)),
        variables=tuple(
            Variable(f"u{k}", "K", offset=offset) for k in range(variables)
        ),
        dims=dims,
        shape=shape,
        times=(0.0, 0.5, 1.0),
        time_units="s",
        coordinates=tuple(
            Coordinate(n, d, tuple(np.linspace(0, 1, size)), "m")
            for n, d, size in zip(
                names, dims * len(names), shape * len(names), strict=False
            )
        ),
        cells=cells,
    )


def look(spec, field, samples=4):
    """What a probe sees of samples 0, 1, ... at steps 0, 1, 2, 0, ..., and their fields."""
    values = np.random.default_rng(0).random((2, samples, *spec.step_shape), np.float32)
    truth, guess = values
    seen = Observations(
        np.arange(samples),
        np.arange(samples) % spec.steps,
        np.linspace(0, 1, samples * len(spec.parameters), dtype=np.float32).reshape(
            samples, -1
        ),
        np.ones(samples, dtype=np.float32),
    )
    shown = slice(None) if not spec.dims else slice(samples - 1, samples)
    thin = (shown, slice(None), *field.index)
    return Look(seen, samples - 1, truth[thin], guess[thin]), values


@pytest.mark.parametrize(
    "spec",
    [
        spec(()),
        spec((), variables=3, parameters=30),
        spec((7,), offset=1e5),
        spec((100_000,), variables=4),
        spec((64, 64)),
        spec((3000, 20), parameters=40),
        spec((500, 400), variables=8),
        spec((40, 50, 60), variables=2),
        spec((300,), mesh=True),
        spec((50_000,), mesh=True),
        spec((32, 32), variables=20),
        spec((64, 64), variables=120),
        spec((), variables=200),
    ],
    ids=lambda s: f"{len(s.dims)}D-{len(s.variables)}-{s.shape}-{s.cells is not None}",
)  # fmt: skip
def test_newest_nc_is_small_and_has_the_numbers_of_both(spec, tmp_path):
    """Every s-th point of the solver's field and the surrogate's, with coordinates."""
    cut = ("z",) if len(spec.dims) > 2 else ()
    field = NewestFile(spec, 4, cut=cut)
    seen, (truth, guess) = look(spec, field)
    path = tmp_path / "newest.nc"
    field.write(seen, 17, path)
    (tmp_path / "telemetry.csv").touch()
    newest = RunFolder(tmp_path).newest
    assert path.stat().st_size <= LIMIT
    small = truth[0].nbytes * 2 < LIMIT / 4
    out = newest.attrs.pop("variables_left_out", 0)
    shown = spec.variables[: len(spec.variables) - out]
    assert len(newest.data_vars) == 2 * len(shown) + ("cells" in newest)
    for channel, variable in enumerate(shown):
        for suffix, fields in (("", truth), ("_surrogate", guess)):
            stored = newest[variable.name + suffix]
            full = fields[:, channel] if not spec.dims else fields[-1, channel]
            thin = full if not spec.dims else full[field.index].squeeze()
            np.testing.assert_array_equal(
                stored.values, variable.offset + thin.astype(float)
            )
            assert stored.attrs["units"] == "K"
            assert not small or stored.size == full.size
            # No more is left out than the file has no room for.
            assert stored.size * 4 * 2 * len(shown) > LIMIT / 10 or small or out
            assert not out or not spec.dims or stored.size > 250
    assert newest.attrs == {"simulation": 3, "step": 0, "batch": 17}
    times = [0.0, 0.5, 1.0, 0.0] if not spec.dims else 0.0
    np.testing.assert_array_equal(newest.time, times)
    last = newest.p1 if spec.dims else newest.p1[-1]
    assert float(last) == pytest.approx(seen.seen.parameters[-1, 1])
    for c in spec.coordinates:
        at = np.array(c.values)[field.index[spec.dims.index(c.dim)]]
        np.testing.assert_array_equal(newest[c.name], at.squeeze())
    whole = spec.cells is not None and small
    assert ("cells" in newest) == whole
    assert not whole or newest.cells.values.tolist() == [list(c) for c in spec.cells]


def test_a_probe_sees_the_training_step(tmp_path):
    """Losses of all samples, fields of the newest simulation, only when it is wanted."""
    fields = spec((6, 4), variables=2)
    surrogate = Surrogate(fields, partial(FullyConnected, widths=(4,)))
    surrogate.normalisation.freeze(np.array([0.5, 2.0]), np.array([2.0, 3.0]))
    batch = Batch(
        torch.rand(3, 2),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.empty(3, 0, 2, 6, 4),
        torch.rand(3, 1, 2, 6, 4),
        torch.tensor([4, 9, 7]),
    )
    probe = Probe((slice(None, None, 2), slice(None)))
    normalised = surrogate.normalised(batch.parameters, batch.step, batch.history)
    assert probe.wanted
    loss = torch.tensor(0.5)
    target = surrogate.normalisation.fields(batch.target)
    probe.take(surrogate, batch._replace(weight=0.0), normalised, target, loss)
    assert probe.look() is None
    probe.take(surrogate, batch, normalised, target, loss)
    assert not probe.wanted
    seen = probe.look()
    assert probe.look() is None
    assert seen.newest == 1
    losses = (normalised - target).square().flatten(1).mean(1)
    np.testing.assert_allclose(seen.seen.loss, losses.detach(), rtol=1e-5)
    assert seen.seen.simulation.tolist() == [4, 9, 7]
    np.testing.assert_array_equal(seen.truth[0], batch.target[1, 0, :, ::2])
    guess = surrogate(batch.parameters, batch.step, batch.history)[1, 0, :, ::2]
    np.testing.assert_allclose(seen.guess[0], guess.detach(), rtol=1e-5)


def test_a_fit_leaves_what_it_trained_on(tmp_path):
    """run.json, the losses of all simulations, the newest field; and no probe."""
    records = Records(tmp_path)
    monitor = Monitor(tmp_path, [records])
    always = records._looks = Throttle(0.0, 1e6)
    records._paces = dict.fromkeys(records._paces, always)
    each = LambdaCallback(on_train_batch_end=lambda *_: monitor.sample())
    surrogate, trainer = fit(Filled(), tmp_path, monitor, records, each)
    run = RunFolder(tmp_path)
    assert sorted(run.losses.simulation) == [*range(SIMULATIONS)]
    for row in run.losses.to_dict("records"):
        point = [row[p.name] for p in SPEC.parameters]
        assert point == parameters_of(row["simulation"]).tolist()
        assert row["loss"] > 0
        assert 0 < row["seconds"] <= run.telemetry.seconds.max()
    simulation, step = (run.newest.attrs[name] for name in ("simulation", "step"))
    truth = trajectory(SPEC, simulation, step, 1)[0, 0]
    np.testing.assert_array_equal(run.newest.temperature, truth)
    assert run.newest.attrs["batch"] == trainer.global_step
    assert run.about["name"] == "filled"
    known = {**run.about["spec"], "times": SPEC.times, "coordinates": SPEC.coordinates}
    assert (
        FieldSpec(**known | {n: getattr(SPEC, n) for n in ("parameters", "variables")})
        == SPEC
    )
    assert known["parameters"] == SPEC.to_plain()["parameters"]
    assert run.about["versions"]["torch"] == torch.__version__
    assert run.about["ended"] >= run.about["started"]
    assert surrogate.probe is None
    assert run.state == "ended"


def test_what_cannot_be_recorded_ends_no_run(tmp_path, caplog, monkeypatch):
    """A full disk, and a defect of the record: each is logged once."""
    records = Records(tmp_path)
    monitor = Monitor(tmp_path, [records])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    records._paces = {}

    def full(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    each = LambdaCallback(
        on_train_start=full, on_train_batch_end=lambda *_: monitor.sample()
    )
    try:
        with caplog.at_level(logging.ERROR):
            fit(Filled(), tmp_path, monitor, records, each)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("newest.nc was not written") == 1
    assert not (tmp_path / "newest.nc").exists()

    caplog.clear()
    records = Records(tmp_path)
    monitor = Monitor(tmp_path, [records])
    monkeypatch.setattr(records_module.LossTable, "add", lambda *_: 1 / 0)
    fit(Filled(), tmp_path, monitor, records)
    assert caplog.text.count("gets no further status") == 1


def test_a_failed_run_says_why(tmp_path):
    """In run.json, from which the state and the problem are read."""

    def fail(*_):
        raise MemoryError("no room")

    failing = LambdaCallback(on_train_batch_end=fail)
    with pytest.raises(MemoryError):
        fit(Filled(), tmp_path, Records(tmp_path), failing)
    run = RunFolder(tmp_path)
    assert run.about["error"] == "MemoryError: no room"
    assert run.state == "stopped"


class Noisy(torch.nn.Module):
    """A user's loss, which draws numbers and counts its calls."""

    reduction = "mean"
    calls = 0

    def forward(self, prediction, target):
        self.calls += 1
        return (prediction - target + torch.rand(1)).square().mean()


@pytest.mark.parametrize("fails", [False, True])
def test_looking_calls_no_loss_of_a_user(fails, caplog, monkeypatch):
    """It has the loss of the batch; what fails is logged once, and ends the looking."""
    surrogate = Surrogate(SPEC, partial(FullyConnected, widths=(4,)), loss=Noisy())
    surrogate.normalisation.freeze(np.zeros(1), np.ones(1))
    surrogate.probe = probe = Probe((slice(None), slice(None)))
    if fails:
        monkeypatch.setattr(surrogate.normalisation, "physical", lambda *_: 1 / 0)
    fields = torch.rand(2, 1, 1, 6, 4)
    batch = Batch(
        torch.rand(2, 5), torch.zeros(2), fields[:, :0], fields, torch.arange(2)
    )
    before = torch.get_rng_state()
    probe.take(surrogate, batch, fields, fields, torch.tensor(0.5, requires_grad=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert surrogate.loss.calls == 0
    if fails:
        assert surrogate.probe is None
        assert caplog.text.count("get nothing more") == 1
    else:
        assert probe.look().seen.loss.tolist() == [0.5, 0.5]


def test_each_run_has_its_own_record(tmp_path):
    """What the run before has said of its end is gone; a mesh is counted, not listed."""
    mesh = spec((20_000,), mesh=True)
    data = Filled()
    data.spec = mesh
    records = Records(tmp_path)
    trainer = SimpleNamespace(
        datamodule=data,
        is_global_zero=True,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        world_size=1,
    )
    records.setup(trainer, None, "fit")
    records.on_exception(trainer, None, OSError("PUT https://me:secret@host/ failed"))
    text = (tmp_path / "run.json").read_text()
    assert len(text) < 10_000
    assert "https://***@host/ failed" in text
    assert RunFolder(tmp_path).state == "stopped"
    records.setup(trainer, None, "fit")
    about = RunFolder(tmp_path).about
    assert not {"ended", "error"} & {*about}
    assert about["spec"]["cells"] == 19_998
    x = about["spec"]["coordinates"][0]
    assert x["values"] == {"count": 20_000, "low": 0.0, "high": 1.0}
    assert about["spec"]["times"] == {"count": 3, "low": 0.0, "high": 1.0}


def test_parameters_are_called_otherwise_than_the_columns():
    """Own columns come first, and keep their names."""
    names = ("step", "loss", "p", "step_parameter")
    fields = FieldSpec(
        parameters=tuple(Parameter(name, 0.0, 1.0) for name in names),
        variables=(Variable("u"),),
        dims=(),
        shape=(),
        times=(0.0,),
    )
    assert LossTable(fields).columns == [
        *("simulation", "step", "loss", "seconds"),
        *("step_parameter_parameter", "loss_parameter", "p", "step_parameter"),
    ]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("fit --trainer.logger.api_key abc --x 1", "fit --trainer.logger.api_key *** --x 1"),
        ("fit --logger.token=a=b --x 1", "fit --logger.token=*** --x 1"),
        ("fit --uri https://me:p@ss@host:5000/a", "fit --uri https://***@host:5000/a"),
        ("fit --uri http://host/a?x=1&apikey=s&y=2", "fit --uri http://host/a?x=1&apikey=***&y=2"),
        ("fit --logger {password:s,x:1}", "fit --logger {password:***,x:1}"),
        ("fit --data.solver.cells [8,8] --data heat2d", "fit --data.solver.cells [8,8] --data heat2d"),
    ],
)  # fmt: skip
def test_what_is_secret_stands_in_no_file(typed, shown, monkeypatch):
    """In run.json, and from there in the crate and the report; in `history`."""
    monkeypatch.setattr(sys, "orig_argv", ["/bin/surrogate-flow", *typed.split()])
    monkeypatch.setattr(sys, "argv", ["/bin/surrogate-flow", *typed.split()])
    assert shlex.split(about_module._command())[1:] == shown.split()
    history = about("title")["history"].split(maxsplit=1)[1]
    assert shlex.split(history) == ["surrogate-flow", *shown.split()]


def test_losses_are_those_of_the_last_simulations(tmp_path):
    """A simulation that is trained on again moves behind the others."""
    table = LossTable(spec((), parameters=1), kept=3)
    for simulation in (1, 2, 3, 2, 4):
        seen = Observations(*(np.array([v]) for v in (simulation, 7, [0.5], 0.25)))
        table.add(Look(seen, 0, np.empty(0), np.empty(0)), float(simulation))
    table.write(tmp_path / "losses.csv")
    assert (tmp_path / "losses.csv").read_text().splitlines() == [
        "simulation,step,loss,seconds,p0",
        "3,7,0.25,3.000,0.5",
        "2,7,0.25,2.000,0.5",
        "4,7,0.25,4.000,0.5",
    ]


def test_a_pace_follows_the_work(monkeypatch):
    """What takes a second of this thread is done again after two hundred.

    Imports are in the first time, which does not count.
    """
    clock = {"monotonic": 100.0, "thread_time": 0.0}
    ours = {name: lambda name=name: clock[name] for name in clock}
    monkeypatch.setattr(records_module, "time", SimpleNamespace(**ours))
    pace = Throttle(2.0, share=0.005)
    for work, pause in ((5.0, 2.0), (0.001, 2.0), (1.0, 200.0)):
        assert pace.due
        with pace.taking():
            clock["thread_time"] += work
        clock["monotonic"] += pause - 0.1
        assert not pace.due
        clock["monotonic"] += 0.1


def test_the_commit_is_that_of_the_working_folder(tmp_path, monkeypatch):
    """Where there is one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert about_module._commit() == ""
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run(["git", *words], check=True)
    assert len(about_module._commit()) == 40
    assert json.loads(json.dumps(about_module._command())) is not None
