"""Input fields on their way from a sampler or a solver to batches, checkpoints and data sets."""

import csv
import re

import numpy as np
import pytest
import pytorch_lightning as L
import torch
import xarray as xr

from surrogate_flow.cli.app import main
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.data.archiving import planned
from surrogate_flow.data.attached import Attach
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.stored import StoredData
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.sharing import SharedStudy
from surrogate_flow.ensemble.study import StudySettings
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import FIRO, Reservoir
from surrogate_flow.sampling import (
    Design,
    FieldsFromFile,
    InputSampler,
    Uniform,
)
from surrogate_flow.solvers import Heat2D
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.surrogate.surrogate import Surrogate

STEPS, CELLS = 4, 5


def field(number):
    """What tells of which simulation it is."""
    return np.array([number + np.arange(CELLS) / 8])


class Numbered(InputSampler):
    """The fields of `field`."""

    def draw(self, number, spec, random):
        return field(number)


class LastDiffers(Numbered):
    """The same fields up to the last cell."""

    def draw(self, number, spec, random):
        drawn = field(number)
        drawn[0, -1] += 0.5
        return drawn


class Shifts(Solver):
    """u(t) = a + t, of a field a that it is given; simulations of odd numbers fail once."""

    spec = FieldSpec(
        parameters=(),
        variables=(Variable("u"), Variable("v")),
        dims=("x",),
        shape=(CELLS,),
        times=tuple(float(t) for t in range(1, STEPS + 1)),
        inputs=(Variable("a"),),
    )

    def start(self, run):
        for step, dataset in enumerate(self.solve(run.given)):
            if step == 2 and run.attempt == 0 and run.simulation % 2:
                raise RuntimeError("fails once")
            yield dataset

    def solve(self, parameters):
        assert parameters["a"].dtype == np.float32
        for t in self.spec.times:
            u = (parameters["a"] + t)[None]
            yield xr.Dataset(
                {"u": (("time", "x"), u), "v": (("time", "x"), -u)}, {"time": [t]}
            )


class Makes(Shifts):
    """Makes the field itself, from its number."""

    def start(self, run):
        (a,) = field(run.simulation)
        for dataset in super().solve({"a": a.astype(np.float32)}):
            yield dataset.assign(a=("x", a))


class Wrong(Makes):
    """Makes a field that is none."""

    def start(self, run):
        for dataset in self.solve({"a": np.ones(CELLS, np.float32)}):
            yield dataset.assign(a=("x", np.full(CELLS, np.nan)))


class Forgets(Makes):
    """Keeps the field for itself."""

    def start(self, run):
        return self.solve({"a": np.ones(CELLS, np.float32)})


@pytest.fixture
def opened(tmp_path, monkeypatch, cluster):
    """Makes data modules whose study is open, and closes them."""
    monkeypatch.chdir(tmp_path)
    modules = []

    def make(solver, **options):
        data = OnlineData(
            solver,
            **{
                "inputs": Numbered(),
                "simulations": 12,
                "held_out": 2,
                "batch_size": 4,
                "reservoir": FIRO(capacity=24, threshold=8),
                "faults": Faults(retries=2),
                "cluster": Existing(cluster.scheduler_address),
                **options,
            },
        )
        data.trainer = None
        modules.append(data)
        return data

    yield make
    for data in modules:
        data.close()


def check(batches, spec=Shifts.spec):
    """Compare the inputs of each sample with its number and its fields; return the samples."""
    samples = []
    for batch in batches:
        numbers = batch.simulation.numpy()
        given = np.stack([field(n) for n in numbers]).astype("f")
        np.testing.assert_array_equal(batch.inputs.numpy(), given)
        times = np.array(spec.times, "f")[batch.step.int().numpy()]
        u = batch.inputs[:, 0].numpy() + times[:, None]
        np.testing.assert_array_equal(batch.target[:, 0].numpy(), np.stack([u, -u], 1))
        samples += list(zip(numbers.tolist(), batch.step.int().tolist(), strict=True))
    return samples


EVERY = sorted((n, step) for n in range(2, 14) for step in range(STEPS))


@pytest.mark.parametrize(
    ("solver", "inputs"), [(Shifts(), Numbered()), (Makes(), None)]
)
def test_each_sample_has_the_fields_that_its_solver_had(opened, solver, inputs):
    """Once each, though half of the simulations are tried twice."""
    data = opened(solver, inputs=inputs)
    data.setup("fit")
    mean, std = data.moments()
    assert mean.shape == std.shape == (3,)
    assert sorted(check(data.train_dataloader())) == EVERY
    held_out = data.val_dataloader()
    assert len(check(held_out)) == 2 * STEPS
    np.testing.assert_array_equal(held_out.given(1)["a"], field(1)[0].astype("f"))


