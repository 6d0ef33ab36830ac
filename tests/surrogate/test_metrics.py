"""Metrics: each against its formula in numpy."""

import dataclasses

import numpy as np
import pytest
import torch

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.surrogate.metrics import StandardError, field_metrics
from surrogate_flow.surrogate.normalisation import Normalisation


def spec(dims=("x", "y"), shape=(7, 3)):
    return FieldSpec(
        parameters=(Parameter("a", 0, 1),),
        variables=(Variable("p", "Pa"), Variable("q", "kg")),
        dims=dims,
        shape=shape,
        times=(1.0, 2.0, 3.0),
    )


def compute(metrics, guess, target):
    """In batches of uneven sizes."""
    for part in (slice(0, 6), slice(6, 7), slice(7, 40)):
        metrics.update(torch.tensor(guess[part]), torch.tensor(target[part]))
    return {key: float(value) for key, value in metrics.compute().items()}


@pytest.fixture
def fields():
    """Guess and truth, (sample, time, channel, x, y); the first truth of p is zero."""
    rng = np.random.default_rng(1)
    target = rng.normal(3.0, 1.0, (40, 2, 2, 7, 3)).astype(np.float32)
    target[0, :, 0] = 0
    size = rng.uniform(0.01, 1.0, (40, 1, 1, 1, 1))
    noise = rng.normal(0.0, size, target.shape)
    return (target + noise).astype(np.float32), target


def test_each_agrees_with_numpy(fields):
    """MSE, relative L2, nRMSE, VRMSE, 99th percentile and maximum of each variable."""
    guess, target = fields
    got = compute(field_metrics(spec(), "test_", detailed=True), guess, target)
    relative = []
    for channel, name in enumerate("pq"):
        u = target[:, :, channel].astype(np.float64)
        e = guess[:, :, channel].astype(np.float64) - u
        space = (2, 3)
        mse = (e**2).mean(space)
        known = np.any(u != 0, axis=space)
        of_sample = np.sqrt((e**2).sum((1, 2, 3))), np.sqrt((u**2).sum((1, 2, 3)))
        share = of_sample[0][known[:, 0]] / of_sample[1][known[:, 0]]
        relative.append(share)
        square = (u**2).mean(space)
        expected = {
            "rmse": np.sqrt((e**2).mean()),
            "mse": (e**2).mean(),
            "max": np.abs(e).max(),
            "p99": np.percentile(np.sqrt((e**2).mean((1, 2, 3))), 99),
            "relative_l2": share.mean(),
            "nrmse": np.sqrt(mse[known] / square[known]).mean(),
            "vrmse": np.sqrt(
                mse[known] / (u.var(space)[known] + 1e-7 * square[known])
            ).mean(),
        }
        for error, value in expected.items():
            assert got[f"test_{error}_{name}"] == pytest.approx(value, rel=1e-5), error
    assert got["test_relative_l2"] == pytest.approx(np.concatenate(relative).mean())
    assert len(got) == 15


def test_each_validation_logs_few(fields):
    """One number for all and five for each variable, the same as those of the test."""
    few = compute(field_metrics(spec(), "val_"), *fields)
    all_of_them = compute(field_metrics(spec(), "test_", detailed=True), *fields)
    names = ["rmse", "nrmse", "vrmse", "p99", "max"]
    assert set(few) == {"val_relative_l2"} | {
        f"val_{error}_{name}" for error in names for name in "pq"
    }
    for name, value in few.items():
        assert all_of_them[name.replace("val_", "test_")] == value


def test_vrmse_does_not_depend_on_units(fields):
    """In other units, or with the spatial mean as the guess, it is what it should be."""
    guess, target = fields
    in_pascal = compute(field_metrics(spec(), ""), guess, target)
    in_megapascal = compute(
        field_metrics(spec(), ""),
        (guess * 1e-6).astype(np.float32),
        (target * 1e-6).astype(np.float32),
    )
    for name in ("vrmse_p", "nrmse_q", "relative_l2"):
        assert in_megapascal[name] == pytest.approx(in_pascal[name], rel=1e-4)
    mean = target.mean((3, 4), keepdims=True) + 0 * target
    assert compute(field_metrics(spec(), ""), mean, target)["vrmse_q"] == (
        pytest.approx(1.0, rel=1e-4)
    )


