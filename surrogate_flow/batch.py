"""What a network is trained on: one batch of windows, as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surrogate_flow.reservoir import Draw
from surrogate_flow.windows import Window

__all__ = ["Batch"]


class Batch(NamedTuple):
    """(parameters, step, history) -> target, in physical units.

    Attributes
    ----------
    parameters : Tensor of shape (batch, parameter)
        In the order of the spec.
    step : Tensor of shape (batch,)
        Index, in the time axis of the spec, of the first step to predict.
    history : Tensor of shape (batch, inputs, channel, *space)
        The steps just before; ``inputs`` is zero for direct windows.
    target : Tensor of shape (batch, outputs, channel, *space)
        The steps to predict.
    """

    parameters: Float[Tensor, "batch parameter"]
    step: Float[Tensor, " batch"]
    history: Float[Tensor, "batch inputs channel *space"]
    target: Float[Tensor, "batch outputs channel *space"]

    @classmethod
    def from_draw(cls, draw: Draw, window: Window) -> Batch:
        """Split drawn windows into what the network sees and what it shall predict."""
        fields = torch.from_numpy(draw.fields)
        return cls(
            parameters=torch.from_numpy(draw.parameters),
            step=torch.from_numpy(draw.step + window.inputs).to(torch.float32),
            history=fields[:, : window.inputs],
            target=fields[:, window.inputs :],
        )
