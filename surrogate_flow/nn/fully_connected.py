"""The fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import subclass_at
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window

__all__ = ["FullyConnected", "layers"]


class FullyConnected(nn.Module):
    """u = W_n σ(… σ(W_1 (parameters, t, history, inputs) + b_1) …) + b_n.

    It serves any fields: on a grid, on a mesh, or without dims.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    widths : sequence of int
        Features of each hidden layer.
    activation : str
        Import path of σ, a ``torch.nn.Module`` without arguments.

    Raises
    ------
    ArgumentError
        If a width is not positive, or the activation is no module.

    References
    ----------
    High Throughput Training of Deep Surrogates from Large Ensemble Runs, Meyer et al.,
    SC 2023, arXiv 2309.16743: six inputs, two hidden layers of 256, one output a cell,
    linear; σ is relu.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        widths: Sequence[int] = (256, 256),
        activation: str = "torch.nn.ReLU",
    ) -> None:
        super().__init__()
        self.shape = (window.outputs, *spec.step_shape)
        features = math.prod(spec.step_shape)
        seen = window.inputs * features + math.prod(spec.input_shape)
        given = len(spec.parameters) + 1 + seen
        self.layers = layers("FullyConnected", given, widths, activation)
        self.layers.append(nn.Linear(widths[-1], window.outputs * features))

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all cells of all steps at once."""
        seen = [parameters, step[:, None], history.flatten(1)]
        if inputs is not None:
            seen.append(inputs.flatten(1))
        out: Tensor = self.layers(torch.cat(seen, dim=1))
        return out.reshape(-1, *self.shape)


def layers(
    name: str, given: int, widths: Sequence[int], activation: str
) -> nn.Sequential:
    """Return hidden layers of these widths, each followed by σ; errors name `name`."""
    if not widths or min(widths) < 1:
        raise ArgumentError(
            f"{name}: expected positive widths, got {list(widths)}. Give one number "
            "for each hidden layer, such as [256, 256]."
        )
    sigma = subclass_at(activation, nn.Module, f"activation of {name}")
    sizes = pairwise([given, *widths])
    return nn.Sequential(
        *(layer for a, b in sizes for layer in (nn.Linear(a, b), sigma()))
    )