def test_a_field_without_dims_has_no_ratios_in_space(fields):
    """A single number may be zero, and has no variance: no nRMSE, no VRMSE."""
    guess, target = (f[..., 0, 0] for f in fields)
    got = compute(field_metrics(spec((), ()), "val_"), guess, target)
    assert len(got) == 7
    assert not any("nrmse" in name or "vrmse" in name for name in got)
    both = [np.sqrt(np.square(x).sum((0, 1))) for x in (guess - target, target)]
    relative = (both[0] / both[1]).mean()
    assert got["val_relative_l2"] == pytest.approx(relative, rel=1e-5)


def test_reset_forgets(fields):
    """What one validation has seen is not in the next."""
    guess, target = fields
    metrics = field_metrics(spec(), "", detailed=True)
    compute(metrics, guess + 5, target)
    metrics.reset()
    assert compute(metrics, guess, target) == compute(
        field_metrics(spec(), "", detailed=True), guess, target
    )


def test_a_network_may_leave_its_fields_in_any_order(fields):
    """Such as one that computes with points first."""
    guess, target = map(torch.from_numpy, fields)
    metrics = field_metrics(spec(), "", detailed=True)
    in_order = metrics(guess, target)
    other = metrics(guess.movedim(-1, 0).contiguous().movedim(0, -1), target)
    assert other == in_order


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-20, 1e20, 1e25, 1e37])
def test_no_error_depends_on_the_scale_of_the_fields(fields, scale):
    """Ratios are those at order one, and the others are as much larger."""
    for flat, shaped in ((False, spec()), (True, spec((), ()))):
        guess, target = (f[..., 0, 0] if flat else f for f in fields)
        one = compute(field_metrics(shaped, "", detailed=True), guess, target)
        scaled = (np.float32(scale) * guess, np.float32(scale) * target)
        for name, got in compute(
            field_metrics(shaped, "", detailed=True), *scaled
        ).items():
            power = {"rmse": 1, "p99": 1, "max": 1, "mse": 2}.get(name[:-2], 0)
            assert got == pytest.approx(one[name] * scale**power, rel=1e-4), name


def test_a_variable_may_have_a_dot_in_its_name(fields):
    """As those of OpenFOAM have; its errors are named as it is."""
    dotted = dataclasses.replace(
        spec(), variables=(Variable("alpha.water"), Variable("alpha_water"))
    )
    got = compute(field_metrics(dotted, "val_"), *fields)
    same = compute(field_metrics(spec(), "val_"), *fields)
    for error in ("rmse", "vrmse"):
        assert got[f"val_{error}_alpha.water"] == same[f"val_{error}_p"]
        assert got[f"val_{error}_alpha_water"] == same[f"val_{error}_q"]


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_fields_of_any_scale_are_normalised_to_order_one(scale):
    """Those that are constant in the first fill, too; and back."""
    spec = FieldSpec((), (Variable("u"), Variable("v")), (), (), (1.0, 2.0))
    normalisation = Normalisation(spec)
    normalisation.freeze(scale * np.array([2.0, 3.0]), scale * np.array([0.5, 0.0]))
    fields = scale * torch.tensor([[[2.5, 6.0]]])
    normalised = normalisation.fields(fields)
    torch.testing.assert_close(normalised, torch.tensor([[[1.0, 1.0]]]))
    back = normalisation.physical(normalised)
    torch.testing.assert_close(back / scale, fields / scale)


@pytest.mark.parametrize("dims", [("x", "y"), ()])
def test_standard_error_is_that_of_means_without_each_simulation(fields, dims):
    """The jackknife of relative L2 over eight simulations of five samples, mixed."""
    guess, target = fields if dims else (u[..., 0, 0] for u in fields)
    metric, numbers = StandardError(of_numbers=not dims), np.arange(40) % 8
    for part in (slice(0, 6), slice(6, 40)):
        metric.update(*(torch.tensor(a[part]) for a in (guess, target, numbers)))
    metrics = field_metrics(spec(dims, (7, 3)[: len(dims)]), "")
    without = []
    for number in range(8):
        metrics.reset()
        others = numbers != number
        errors = compute(metrics, guess[others], target[others])
        without.append(errors["relative_l2"])
    expected = np.std(without) * np.sqrt(7)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_one_simulation_has_no_standard_error(fields):
    """NaN, which the report leaves out."""
    metric = StandardError(of_numbers=False)
    metric.update(*map(torch.tensor, fields), torch.zeros(40))
    assert np.isnan(float(metric.compute()))
