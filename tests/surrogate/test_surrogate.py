"""The surrogate: predictions in xarray, checkpoints that are data, errors that name the cause."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import pytorch_lightning as L
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.metrics import field_metrics
from surrogate_flow.surrogate.normalisation import Normalisation
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.surrogate.trial import require_shape
from surrogate_flow.testing import check_network

WALLS = {"initial": 300, "left": 100, "right": 500, "bottom": 200, "top": 400}
SPEC = Heat2D(cells=(6, 4), steps=5).spec
TWO_FIELDS = FieldSpec(
    parameters=(Parameter("a", -1.0, 3.0),),
    variables=(Variable("p", "Pa"), Variable("q", "kg")),
    dims=("x",),
    shape=(7,),
    times=(0.5, 1.0, 2.0),
)
NUMBERS = replace(TWO_FIELDS, dims=(), shape=())


@pytest.fixture
def surrogate():
    torch.manual_seed(0)
    return Surrogate(SPEC, partial(FullyConnected, widths=(8,)))


@pytest.fixture
def checkpoint(surrogate, tmp_path):
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.strategy.connect(surrogate)
    surrogate.normalisation.freeze(np.array([300.0]), np.array([80.0]))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


class Normalised(torch.nn.Module):
    """Batch norm and dropout, whose state and draws a call changes."""

    def __init__(self, last):
        super().__init__()
        self.layers = torch.nn.Sequential(
            last, torch.nn.BatchNorm1d(14), torch.nn.Dropout(0.5)
        )

    def forward(self, parameters, step, history):
        return self.layers(parameters).view(len(step), 1, 2, 7)


@pytest.mark.parametrize(
    "last", [torch.nn.Linear(1, 14), torch.nn.LazyLinear(14)], ids=["fixed", "lazy"]
)
def test_a_trial_of_a_network_changes_nothing(last):
    """Neither its weights and statistics, nor what is drawn next."""
    network = Normalised(last)
    before = {k: v.clone() for k, v in network.layers[1].state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    require_shape(network, "Normalised", TWO_FIELDS, Direct())
    assert torch.equal(torch.rand(3), expected)
    for name, value in network.layers[1].state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_weights_may_be_averaged_with_all_buffers(average):
    """As `WeightAveraging` does, the normalisation included, which stays frozen."""
    surrogate = Surrogate(TWO_FIELDS, FullyConnected)
    averaged = AveragedModel(surrogate, multi_avg_fn=average, use_buffers=True)
    surrogate.normalisation.freeze(np.arange(2.0), np.ones(2))
    for _ in range(3):
        averaged.update_parameters(surrogate)
    assert averaged.module.normalisation.frozen
    for name, value in surrogate.state_dict().items():
        torch.testing.assert_close(averaged.module.state_dict()[name], value)


class Continuing(torch.nn.Module):
    """The last step once more, of which a direct window has none."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, parameters, step, history):
        return self.scale * history[:, [-1]]


def test_a_network_that_needs_a_history_says_so():
    """The error of the trial names the window that gives none, and one that does."""
    require_shape(Continuing(), "Continuing", SPEC, Autoregressive())
    with pytest.raises(
        ValueError, match=r"Direct\(\) .* --model.window Autoregressive"
    ):
        require_shape(Continuing(), "Continuing", SPEC, Direct())


@pytest.mark.parametrize(
    "spec", [SPEC, TWO_FIELDS, NUMBERS], ids=["2d", "two fields", "two numbers"]
)
def test_network_laws(spec):
    """Shape, gradients for every parameter, state-dict round trip."""
    check_network(partial(FullyConnected, widths=(16,)), spec, Direct())


@pytest.mark.parametrize("widths", [(), (8, 0)])
def test_widths_are_checked(widths):
    """Widths that make no network are refused."""
    with pytest.raises(ValueError, match="expected positive widths"):
        FullyConnected(SPEC, Direct(), widths=widths)


def test_load_gives_the_same_predictions(surrogate, checkpoint):
    """A checkpoint opens as data alone, and predicts what the surrogate predicted."""
    torch.load(checkpoint, weights_only=True)
    loaded = Surrogate.load(checkpoint)
    expected, got = surrogate.predict(WALLS), loaded.predict(WALLS)
    np.testing.assert_array_equal(got.temperature, expected.temperature)


def test_prediction_has_coordinates_and_units(checkpoint):
    """predict gives names, coordinates and units, at the times asked for."""
    field = Surrogate.load(checkpoint).predict(WALLS, times=[0.01, 0.025])
    assert field.temperature.dims == ("time", "x", "y")
    assert field.temperature.attrs["units"] == "K"
    assert field.x.attrs["units"] == "m"
    np.testing.assert_allclose(field.time, [0.01, 0.025])
    assert float(field.left) == 100