def test_a_data_set_has_them_too(opened, tmp_path):
    """Written by the workers; read back, also in blocks, and opened by xarray."""
    data = opened(Shifts(), archive=tmp_path / "some.zarr")
    data.setup("fit")
    assert len(list(data.train_dataloader())) >= 12
    data.close()
    stored = xr.open_zarr(tmp_path / "some.zarr")
    assert stored["a"].dims == ("simulation", "x")
    np.testing.assert_array_equal(stored["a"][5], field(5)[0].astype("f"))
    for memory in ("1 MB", 800):
        again = StoredData(tmp_path / "some.zarr", batch_size=5, memory=memory)
        again.trainer = None
        again.setup("fit")
        assert again._samples.in_memory == (memory == "1 MB")
        assert again.moments()[0].shape == (3,)
        assert sorted(check(again.train_dataloader())) == EVERY
        assert len(check(again.val_dataloader())) == 2 * STEPS
        again.close()


def fit(data, folder, steps, path=None, **options):
    torch.manual_seed(0)
    surrogate = Surrogate(data.spec, FullyConnected, **options)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(surrogate, data, ckpt_path=path)
    trainer.save_checkpoint(folder / "some.ckpt")
    return surrogate


def test_a_resumed_run_trains_on_what_is_left(opened, tmp_path):
    """With the fields of what the checkpoint holds: the store's, drawn batches', held-out ones."""
    options = {
        "checkpoint_reservoir": True,
        "reservoir": Reservoir(capacity=24, threshold=8),
    }
    fit(opened(Shifts(), **options), tmp_path, 5)
    saved = torch.load(tmp_path / "some.ckpt", weights_only=True)
    (state,) = saved["OnlineData"]["ranks"]
    assert len(state["store"]["given"])
    data = opened(Shifts(), **options)
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            seen.append(batch)

    torch.manual_seed(0)
    trainer = L.Trainer(
        max_steps=9, accelerator="cpu", devices=1, logger=False, callbacks=[Look()]
    )
    trainer.fit(
        Surrogate(data.spec, FullyConnected), data, ckpt_path=tmp_path / "some.ckpt"
    )
    assert len(check(seen)) == 16
    other = opened(Shifts(), **options, inputs=LastDiffers())
    with pytest.raises(UserError, match=r"another data\.inputs .*\ba\b"):
        fit(other, tmp_path, 12, tmp_path / "some.ckpt")


def test_a_surrogate_predicts_from_input_fields(opened, tmp_path):
    """Rolled out, too, with the fields of each sample; and says what is missing."""
    data = opened(Shifts())
    trained = fit(data, tmp_path, 3, window=Autoregressive(1))
    loaded = Surrogate.load(tmp_path / "some.ckpt")
    assert torch.equal(
        loaded.normalisation.input_shift, trained.normalisation.input_shift
    )
    assert float(loaded.normalisation.input_scale.min()) > 0.3
    first = next(Shifts().solve({"a": field(3)[0].astype("f")}))
    fields = xr.Dataset({"a": (("sample", "x"), np.concatenate([field(3), field(9)]))})
    several = loaded.predict({}, history=first, inputs=fields)
    assert several["u"].dims == ("sample", "time", "x")
    for k, number in enumerate((3, 9)):
        alone = loaded.predict({}, history=first, inputs={"a": field(number)[0]})
        np.testing.assert_allclose(several["u"][k], alone["u"], rtol=1e-5)
    for inputs, reason in (
        (None, "expected the input field 'a' of the shape"),
        (
            {"a": np.ones(3)},
            r"input field 'a': expected real numbers of the shape \(5,\)",
        ),
        ({"b": np.ones(5)}, "unknown input field 'b'"),
        (np.ones(5), r"inputs: expected a Mapping, such as {'a': field}"),
        (
            {"a": np.ones((0, 5))},
            "inputs: expected one field or more of each, got none",
        ),
        (xr.Dataset({"a": (("sample", "x"), np.ones((0, 5)))}), "one field or more"),
        (xr.Dataset({"a": ("y", np.ones(5))}), r"'a': expected the dims \('x',\)"),
    ):
        with pytest.raises(ArgumentError, match=f"^predict: .*{reason}"):
            loaded.predict({}, history=first, inputs=inputs)


