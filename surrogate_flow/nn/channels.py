"""All inputs of a network as channels of one grid."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window

__all__ = ["Channels", "scaled"]


class Channels(nn.Module):
    """x = (history, inputs, parameters, step, positions), stacked on the fields' grid.

    The parameters and the step are the same at every point. Positions, one channel for
    each dim, run from -1 to 1; they come from the spec, not from the checkpoint.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    network : str
        Name of the network, for the errors.
    positions : bool
        Whether positions are channels too.

    Attributes
    ----------
    count : int
        Number of channels.

    Examples
    --------
    >>> from surrogate_flow.solvers import Heat2D
    >>> from surrogate_flow.fields import Direct
    >>> channels = Channels(Heat2D(cells=(8, 4)).spec, Direct(), network="mine")
    >>> channels.count  # five parameters, the step, x and y
    8
    >>> stacked = channels(torch.ones(3, 5), torch.ones(3), torch.ones(3, 0, 1, 8, 4))
    >>> stacked.shape
    torch.Size([3, 8, 8, 4])
    """

    positions: Tensor

    def __init__(
        self, spec: FieldSpec, window: Window, *, network: str, positions: bool = True
    ) -> None:
        super().__init__()
        _require_grid(spec, network)
        if not (positions or window.inputs or spec.inputs):
            raise ArgumentError(
                f"{network}: expected positions or a history, got positions=False "
                f"with {type(window).__name__}, which has no history: every point "
                "would get the same value. Set positions=True, or use Autoregressive."
            )
        axes = [scaled(spec.axis(dim)) for dim in spec.dims]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))[None].astype(np.float32)
        shown = torch.from_numpy(grid[:, : None if positions else 0])
        self.register_buffer("positions", shown, persistent=False)
        seen = window.inputs * len(spec.variables) + len(spec.inputs)
        self.count = seen + len(spec.parameters) + 1 + shown.shape[1]

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch stacked *space"]:
        """Stack the channels, the oldest step of the history first."""
        batch, space = step.shape[0], self.positions.shape[2:]
        same = torch.cat([parameters, step[:, None]], dim=1)
        same = same.reshape(*same.shape, *(1 for _ in space)).expand(-1, -1, *space)
        positions = self.positions.expand(batch, *self.positions.shape[1:])
        given = [] if inputs is None else [inputs]
        return torch.cat([history.flatten(1, 2), *given, same, positions], dim=1)


def _require_grid(spec: FieldSpec, network: str) -> None:
    if not spec.dims:
        names = ", ".join(v.name for v in spec.variables)
        raise ArgumentError(
            f"{network}: expected fields on a grid, got {names}, which have no dims. "
            "Use surrogate_flow.nn.FullyConnected (--model fully_connected)."
        )
    if spec.cells is not None:
        raise ArgumentError(
            f"{network}: expected fields on a structured grid, got an unstructured "
            f"mesh of {spec.shape[0]} nodes and {len(spec.cells)} cells. Use "
            "surrogate_flow.nn.MessagePassingSolver (--model message_passing) or "
            "surrogate_flow.nn.FullyConnected (--model fully_connected)."
        )


def scaled(axis: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """Return positions from -1 to 1, or 0 if there is one."""
    half = (axis.max() - axis.min()) / 2
    return (axis - axis.min()) / half - 1 if half else np.zeros(len(axis))
