"""Masks, vectors, 3D and staggered grids, from solvers to losses, files and data sets."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
import torch
import xarray as xr
from torch import nn

from surrogate_flow.cli.app import main
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.stored import StoredData
from surrogate_flow.dataset import Archive
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.staggered import box
from surrogate_flow.fields.thinning import Thinning
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FNO, FullyConnected, UNet
from surrogate_flow.reservoir import FIRO, Moments
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Encoder, SpecMismatch
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.export import export
from surrogate_flow.surrogate.metrics import StandardError, field_metrics
from surrogate_flow.surrogate.observation import loss_of, sample_losses
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing import check_solver

NAN = np.nan
X = np.arange(6) / 6


class Sea(Solver):
    """u and w of a plane wave; u is not defined over land, from `land` on."""

    spec = FieldSpec(
        parameters=(Parameter("speed", 0.5, 2.0), Parameter("land", 0.4, 0.9)),
        variables=(Variable("u", "m", masked=True), Variable("w")),
        dims=("x", "y"),
        shape=(6, 4),
        times=(0.1, 0.2, 0.3),
        coordinates=(Coordinate("x", "x", tuple(X)),),
    )
    shore = 0.6

    def solve(self, parameters):
        for t in self.spec.times:
            w = np.sin(X - parameters["speed"] * t)[:, None] * np.ones(4)
            u = np.where(X[:, None] > self.of(parameters), NAN, 100 + w)
            fields = {"u": (("x", "y"), u), "w": (("x", "y"), w)}
            yield xr.Dataset(fields, {"x": X}).expand_dims(time=[t])

    def of(self, parameters):
        return self.shore


class Islands(Sea):
    """Each simulation with land of its own."""

    def of(self, parameters):
        return parameters["land"]


def land(at):
    return np.broadcast_to(X[:, None] > at, (6, 4))


@pytest.fixture
def opened(tmp_path, monkeypatch, cluster):
    """Makes data modules whose study is open, and closes them."""
    monkeypatch.chdir(tmp_path)
    modules = []

    def make(solver, **options):
        options = {
            "simulations": 12,
            "held_out": 2,
            "batch_size": 4,
            "reservoir": FIRO(capacity=24, threshold=8),
            "cluster": Existing(cluster.scheduler_address),
            **options,
        }
        data = OnlineData(solver, **options)
        data.trainer = None
        modules.append(data)
        return data

    yield make
    for data in modules:
        data.close()


def fit(data, folder, network=FullyConnected, steps=4, **options):
    torch.manual_seed(0)
    surrogate = Surrogate(data.spec, network, **options)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(surrogate, data)
    trainer.save_checkpoint(folder / "some.ckpt")
    return surrogate, trainer.callback_metrics


@pytest.mark.parametrize("solver", [Sea(), Islands()])
def test_masked_points_may_be_nan(solver):
    laws = check_solver(solver)
    assert len(laws) > 5


def batch(seed=0):
    """Predictions and targets of a batch, masked differently in each sample."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 3, 2, 2, 6, 4, generator=generator)
    prediction.requires_grad_()
    for k in range(3):
        target[k, :, 0, k + 2 :] = NAN
    return prediction, target


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss()])
def test_means_over_elements_leave_masked_points_out_exactly(loss):
    """Their gradients, too; of each sample, too."""
    prediction, target = batch()
    known = ~target.isnan()
    filled = target.nan_to_num()
    got = loss_of(loss, prediction, filled, known)
    (slope,) = torch.autograd.grad(got, prediction)
    wanted = loss(prediction[known], target[known])
    (expected,) = torch.autograd.grad(wanted, prediction)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(slope, expected)
    of_samples = sample_losses(loss, got, prediction, filled, known)
    for k in range(3):
        one = loss(prediction[k][known[k]], target[k][known[k]])
        torch.testing.assert_close(of_samples[k], one)


def test_a_loss_of_one_s_own_sees_zeros_over_land():
    class Largest(nn.Module):
        def forward(self, prediction, target):
            self.seen = prediction, target
            return (prediction - target).abs().amax()

    prediction, target = batch()
    known, own = ~target.isnan(), Largest()
    got = loss_of(own, prediction, target.nan_to_num(), known)
    assert got == (prediction - target)[known].abs().max()
    assert all((fields[~known] == 0).all() for fields in own.seen)


