"""Windows: which steps make a sample, and which numbers make no window."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing import check_network

SPEC = Heat2D(cells=(3, 2), steps=9).spec


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"inputs": 0}, "inputs: expected a whole number >= 1, got 0.*use Direct"),
        ({"outputs": 0}, "outputs: expected a whole number >= 1, got 0"),
        ({"stride": -1}, "stride: expected a whole number >= 1, got -1"),
        ({"unroll": -1}, "unroll: expected a whole number >= 0, got -1"),
        ({"inputs": 1.5}, "inputs: expected a whole number >= 1, got 1.5"),
        ({"outputs": True}, "outputs: expected a whole number"),
    ],
)
def test_numbers_are_checked(numbers, message):
    """Each number that makes no window is named, with what to do instead."""
    with pytest.raises(ValueError, match=f"Autoregressive: {message}"):
        Autoregressive(**numbers)


@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    stride=st.integers(1, 4),
    unroll=st.integers(0, 3),
    steps=st.integers(1, 40),
)
def test_samples_are_counted(inputs, outputs, stride, unroll, steps):
    """As many samples as there are beginnings from which a whole one follows."""
    window = Autoregressive(inputs, outputs, stride, unroll)
    assert window.span == inputs + outputs * (1 + unroll)
    whole = [k for k in range(0, steps, stride) if k + window.span <= steps]
    assert window.samples(steps) == len(whole)
    assert window.without_unroll() == Autoregressive(inputs, outputs, stride)


@pytest.mark.parametrize("window", [Autoregressive(9), Autoregressive(2, 4, 1, 1)])
def test_too_short_simulations_are_refused(window):
    """A surrogate is not even made for simulations that are shorter than a sample."""
    with pytest.raises(
        ValueError, match=r"at least 10 steps .*got 9 steps.*Use a shorter window"
    ):
        Surrogate(SPEC, FullyConnected, window=window)
    longer = Heat2D(cells=(3, 2), steps=10).spec
    Surrogate(longer, FullyConnected, window=window)


@pytest.mark.parametrize("window", [Direct(), Autoregressive(2, 3)], ids=str)
def test_network_laws(window):
    """The fully connected network takes a history of any length."""
    check_network(partial(FullyConnected, widths=(16,)), SPEC, window)


def held_out_steps(window):
    """A held-out set whose every cell is simulation * 100 + step."""
    held_out = ValidationSet(SPEC, window, 4, 0, 3)
    for simulation in range(3):
        fields = np.empty((9, *SPEC.step_shape), np.float32)
        fields[:] = (simulation * 100 + np.arange(9)).reshape(9, 1, 1, 1)
        held_out.offer(simulation, 0, fields, np.full(5, 200 + simulation))
    return held_out


@pytest.mark.parametrize("unroll", [0, 2])
def test_validation_goes_by_single_predictions(unroll):
    """Each step that has a history is predicted once, also where training unrolls."""
    held_out = held_out_steps(Autoregressive(2, 1, unroll=unroll))
    batches = list(held_out)
    assert len(batches) == len(held_out) == 6
    targets = []
    for batch in batches:
        assert batch.target.shape[1] == 1
        first = batch.target[:, 0, 0, 0, 0]
        for history, target, step in zip(
            batch.history[:, :, 0, 0, 0].tolist(),
            first.tolist(),
            batch.step.tolist(),
            strict=True,
        ):
            assert history == [target - 2, target - 1]
            assert step == target % 100
        targets += first.tolist()
    assert targets == [s * 100 + k for s in range(3) for k in range(2, 9)]


@pytest.mark.parametrize("window", [Direct(), Autoregressive(2, 3, unroll=1)], ids=str)
def test_a_padding_batch_is_a_complete_sample(window):
    """A rank without data trains what the others train, so it unrolls as they do."""
    batch = Batch.padding(SPEC, window)
    assert batch.history.shape == (1, window.inputs, *SPEC.step_shape)
    predicted = window.span - window.inputs
    assert batch.target.shape == (1, predicted, *SPEC.step_shape)
    surrogate = Surrogate(SPEC, FullyConnected, window=window)
    for k in range(8):
        loss = surrogate.training_step(batch, k)
        loss.backward()
        assert loss == 0
    assert all((p.grad == 0).all() for p in surrogate.parameters())