def test_direct_times_are_predicted_in_bounded_batches(surrogate, monkeypatch):
    """Few passes for many times, whichever way they go; each is what it is alone."""
    free = SimpleNamespace(available=4 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    sizes = []
    surrogate.network.register_forward_hook(
        lambda _, given, __: sizes.append(len(given[1]))
    )
    times = np.random.default_rng(0).uniform(0.01, 0.05, 50_000)
    field = surrogate.train().predict(WALLS, times)
    # One more is tried first, to see how much a pass takes.
    assert sum(sizes) == 50_001
    assert len(sizes) == 3
    assert surrogate.training
    for k in (0, 1, 49_999):
        alone = surrogate.predict(WALLS, [times[k]]).temperature[0]
        np.testing.assert_allclose(field.temperature[k], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "times", "message"),
    [
        ([300.0], None, "parameters: expected a mapping such as {'initial': 100"),
        ({**WALLS, "lef": 1}, None, "Unknown parameter 'lef'. Did you mean 'left'"),
        ({"left": 1}, None, "Missing parameters"),
        ({**WALLS, "left": float("nan")}, None, "finite"),
        (WALLS, [9.0], r"expected times in \[0.01, 0.05\] s, got 9"),
        (WALLS, [float("nan")], "expected times"),
        (WALLS, "abc", "predict: times: expected numbers, got 'abc'"),
        (WALLS, [10**400], "predict: times: expected numbers, got 1000"),
    ],
)
def test_bad_predictions_are_refused(surrogate, parameters, times, message):
    """A wrong parameter or time is named, with the nearest valid one."""
    with pytest.raises(ValueError, match=message):
        surrogate.predict(parameters, times)


def test_a_notebook_shows_what_it_is():
    """Of names and units that would be HTML, too, and before it was ever saved."""
    made = Surrogate(TWO_FIELDS, FullyConnected)
    page = made._repr_html_()
    lines = repr(made).splitlines()
    assert lines[0] == "Surrogate"
    assert "    a: -1 to 3" in lines or "  parameters: a: -1 to 3" in lines
    assert len(lines) < 12
    assert "p [Pa], q [kg]" in page
    assert "a: -1 to 3" in page
    assert "Direct()" in page
    assert "not known" in page
    odd = replace(TWO_FIELDS, variables=(Variable("<b>", "Pa"),))
    assert "&lt;b&gt; [Pa]" in Surrogate(odd, FullyConnected)._repr_html_()


def test_extrapolation_warns(surrogate):
    """Parameters beyond their bounds are predicted, with a warning that says so."""
    with pytest.warns(UserWarning, match=r"left = 900 K lies outside"):
        surrogate.predict({**WALLS, "left": 900})


def test_foreign_checkpoints_are_refused(tmp_path, checkpoint):
    """Missing, cut off, with code inside, or of another program: each says so."""
    with pytest.raises(FileNotFoundError, match="No checkpoint"):
        Surrogate.load(tmp_path / "none.ckpt")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        Surrogate.load(cut)
    torch.save({"code": Heat2D()}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="never executed"):
        Surrogate.load(tmp_path / "code.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no such entry"):
        Surrogate.load(tmp_path / "other.ckpt")


def test_resuming_another_surrogate_names_the_difference(checkpoint):
    """A checkpoint of other widths or cells is refused, with both values."""
    saved = torch.load(checkpoint, weights_only=True)
    with pytest.raises(ValueError, match=r"network.*widths\[0\] = 8, asked for is 9"):
        Surrogate(SPEC, partial(FullyConnected, widths=(9,))).on_load_checkpoint(saved)
    other = Surrogate(Heat2D(cells=(6, 5), steps=5).spec, FullyConnected)
    with pytest.raises(ValueError, match="another spec"):
        other.on_load_checkpoint(saved)