def test_errors_leave_masked_points_out():
    """Each is that of the points of the sea alone; a prediction of NaN there is no good one."""
    prediction, target = batch()
    with torch.no_grad():
        metrics = field_metrics(Sea.spec, "", detailed=True)
        metrics.update(prediction, target)
        got = {name: float(value) for name, value in metrics.compute().items()}
    p, t = prediction.detach().double().numpy(), target.double().numpy()
    away, size = np.square(p - t), np.square(t)
    space, whole = (-2, -1), (1, -2, -1)
    ratios = np.sqrt(np.nansum(away, whole) / np.nansum(size, whole))
    assert got["relative_l2"] == pytest.approx(ratios.mean())
    for k, name in enumerate("uw"):
        e, u = away[:, :, k], t[:, :, k]
        assert got[f"rmse_{name}"] == pytest.approx(np.sqrt(np.nanmean(e)))
        assert got[f"mse_{name}"] == pytest.approx(np.nanmean(e))
        assert got[f"max_{name}"] == pytest.approx(np.sqrt(np.nanmax(e)))
        of_samples = np.sqrt(np.nanmean(e, (1, 2, 3)))
        assert got[f"p99_{name}"] == pytest.approx(np.percentile(of_samples, 99))
        rms = np.sqrt(np.nanmean(e, space))
        ratio = rms / np.sqrt(np.nanmean(u**2, space))
        assert got[f"nrmse_{name}"] == pytest.approx(ratio.mean())
        ratio = rms / np.nanstd(u, space)
        assert got[f"vrmse_{name}"] == pytest.approx(ratio.mean(), rel=1e-5)
    spread = StandardError(of_numbers=False)
    spread.update(prediction.detach(), target, torch.arange(3))
    assert float(spread.compute()) == pytest.approx(
        ratios.mean(1).std() / np.sqrt(2), rel=1e-5
    )
    expected = np.sqrt(np.nanmean(away, whole))
    np.testing.assert_allclose(spread.by_simulation[:, 2:], expected, rtol=1e-6)
    with torch.no_grad():
        prediction[0, 0, 0, 0, 0] = NAN
        metrics.update(prediction, target)
    assert np.isnan(float(metrics.compute()["rmse_u"]))


def test_moments_leave_masked_points_out():
    _, target = batch()
    moments, numbers = Moments(2), target.double().numpy()
    for sample in numbers:
        moments.update(sample)
    np.testing.assert_allclose(moments.mean, np.nanmean(numbers, (0, 1, 3, 4)))
    np.testing.assert_allclose(moments.std, np.nanstd(numbers, (0, 1, 3, 4)))


def test_a_mask_of_the_study_is_in_the_checkpoint(opened, tmp_path):
    """Predictions have it again, also where there is no initial state to have it from."""
    trained, metrics = fit(opened(Sea()), tmp_path)
    assert metrics["train_loss"].isfinite()
    assert trained.normalisation.field_shift[0].item() == pytest.approx(100, abs=1)
    loaded = Surrogate.load(tmp_path / "some.ckpt")
    fields = loaded.predict({"speed": [1.0, 1.5], "land": 0.5})
    expected = np.broadcast_to(land(0.6), (2, 3, 6, 4))
    np.testing.assert_array_equal(fields["u"].isnull(), expected)
    assert not fields["w"].isnull().any()
    assert export(loaded, tmp_path / "some.pt2", "pt2") < 1e-5
    main(
        [
            "predict",
            f"--ckpt_path={tmp_path / 'some.ckpt'}",
            "--parameters={speed: 1, land: 0.5}",
            "--output=some.zarr",
        ]
    )
    stored = xr.open_zarr("some.zarr")
    np.testing.assert_array_equal(stored["u"].isnull(), expected[0])


def test_a_rollout_has_the_mask_of_its_history(opened, tmp_path):
    """Each simulation its own; what was over land before does not matter."""
    data = opened(Islands())
    window = Autoregressive(1, unroll=1)
    network = partial(UNet, widths=(4, 8))
    surrogate, metrics = fit(data, tmp_path, network, window=window)
    assert metrics["train_loss"].isfinite()
    for at in (0.4, 0.75):
        first = next(Islands().solve({"speed": 1.0, "land": at}))
        fields = surrogate.predict({"speed": 1.0, "land": at}, history=first)
        assert fields.sizes["time"] == 2
        assert all((fields["u"].isnull().values == land(at)).tolist())
        assert not fields["w"].isnull().any()
    assert export(surrogate, tmp_path / "some.pt2", "pt2") < 1e-5


