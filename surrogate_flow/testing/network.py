"""The laws of networks."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as L
import torch
from torch import Tensor, nn

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing.law import Laws

__all__ = ["check_network"]

_BATCH, _STEPS, _GAIN = 3, 300, 20

# Parameters (batch, parameter), step (batch,), history (batch, input, channel, *space),
# and input fields (batch, input, *space), if the spec has any.
_Inputs = tuple[Tensor, ...]


def check_network(
    network: Callable[[FieldSpec, Window], nn.Module], spec: FieldSpec, window: Window
) -> list[str]:
    """Try a network as a surrogate uses it: called, differentiated, trained, saved.

    Parameters
    ----------
    network : callable
        Builds the module, such as a class or `functools.partial` of one, with few
        weights: it is trained for up to 300 steps.
    spec : FieldSpec
        Small, such as that of a solver with few cells.
    window : Window

    Returns
    -------
    list of str
        The laws that it keeps.

    Raises
    ------
    LawBroken
        If it breaks one.

    Examples
    --------
    >>> from functools import partial
    >>> from surrogate_flow.fields import Direct
    >>> from surrogate_flow.nn import FullyConnected
    >>> from surrogate_flow.solvers import Lorenz
    >>> network = partial(FullyConnected, widths=(16,))
    >>> check_network(network, Lorenz(steps=3).spec, Direct())[1]
    'a sample depends on no other of its batch, as with a batch norm'
    """
    torch.manual_seed(0)
    laws = Laws()
    inputs = (
        torch.rand(_BATCH, len(spec.parameters)) * 2 - 1,
        torch.rand(_BATCH) * 2 - 1,
        torch.randn(_BATCH, window.inputs, *spec.step_shape),
        *[torch.randn(_BATCH, *spec.input_shape)] * bool(spec.inputs),
    )
    with laws.law(
        "the output is (batch, outputs, channel, *space), float32 and finite"
    ):
        module = network(spec, window)
        out = module(*inputs)
        shape = (_BATCH, window.outputs, *spec.step_shape)
        assert out.shape == shape, f"Expected {shape}, got {tuple(out.shape)}."
        assert out.dtype == torch.float32, f"Got {out.dtype}."
        assert out.isfinite().all(), "Got NaN or infinity."
    seen = [x.clone().requires_grad_() for x in inputs]
    with laws.law("a sample depends on no other of its batch, as with a batch norm"):
        alone = module(*(x[:1] for x in inputs))
        torch.testing.assert_close(alone, out[:1], rtol=1e-4, atol=1e-5)
        module(*seen)[0].square().sum().backward()
        names = ("parameters", "step", "history", "inputs")
        for name, x in zip(names, seen, strict=False):
            others = x.grad is not None and x.grad[1:].any()
            assert not others, f"It depends on {name} of another sample."
    with laws.law("a sample depends on its parameters, its step and its history"):
        _check_dependence(seen)
    with laws.law("every weight has a gradient that is finite and not zero"):
        out.square().sum().backward()
        for name, weight in module.named_parameters():
            assert weight.grad is not None, f"{name} has none."
            assert weight.grad.isfinite().all(), f"That of {name} is not finite."
            assert weight.grad.any(), f"That of {name} is zero."
    with laws.law("it comes back from a checkpoint, which is data and no code"):
        _check_return(network, spec, window, inputs)
    with laws.law("it learns smooth fields: the loss falls to a twentieth"):
        _check_learning(module, inputs, out.shape)
    return laws


def _check_dependence(seen: list[Tensor]) -> None:
    parameters, step, history, *given = (x.grad for x in seen)
    if seen[0].shape[1]:
        assert parameters is not None, "The parameters are not used."
        assert (parameters[0] != 0).all(), "A parameter is not used."
    assert step is not None, "The step is not used."
    assert step[0] != 0, "The step is not used."
    if seen[2].shape[1]:
        assert history is not None, "The history is not used."
        used = history[0, ..., None].flatten(2).abs().sum(2).ne(0)
        assert used.all(), "A step or a channel of the history is not used."
    for inputs in given:
        assert inputs is not None, "The input fields are not used."
        used = inputs[0, ..., None].flatten(1).abs().sum(1).ne(0)
        assert used.all(), "An input field is not used."


def _check_return(
    network: Callable[[FieldSpec, Window], nn.Module],
    spec: FieldSpec,
    window: Window,
    inputs: _Inputs,
) -> None:
    surrogate = Surrogate(spec, network, window=window)
    channels = len(spec.variables)
    surrogate.normalisation.freeze(np.arange(1.0, channels + 1), np.full(channels, 2.0))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet():
        path = Path(folder) / "some.ckpt"
        trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=folder)
        trainer.strategy.connect(surrogate)
        trainer.save_checkpoint(path)
        torch.load(path, weights_only=True)
        loaded = Surrogate.load(path)
        same = torch.equal(loaded(*inputs), surrogate.eval()(*inputs))
        assert same, "Its predictions have changed."


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning prints about devices whenever a trainer is made."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_learning(module: nn.Module, inputs: _Inputs, shape: torch.Size) -> None:
    phase = torch.zeros(())
    for axis, size in enumerate(shape):
        others = (1 for _ in shape[axis + 1 :])
        phase = phase + torch.linspace(0, 3, size).reshape(size, *others)
    target = torch.sin(phase + inputs[1].reshape(-1, *(1 for _ in shape[1:])))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(_STEPS):
        loss = (module(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < losses[0] / _GAIN:
            return
    raise AssertionError(f"It fell from {losses[0]:.3g} to {losses[-1]:.3g} only.")
