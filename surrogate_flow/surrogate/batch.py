"""What a network is trained on: one batch of windows, as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw
from surrogate_flow.reservoir.devices import Side

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
        The steps to predict; those of ``unroll + 1`` predictions where training
        unrolls, until `pushed_forward` has chosen one.
    weight : float
        Factor of its loss: 0 for a rank whose data have ended while others train.
    """

    parameters: Float[Tensor, "batch parameter"]
    step: Float[Tensor, " batch"]
    history: Float[Tensor, "batch inputs channel *space"]
    target: Float[Tensor, "batch outputs channel *space"]
    weight: float = 1.0

    @classmethod
    def from_draw(cls, draw: Draw, window: Window) -> Batch:
        """Split drawn windows into what the network sees and what it shall predict."""
        fields = torch.as_tensor(draw.fields)
        return cls(
            parameters=torch.from_numpy(draw.parameters),
            step=torch.from_numpy(draw.step + window.inputs).to(torch.float32),
            history=fields[:, : window.inputs],
            target=fields[:, window.inputs :],
        )

    def sent(self, side: Side) -> Batch:
        """Return it on a device; the copies may still be under way."""
        return Batch(
            parameters=side.send(self.parameters),
            step=side.send(self.step),
            history=side.send(self.history),
            target=side.send(self.target),
            weight=self.weight,
        )

    @classmethod
    def weightless(cls, spec: FieldSpec, window: Window) -> Batch:
        """Return a batch of one sample that nothing is learnt from."""
        fields = torch.zeros(1, window.span, *spec.step_shape)
        return cls(
            parameters=torch.tensor([[p.low for p in spec.parameters]]).float(),
            step=torch.full((1,), float(window.inputs)),
            history=fields[:, : window.inputs],
            target=fields[:, window.inputs :],
            weight=0.0,
        )