def test_a_curve_of_errors_is_that_of_the_sea(opened, tmp_path):
    data = opened(Islands())
    surrogate, _ = fit(data, tmp_path, steps=2)
    held_out = data.validation
    curve = ErrorCurve.of(surrogate, held_out)
    for row in held_out.finished:
        truth = held_out.fields[row]
        point = dict(zip(("speed", "land"), held_out.parameters[row], strict=True))
        guess = np.stack([surrogate.predict(point)[name] for name in "uw"], 1)
        missing = np.isnan(guess).sum()
        errors = np.nanmean(np.square(guess - truth, dtype=float), (2, 3))
        if missing == np.isnan(truth).sum():
            np.testing.assert_allclose(curve.squared_errors[row], errors, rtol=1e-3)
    assert np.isfinite(curve.squared_errors).all()
    assert np.isfinite(curve.squares).all()


def test_a_data_set_keeps_what_is_not_defined(opened, tmp_path):
    """NaN, read back in memory and in blocks; what is lost is still found."""
    data = opened(Islands(), archive=tmp_path / "some.zarr")
    data.setup("fit")
    assert len(list(data.train_dataloader())) >= 9
    data.close()
    stored = xr.open_zarr(tmp_path / "some.zarr")
    for number in range(4):
        mask = land(float(stored["land"][number]))
        assert (stored["u"][number].isnull().values == mask).all()
    for memory in ("1 MB", 2000):
        again = StoredData(tmp_path / "some.zarr", batch_size=5, memory=memory)
        again.trainer = None
        again.setup("fit")
        assert again._samples.in_memory == (memory == "1 MB")
        assert again.moments()[0][0] == pytest.approx(100, abs=1)
        assert sum(len(b.step) for b in again.train_dataloader()) == 36
        again.close()
    archive = Archive(tmp_path / "some.zarr")
    steps = np.empty((3, *Sea.spec.step_shape), np.float32)
    archive.read(3, 0, steps)
    chunk = tmp_path / "some.zarr" / "u" / "c.3.0.0.0"
    chunk.unlink()
    with pytest.raises(Exception, match="missing"):
        archive.read(3, 0, steps)


def test_masked_inputs_may_be_nan(opened):
    """A geometry that is given, and fields on it."""
    spec = FieldSpec(
        parameters=(),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(3,),
        times=(1.0,),
        inputs=(Variable("a", masked=True),),
    )
    surrogate = Surrogate(spec, FullyConnected, window=Direct())
    one = surrogate.predict({}, inputs={"a": [1.0, NAN, 2.0]})
    assert not one["u"].isnull().any()
    with pytest.raises(ValueError, match="3 of 3 that are not"):
        surrogate.predict({}, inputs={"a": [NAN, NAN, NAN]})


class Beltrami(Solver):
    """An exact solution of Navier and Stokes: the flow of Arnold, Beltrami and Childress."""

    n = 8
    spec = FieldSpec(
        parameters=(Parameter("nu", 0.1, 1.0),),
        variables=(Variable("pressure"), Variable("velocity", "m/s", size=3)),
        dims=("x", "y", "z"),
        shape=(n, n, n),
        times=(0.1, 0.2, 0.3),
    )

    def solve(self, parameters):
        x, y, z = 2 * np.pi * np.indices((self.n,) * 3) / self.n
        waves = (np.sin(z) + np.cos(y), np.sin(x) + np.cos(z), np.sin(y) + np.cos(x))
        for t in self.spec.times:
            velocity = np.exp(-parameters["nu"] * t) * np.stack(waves, -1)
            pressure = -np.square(velocity).sum(-1).astype("f") / 2
            yield xr.Dataset(
                {
                    "velocity": (("x", "y", "z", "component"), velocity),
                    "pressure": (("x", "y", "z"), pressure),
                }
            ).expand_dims(time=[t])


