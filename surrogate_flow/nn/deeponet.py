"""The deep operator network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.channels import scaled
from surrogate_flow.nn.fully_connected import layers

__all__ = ["DeepONet"]


class DeepONet(nn.Module):
    """u(x, t) = Σ_k b_k(parameters, inputs, history) τ_k(x, t) + b_0.

    The branch b sees the input fields and the history at all points of the grid, which
    are its sensors; the trunk τ sees the position and the time of one point. Both are
    fully connected. It serves any fields: on a grid, on a mesh, or without dims.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    branch : sequence of int
        Features of each hidden layer of b.
    trunk : sequence of int
        Features of each layer of τ; the last is the number of terms k.
    activation : str
        Import path of σ, a ``torch.nn.Module`` without arguments.

    Raises
    ------
    ArgumentError
        If a width is not positive, or the activation is no module.

    Notes
    -----
    Each variable and each step of a window has its own b, and all share τ. The trunk is
    evaluated at all points for each sample of a batch, unless there is a single time:
    then once, in a small part of what the branch takes.

    References
    ----------
    L. Lu, P. Jin, G. Pang, Z. Zhang, G. E. Karniadakis, "Learning nonlinear operators
    via DeepONet based on the universal approximation theorem of operators", Nature
    Machine Intelligence 3 (2021), 218-229, arXiv 1910.03193, equation 2: unstacked,
    with bias.
    """

    points: Tensor

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        branch: Sequence[int] = (256, 256),
        trunk: Sequence[int] = (128, 128, 128),
        activation: str = "torch.nn.GELU",
    ) -> None:
        super().__init__()
        self.shape = (window.outputs, *spec.step_shape)
        self.one_time = spec.steps == 1
        # They follow from the spec, which a checkpoint has.
        points = torch.tensor(_points(spec), dtype=torch.float32)
        self.register_buffer("points", points, persistent=False)
        seen = window.inputs * math.prod(spec.step_shape) + math.prod(spec.input_shape)
        fields = window.outputs * len(spec.variables)
        self.trunk = layers("trunk of DeepONet", points.shape[1] + 1, trunk, activation)
        self.branch = layers(
            "branch of DeepONet", len(spec.parameters) + seen, branch, activation
        )
        self.branch.append(nn.Linear(branch[-1], fields * trunk[-1]))
        self.bias = nn.Parameter(torch.zeros(fields, 1))

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all points of all steps."""
        seen = [parameters, history.flatten(1)]
        if inputs is not None:
            seen.append(inputs.flatten(1))
        weights = self.branch(torch.cat(seen, dim=1)).unflatten(1, (len(self.bias), -1))
        time = (step[:1] if self.one_time else step)[:, None, None]
        points = self.points.expand(time.shape[0], -1, -1)
        terms = self.trunk(
            torch.cat([points, time.expand(-1, points.shape[1], 1)], dim=2)
        )
        # A single product of matrices, where all samples have the same terms.
        shared = terms[0].T if self.one_time else terms.transpose(1, 2)
        out: Tensor = weights @ shared + self.bias
        return out.reshape(-1, *self.shape)


def _points(spec: FieldSpec) -> Float[np.ndarray, "point place"]:
    """Return the position of each point, from -1 to 1; on a mesh all coordinates."""
    places = []
    for axis, dim in enumerate(spec.dims):
        along = [c.values for c in spec.coordinates if c.dim == dim]
        shape = [1] * len(spec.dims)
        shape[axis] = -1
        for values in along if len(along) > 1 else [spec.axis(dim)]:
            place = scaled(np.array(values, dtype=np.float64)).reshape(shape)
            places.append(np.broadcast_to(place, spec.shape).ravel())
    return np.stack(places, axis=1) if places else np.zeros((1, 0))