def test_normalisation_brings_bounds_and_moments_to_order_one():
    """Bounds go to -1 and 1, fields to zero mean and unit variance, and back."""
    normalisation = Normalisation(TWO_FIELDS)
    rng = np.random.default_rng(0)
    fields = rng.normal((300.0, 5.0), (80.0, 0.1), (4096, 7, 2)).transpose(0, 2, 1)
    normalisation.freeze(fields.mean((0, 2)), fields.std((0, 2)))
    parameters, step = normalisation.inputs(
        torch.tensor([[-1.0], [3.0]]), torch.tensor([0.0, 2.0])
    )
    assert parameters.flatten().tolist() == [-1, 1]
    assert step.tolist() == [-1, 1]
    physical = torch.tensor(fields[:, None], dtype=torch.float32)
    z = normalisation.fields(physical)
    torch.testing.assert_close(z.mean((0, 1, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std((0, 1, 3)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalisation.physical(z), physical)
    with pytest.raises(RuntimeError, match="frozen already"):
        normalisation.freeze(np.zeros(2), np.ones(2))


def test_normalisation_none_changes_nothing():
    """With 'none' the network sees raw parameters, step index and fields."""
    surrogate = Surrogate(SPEC, FullyConnected, normalisation="none")
    assert surrogate.normalisation.frozen
    parameters, step = torch.full((1, 5), 321.0), torch.tensor([3.0])
    same, same_step = surrogate.normalisation.inputs(parameters, step)
    assert same.equal(parameters)
    assert same_step.equal(step)


def test_normalisation_of_a_constant_field_is_finite():
    """A variable without variance keeps a scale of its own size."""
    normalisation = Normalisation(SPEC)
    normalisation.freeze(np.array([300.0]), np.array([0.0]))
    assert normalisation.fields(
        torch.full((1, 1, 1, 6, 4), 330.0)
    ).max() == pytest.approx(0.1)


def test_metrics_agree_with_numpy():
    """Relative L2, root mean square and maximum, over uneven batches, as numpy has them."""
    rng = np.random.default_rng(1)
    target = rng.normal(3.0, 1.0, (10, 1, 2, 7)).astype(np.float32)
    guess = target + rng.normal(0.0, 0.1, target.shape).astype(np.float32)
    metrics = field_metrics(TWO_FIELDS, "val_")
    for part in (slice(0, 6), slice(6, 10)):
        metrics.update(torch.tensor(guess[part]), torch.tensor(target[part]))
    got = {key: float(value) for key, value in metrics.compute().items()}
    error = guess - target
    relative = [
        np.linalg.norm(e[:, c]) / np.linalg.norm(t[:, c])
        for e, t in zip(error, target, strict=True)
        for c in range(2)
    ]
    assert got["val_relative_l2"] == pytest.approx(np.mean(relative), rel=1e-5)
    assert got["val_rmse_q"] == pytest.approx(
        np.sqrt((error[:, :, 1] ** 2).mean()), 1e-5
    )
    assert got["val_max_p"] == pytest.approx(np.abs(error[:, :, 0]).max(), 1e-5)


def test_the_error_of_numbers_is_taken_over_all_samples():
    """A number that passes through zero is no measure of its own error."""
    rng = np.random.default_rng(1)
    target = rng.normal(0.0, [3.0, 0.1], (10, 2, 2)).astype(np.float32)
    guess = target + rng.normal(0.0, 0.01, target.shape).astype(np.float32)
    target[0] = 0.0
    metrics = field_metrics(NUMBERS, "val_")
    for part in (slice(0, 6), slice(6, 10)):
        metrics.update(torch.tensor(guess[part]), torch.tensor(target[part]))
    norms = [np.linalg.norm(a.reshape(20, 2), axis=0) for a in (guess - target, target)]
    got = metrics.compute()
    expected = np.mean(norms[0] / norms[1])
    assert float(got["val_relative_l2"]) == pytest.approx(expected, rel=1e-5)
    assert float(got["val_max_q"]) == pytest.approx(
        np.abs(guess - target)[..., 1].max()
    )


def test_overfits_one_batch(surrogate):
    """Five samples are learnt by heart: the loss falls by a factor of a hundred."""
    truth = np.stack(
        [d.temperature.values[0] for d in Heat2D(cells=(6, 4), steps=5).solve(WALLS)]
    )
    surrogate.normalisation.freeze(
        np.array([truth.mean()], dtype=np.float64), np.array([truth.std()])
    )
    batch = Batch(
        torch.tensor([[300.0, 100, 500, 200, 400]]).repeat(5, 1),
        torch.arange(5.0),
        torch.zeros(5, 0, *SPEC.step_shape),
        torch.tensor(truth, dtype=torch.float32)[:, None, None],
        torch.zeros(5, dtype=torch.int64),
    )
    surrogate.log = lambda *args, **kwargs: None
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=0.02)
    losses = []
    for step in range(600):
        loss = surrogate.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"spec": SPEC.to_plain()}, "spec: expected a FieldSpec, .* got dict"),
        ({"network": FullyConnected(SPEC, Direct())}, "network: expected a class"),
        ({"network": "fno"}, "network: expected a class.* got fno"),
        ({"network": torch.nn.Linear}, r"Linear, built as network\(spec, window\)"),
        ({"window": Autoregressive}, "a Window, .* got the class Autoregressive"),
        ({"loss": torch.nn.L1Loss}, r"expected a loss such as torch.nn.L1Loss\(\)"),
        ({"optimizer": "adam"}, "an optimizer such as .* got .* 'adam'"),
    ],
)
def test_what_a_script_gives_wrong_is_named(arguments, expected):
    """With an example of what is expected."""
    with pytest.raises(UserError, match=expected):
        Surrogate(**{"spec": SPEC, "network": FullyConnected, **arguments})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"solver": Heat2D}, "data.solver: expected a Solver, .* the class Heat2D"),
        ({"sampler": Uniform}, "data.sampler: .* got the class Uniform"),
        ({"faults": {"retries": 2}}, "data.faults: .* got dict"),
    ],
)
def test_what_a_script_gives_data_wrong_is_named(arguments, expected):
    """With an example of what is expected."""
    with pytest.raises(UserError, match=expected):
        OnlineData(**{"solver": Heat2D(cells=(4, 4)), **arguments})