def test_a_vector_is_as_many_variables():
    """Whole, or in components; two may share the dim of their components."""
    pair = (Variable("a", "m", "force", size=2), Variable("b", size=4))
    spec = FieldSpec((), pair, ("x",), (3,), (1.0,))
    names = ["a_x", "a_y", "b_0", "b_1", "b_2", "b_3"]
    assert [v.name for v in spec.variables] == names
    assert spec.variables[1].long_name == "force, y"
    assert FieldSpec.from_plain(spec.to_plain()) == spec
    a, b = np.arange(6.0).reshape(1, 3, 2), np.arange(12.0).reshape(1, 4, 3)
    whole = xr.Dataset(
        {"a": (("time", "x", "c"), a), "b": (("time", "k", "x"), b)}, {"time": [1.0]}
    )
    got = Encoder(spec, 1).convert(whole, 0)
    np.testing.assert_array_equal(got[0], [*a[0].T, *b[0]])
    parts = spec.dataset(got, [1.0], {})
    np.testing.assert_array_equal(Encoder(spec, 1).convert(parts, 0), got)
    with pytest.raises(SpecMismatch, match=r"vector 'a' .* one of its 2 comp.*'a_x'"):
        Encoder(spec, 1).convert(whole.isel(c=[0]), 0)
    with pytest.raises(ArgumentError, match=r"'a_x' for a variable and for a"):
        FieldSpec((), (*pair, Variable("a_x")), ("x",), (3,), (1.0,))
    with pytest.raises(ArgumentError, match="the length of a vector, >= 2, got 1"):
        Variable("a", size=1)


@pytest.mark.parametrize(
    "network",
    [
        FullyConnected,
        partial(FNO, modes=4, width=4, layers=1),
        partial(UNet, widths=(4, 8)),
    ],
)
def test_vectors_in_3d_are_learnt(opened, tmp_path, network, caplog):
    """The log says once, of all simulations, that they are cast."""
    caplog.set_level("INFO")
    data = opened(Beltrami(), archive=tmp_path / "some.zarr")
    surrogate, metrics = fit(data, tmp_path, network, steps=2)
    assert metrics["train_loss"].isfinite()
    fields = surrogate.predict({"nu": 0.5})
    names = ["pressure", "velocity_x", "velocity_y", "velocity_z"]
    assert [*fields.data_vars] == names
    assert dict(fields["velocity_z"].sizes) == {"time": 3, "x": 8, "y": 8, "z": 8}
    data.close()
    stored = xr.open_zarr(tmp_path / "some.zarr")
    exact = [*Beltrami().solve({"nu": float(stored["nu"][0])})]
    velocity = xr.concat(exact, "time")["velocity"].transpose("component", ...)
    for name, component in zip(names[1:], velocity, strict=True):
        np.testing.assert_array_equal(stored[name][0], component.astype("f"))
    said = [r.getMessage() for r in caplog.records if "cast to" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("velocity_x (float64), velocity_y (float64), velocity_z")


CENTRES = {"x": (np.arange(5) + 0.5) / 5, "y": (np.arange(4) + 0.5) / 4}
FACES = {"xf": np.arange(6) / 5, "yf": np.arange(5) / 4}


class Cavity(Solver):
    """A decaying wave: p at the centres of cells, u and v on their faces."""

    spec = FieldSpec(
        parameters=(Parameter("nu", 0.1, 1.0),),
        variables=(
            Variable("p"),
            Variable("u", "m/s", offset=3.0, dims=("xf", "y")),
            Variable("v", "m/s", dims=("x", "yf")),
        ),
        dims=("x", "y"),
        shape=(5, 4),
        times=(0.1, 0.2, 0.3),
        coordinates=tuple(
            Coordinate(dim, dim, tuple(at)) for dim, at in (CENTRES | FACES).items()
        ),
    )

    def solve(self, parameters):
        for t in self.spec.times:
            yield self.exact(parameters, t)

    def exact(self, parameters, t):
        at, decay = xr.Dataset(CENTRES | FACES), np.exp(-parameters["nu"] * t)
        fields = {
            "p": decay * at["x"] * np.cos(at["y"]),
            "u": 3 + decay * np.sin(at["xf"]) * at["y"],
            "v": (decay * at["x"] * np.sin(at["yf"])).transpose("yf", "x"),
        }
        return xr.Dataset(fields).expand_dims(time=[t])


def require_exact(fields, parameters, times=Cavity.spec.times):
    """Compare fields with the solution, each on its own grid."""
    exact = [Cavity().exact(parameters, t) for t in times]
    exact = xr.concat(exact, "time")
    for name, dims in (("p", ("x", "y")), ("u", ("xf", "y")), ("v", ("x", "yf"))):
        assert fields[name].dims == ("time", *dims)
        wanted = exact[name].transpose("time", *dims)
        np.testing.assert_allclose(fields[name], wanted, rtol=1e-6, atol=1e-6)


def test_staggered_variables_come_and_go_on_their_own_grids():
    spec = Cavity.spec
    assert spec.shape == box(spec).shape == (6, 5)
    assert FieldSpec.from_plain(spec.to_plain()) == spec
    assert FieldSpec.from_plain(spec.to_plain()).digest() == spec.digest()
    check_solver(Cavity())
    encoder = Encoder(spec, 1)
    steps = [encoder.convert(d, k) for k, d in enumerate(Cavity().solve({"nu": 0.5}))]
    steps = np.concatenate(steps)
    missing = [30 - 20, 30 - 24, 30 - 25]
    assert np.isnan(steps).sum((2, 3)).tolist() == [missing] * 3
    fields = spec.dataset(spec.physical(steps), spec.times, {"nu": 0.5})
    require_exact(fields, {"nu": 0.5})
    # A grid in another order is put right by its own coordinate.
    turned = fields.isel(xf=slice(None, None, -1))
    np.testing.assert_array_equal(Encoder(spec, 1).convert(turned, 0), steps)
    with pytest.raises(SpecMismatch, match=r"'u' expected the shape \(3, 6, 4\)"):
        Encoder(spec, 1).convert(fields.isel(xf=slice(5)), 0)
    with pytest.raises(SpecMismatch, match="'v' expected finite numbers, got 20 of 25"):
        wrong = fields.assign(v=fields["v"].where(fields["yf"] == 0))
        Encoder(spec, 1).convert(wrong, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"variables": (Variable("u", dims=("xf", "yg")),)}, "'yg'.* a Coordinate"),
        (
            {"variables": (Variable("u", dims=("xf",)),)},
            r"one for each of \('x', 'y'\)",
        ),
        ({"variables": (Variable("u", dims=("y", "xf")),)}, "in this order"),
        ({"inputs": (Variable("a"),)}, "without inputs"),
    ],
)
def test_a_staggered_spec_says_what_it_lacks(change, reason):
    with pytest.raises(ArgumentError, match=reason):
        dataclasses.replace(Cavity.spec, **change)


