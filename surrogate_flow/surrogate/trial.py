"""A trial of a network before anything is simulated: what it makes of zeros."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surrogate_flow.fields.errors import ArgumentError, UserError, line_of
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.surrogate.checkpoint import plain_recipe

__all__ = ["built", "needs_gpu", "require_history", "require_shape"]


def built(
    network: Callable[[FieldSpec, Window], nn.Module], spec: FieldSpec, window: Window
) -> nn.Module:
    """Return a network, or refuse what its class does not take."""
    try:
        return network(spec, window)
    except UserError:
        raise
    except Exception as error:
        # Of any type: the class is the user's, or of a library.
        name = str(plain_recipe(network)["class_path"])
        remedy = line_of(error).strip()
        if not remedy and not name.startswith("surrogate_flow"):
            remedy = "surrogate_flow.nn.OnGrid(module=...) takes those of libraries."
        what = f"{name}, built as network(spec, window)"
        raise ArgumentError(f"{what}: {error}.", remedy=remedy) from error


def require_history(window: Window, predicts: str, noise: float) -> None:
    """Refuse what is predicted from, or added to, a history where there is none."""
    if predicts not in ("field", "change"):
        raise ArgumentError("model.predicts", "'field' or 'change'", repr(predicts))
    if not 0 <= noise < math.inf:
        raise ArgumentError("model.noise", "a finite number, at least 0", noise)
    for name, value in (("predicts", predicts), ("noise", noise)):
        if value in ("change", noise) and value and not window.inputs:
            raise ArgumentError(
                f"model.{name}",
                "a window with a history",
                f"{value} with {window}",
                "Take --model.window Autoregressive, or leave it out.",
            )


def require_shape(
    network: nn.Module, name: str, spec: FieldSpec, window: Window
) -> tuple[Tensor, list[Tensor]] | None:
    """Refuse a network that does not map samples of zeros to their target's shape.

    Return what a copy makes of them, and its weights; None if it needs a GPU.
    """
    count, remedy = 2, ""  # A batch norm takes no single sample.
    wanted = (count, window.outputs, *spec.step_shape)
    try:
        out, weights = _tried(network, count, spec, window.inputs)
        got = str(tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__)
        if got == str(wanted) and not out.is_floating_point():
            got = f"{out.dtype}"
        elif got == str(wanted) and not out.requires_grad:
            got = "one that does not depend on parameters that can be trained"
    except UserError:
        raise
    except Exception as error:
        if needs_gpu(error):
            return None
        got, remedy = f"{type(error).__name__} ({error})", line_of(error).strip()
        with suppress(Exception):
            _tried(network, count, spec, window.inputs + 1)
            remedy += (
                f" {window} gives it a history of no steps: for one that needs some, "
                "set --model.window Autoregressive."
            )
    if got != str(wanted):
        raise ArgumentError(
            f"{name}, called on {count} samples",
            f"a tensor of shape {wanted}",
            got,
            remedy,
        )
    return out, weights


def needs_gpu(error: Exception) -> bool:
    """Whether something failed for want of the device that it will be trained on."""
    return "cuda" in str(error).lower() and torch.cuda.is_available()


def _tried(
    network: nn.Module, count: int, spec: FieldSpec, steps: int
) -> tuple[Any, list[Tensor]]:
    """Return the output of a copy, for a batch norm changes, and without a draw."""
    if any(map(is_lazy, network.parameters())):
        copied: Any = copy.deepcopy(network)
    else:
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        state = {
            key: value.detach().clone().requires_grad_(value.requires_grad)
            for key, value in state.items()
        }
        copied = partial(torch.func.functional_call, network, state)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        inputs = (
            torch.zeros(count, len(spec.parameters)),
            torch.zeros(count),
            torch.zeros(count, steps, *spec.step_shape),
            *[torch.zeros(count, *spec.input_shape)] * bool(spec.inputs),
        )
        if isinstance(copied, nn.Module):
            return copied(*inputs), [*copied.parameters()]
        return copied(inputs), [state[name] for name, _ in network.named_parameters()]