@pytest.mark.parametrize("solver", [Forgets(), Wrong()], ids=["none", "wrong"])
def test_fields_that_are_missing_or_wrong_end_each_simulation_once(
    opened, tmp_path, solver
):
    """With one reason a row: another attempt would give the same."""
    data = opened(solver, inputs=None)
    data.setup("fit")
    with pytest.raises(EnsembleError):
        data.moments()
    _, *rows = csv.reader((tmp_path / "failures.csv").open())
    reason = "first dataset.*'a'.*none" if type(solver) is Forgets else "'a'.*5 of 5"
    assert rows
    for row in rows:
        assert re.search(reason, str(row)), row
    numbers = [row[1] for row in rows]
    assert len({*numbers}) == len(numbers)


def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path):
    np.save(tmp_path / "three.npy", np.ones((3, CELLS)))
    np.save(tmp_path / "other.npy", np.ones((30, CELLS + 1)))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    three = OnlineData(
        Shifts(), inputs=FieldsFromFile(tmp_path / "three.npy"), held_out=1
    )
    assert three.simulations == 2
    for solver, inputs, reason in (
        (Heat2D(), Numbered(), "Heat2D has no input fields"),
        (
            Shifts(),
            FieldsFromFile(tmp_path / "three.npy"),
            "data.held_out: expected less than the 3",
        ),
        (
            Shifts(),
            FieldsFromFile(tmp_path / "other.npy"),
            r"shape \(input, \*space\) = \(1, 5\)",
        ),
        (Shifts(), FieldsFromFile(tmp_path / "cut.npy"), "expected a file of numpy"),
        (Shifts(), "grf", "data.inputs: expected a InputSampler"),
    ):
        with pytest.raises(ArgumentError, match=reason):
            OnlineData(solver, inputs=inputs, held_out=5)
    with pytest.raises(
        ArgumentError, match="'a' for an input field and for a parameter"
    ):
        FieldSpec(
            (Parameter("a", 0, 1),),
            (Variable("u"),),
            (),
            (),
            (0.0,),
            inputs=(Variable("a"),),
        )


def test_trainings_that_share_a_study_have_them(tmp_path, monkeypatch, cluster):
    """By the stream, and of one that comes later from the data set."""
    monkeypatch.chdir(tmp_path)
    known = {"held_out": 2, "simulations": 12}
    options = {"batch_size": 4, "reservoir": FIRO(capacity=24, threshold=8)}
    archive, _ = planned(
        tmp_path / "simulations.zarr",
        Shifts(),
        Uniform(),
        workflow="shifts",
        inputs=Numbered(),
        **known,
    )

    def train(name):
        attach = Attach(tmp_path, name)
        data = OnlineData(
            Shifts(), inputs=Numbered(), attach=attach, **known, **options
        )
        data.trainer = None
        data.setup("fit")
        try:
            data.moments()
            assert sorted(check(data.train_dataloader())) == EVERY
            assert len(check(data.val_dataloader())) == 2 * STEPS
        finally:
            data.close()

    try:
        with SharedStudy(
            Shifts(),
            Design((), Uniform(), given=True, **known),
            cluster=Existing(cluster.scheduler_address),
            faults=Faults(),
            settings=StudySettings("shifts", tmp_path, inputs=Numbered()),
            archive=archive,
            late="wait",
        ) as shared:
            train("one")
            assert len(archive.complete()) == 14
            train("two")
            shared.check()
    finally:
        archive.release()


def test_predict_takes_them_from_a_file(opened, tmp_path, capsys):
    """One of each or several; and says what is missing, in one sentence."""
    fit(opened(Shifts()), tmp_path, 2)
    command = ["predict", f"--ckpt_path={tmp_path / 'some.ckpt'}"]
    fields = np.concatenate([field(3), field(9)])
    xr.Dataset({"a": ("x", fields[1])}).to_netcdf(tmp_path / "one.nc")
    xr.Dataset({"a": (("sample", "x"), fields)}).to_netcdf(tmp_path / "two.nc")
    main([*command, "--inputs=one.nc", "--output=of_one.nc"])
    main([*command, "--inputs=two.nc", "--output=of_two.nc"])
    one, two = xr.load_dataset("of_one.nc"), xr.load_dataset("of_two.nc")
    assert dict(two.u.sizes) == {"sample": 2, "time": STEPS, "x": CELLS}
    np.testing.assert_allclose(two.u[1], one.u, rtol=1e-5, atol=1e-6)
    for words, reason in (
        (["--parameters={}"], "the input field 'a', got none. Such as --inputs"),
        (["--samples=3", "--inputs=one.nc"], "--samples draws parameters"),
        (["--inputs=none.nc"], "no file 'none.nc'"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*command, *words])
        assert reason in " ".join(capsys.readouterr().err.split())