@pytest.mark.parametrize("window", [Direct(), Autoregressive(1)])
def test_staggered_variables_are_learnt(opened, tmp_path, window):
    """Data set, errors, prediction, exported file and pictures have each on its own grid."""
    data = opened(Cavity(), archive=tmp_path / "some.zarr")
    network = partial(UNet, widths=(4, 8)) if window.inputs else FullyConnected
    surrogate, metrics = fit(data, tmp_path, network, window=window)
    assert metrics["train_loss"].isfinite()
    held_out = data.validation
    require_exact(held_out.simulation(0), {"nu": float(held_out.parameters[0][0])})
    assert np.isfinite(ErrorCurve.of(surrogate, held_out).squared_errors).all()
    loaded = Surrogate.load(tmp_path / "some.ckpt")
    history = held_out.simulation(0, slice(1)) if window.inputs else None
    loaded.predict_to_file(tmp_path / "some.nc", {"nu": 0.5}, history=history)
    loaded.predict_to_file(tmp_path / "one.zarr", {"nu": 0.5}, history=history)
    fields, parts = xr.load_dataset("some.nc"), xr.open_zarr("one.zarr")
    for name, dims in (("p", ("x", "y")), ("u", ("xf", "y")), ("v", ("x", "yf"))):
        assert fields[name].dims == parts[name].dims == ("time", *dims)
        assert not fields[name].isnull().any()
        np.testing.assert_allclose(parts[name], fields[name], rtol=1e-5, atol=1e-6)
    assert export(loaded, tmp_path / "some.pt2", "pt2") < 1e-5
    thin = Thinning.of(Cavity.spec, 1000).spec
    assert thin.shape == (6, 5)
    assert [c.values for c in thin.coordinates] == [*map(tuple, FACES.values())]
    data.close()
    stored = xr.open_zarr(tmp_path / "some.zarr")
    for number in (0, 5):
        nu = float(stored["nu"][number])
        require_exact(stored.isel(simulation=number), {"nu": nu})
    again = StoredData(tmp_path / "some.zarr", batch_size=5)
    again.trainer = None
    again.setup("fit")
    batch = next(iter(again.train_dataloader()))
    assert batch.target.isnan().sum((1, 3, 4)).tolist() == [[10, 6, 5]] * 5
    again.close()
