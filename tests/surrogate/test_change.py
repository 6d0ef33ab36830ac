"""A surrogate that predicts by how much fields change, and noise on what it sees."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from filled import Filled, fit
from torch import nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir.stats import Moments
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.normalisation import Normalisation
from surrogate_flow.surrogate.rollout import drawn_noise
from surrogate_flow.surrogate.surrogate import Surrogate

SPEC = FieldSpec(
    (), (Variable("u"), Variable("v")), ("x",), (3,), tuple(map(float, range(9)))
)
WINDOW = Autoregressive(2, 2)
SIZES = np.array([[0.5, 4.0], [1.0, 8.0]])  # of the change, after one step and two
SMALL = partial(FullyConnected, widths=(4,))


class Constant(nn.Module):
    """The same output everywhere: one, or a number of choice."""

    def __init__(self, spec, window, *, value=1.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.shape = (window.outputs, *spec.step_shape)

    def forward(self, parameters, step, history):
        return self.value.expand(len(step), *self.shape)


def made(network=Constant, spec=SPEC, **kwargs):
    surrogate = Surrogate(spec, network, window=WINDOW, predicts="change", **kwargs)
    surrogate.normalisation.freeze(np.array([1.0, 100.0]), np.array([2.0, 50.0]))
    surrogate.normalisation.freeze_changes(SIZES)
    return surrogate.eval()


def call(surrogate, history):
    nothing = torch.zeros(len(history), 0)
    with torch.no_grad():
        return surrogate(nothing, torch.full((len(history),), 2.0), history)


def test_the_last_step_and_so_many_sizes_of_the_change():
    """u_k + s_j * network, for each variable and step; `target` is the other way round."""
    history = torch.randn(4, 2, 2, 3) * 30 + 50
    surrogate = made()
    got = call(surrogate, history)
    wanted = history[:, -1:] + torch.from_numpy(SIZES).float()[..., None]
    torch.testing.assert_close(got, wanted)
    back = surrogate.normalisation.target(got, history)
    torch.testing.assert_close(back, torch.ones_like(back), atol=1e-4, rtol=1e-4)


def test_where_fields_are_masked_nothing_changes():
    """NaN stays NaN, is no part of the target, and leaves the sizes as they are."""
    masked = replace(SPEC, variables=(Variable("u", masked=True), Variable("v")))
    surrogate = made(spec=masked)
    history = torch.randn(4, 2, 2, 3)
    history[:, :, 0, 1] = torch.nan
    got = call(surrogate, history)
    assert got.isnan().equal(history.isnan())
    target = surrogate.normalisation.target(got, history)
    assert target.isfinite().all()
    assert (target[:, :, 0, 1] == 0).all()
    moments = Moments(4)
    moments.update_changes(torch.cat([history, got], 1).numpy(), WINDOW)
    np.testing.assert_allclose(moments.rms.reshape(2, 2), SIZES, rtol=1e-5)


def sizes(fields):
    """Root mean square of the changes of windows (window, span, channel, *space)."""
    change = fields[:, 1:3].astype(float) - fields[:, :1]
    return np.sqrt((change**2).mean((0, *range(3, fields.ndim))))


class Changing(Filled):
    """Its windows of one step and two after it, and what they change by."""

    def changes(self):
        return self._pooled_changes(self.store.changes(self.window))


def test_a_fit_measures_the_changes_of_the_first_fill(tmp_path, monkeypatch):
    """All windows of the store by hand; as many are held after it as before it."""
    monkeypatch.setattr(
        "filled.Surrogate", partial(Surrogate, predicts="change", noise=0.1)
    )
    data = Changing()
    found = data.store.samples()
    every = np.concatenate(
        [
            torch.cat([batch.history, batch.target], 1).numpy()
            for batch in Changing().train_dataloader()
        ]
    )
    before = data.store.stats()
    data.store.changes(data.window)
    assert (data.store.stats(), data.store.samples()) == (before, found)
    surrogate, _ = fit(data, tmp_path)
    scale = surrogate.normalisation.change_scale.flatten(1) * 100
    np.testing.assert_allclose(scale, sizes(every), rtol=1e-5)
    assert data.store.stats().population == 0


def test_data_that_know_no_changes_are_refused(tmp_path, monkeypatch):
    """In a sentence, with what to do."""
    monkeypatch.setattr("filled.Surrogate", partial(Surrogate, predicts="change"))
    with pytest.raises(ArgumentError, match=r"expected data with changes\(\).*Filled"):
        fit(Filled(), tmp_path)


def test_a_checkpoint_keeps_it_and_no_other_fits(tmp_path):
    """It predicts the same; one of fields is refused by name, and older ones are of fields."""
    surrogate = made(SMALL)
    saved = {"state_dict": surrogate.state_dict(), checkpoint.KEY: surrogate.recipe}
    torch.save(saved, tmp_path / "some.ckpt")
    loaded = Surrogate.load(tmp_path / "some.ckpt")
    history = torch.randn(3, 2, 2, 3)
    torch.testing.assert_close(call(loaded, history), call(surrogate, history))
    fields = Surrogate(SPEC, SMALL, window=WINDOW)
    with pytest.raises(ArgumentError, match="is of another predicts"):
        checkpoint.require_same(fields.recipe, saved)
    older = {checkpoint.KEY: {**fields.recipe}}
    del older[checkpoint.KEY]["predicts"]
    checkpoint.require_same(fields.recipe, older)
    with pytest.raises(ArgumentError, match="is of another predicts"):
        checkpoint.require_same(surrogate.recipe, older)


def test_noise_is_of_its_size_and_the_target_leads_back():
    """A network that says "no change" errs by the change and the noise together."""
    history = torch.zeros(20_000, 1, 2, 3)
    normalisation = Normalisation(SPEC)
    normalisation.of_changes(1)
    normalisation.freeze(np.array([1.0, 100.0]), np.array([2.0, 50.0]))
    normalisation.freeze_changes(np.array([[0.5, 4.0]]))
    batch = Batch(*[torch.zeros(0)] * 2, history, *[torch.zeros(0)] * 2)
    noise = drawn_noise(history, 0.1, epoch=0, batch=7)
    assert noise.equal(drawn_noise(history, 0.1, epoch=0, batch=7))
    assert not noise.equal(drawn_noise(history, 0.1, epoch=0, batch=8))
    assert not noise.equal(drawn_noise(history, 0.1, epoch=0, batch=7, rank=1))
    noisy = normalisation.noisy(batch, noise).history
    std = noisy.std((0, 1, 3))
    torch.testing.assert_close(std, torch.tensor([0.2, 5.0]), rtol=0.02, atol=0)
    target = normalisation.target(history + 0.5, noisy)
    wanted = torch.tensor([(0.5**2 + 0.2**2) / 0.5**2, (0.5**2 + 5**2) / 4**2])
    got = target.square().mean((0, 1, 3))
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"predicts": "change"}, "model.predicts: expected a window with a history"),
        ({"noise": 0.1}, "model.noise: expected a window with a history"),
        ({"noise": -1.0}, "model.noise: expected a finite number, at least 0, got -1"),
        ({"predicts": "changes"}, "model.predicts: expected 'field' or 'change'"),
    ],
)
def test_what_needs_a_history_is_refused_without_one(more, said):
    """In a sentence, with what to type."""
    with pytest.raises(ArgumentError, match=re.escape(said)):
        Surrogate(SPEC, SMALL, window=Direct(), **more)
