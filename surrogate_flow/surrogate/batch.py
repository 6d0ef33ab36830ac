"""Batches to train on: windows of simulations, as tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw
from surrogate_flow.reservoir.device import CopyStream

__all__ = ["Batch"]


class Batch(NamedTuple):
    """(parameters, step, history) -> target, as stored: ``(u - offset) / scale``.

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
    simulation : Tensor of shape (batch,)
        Number of the simulation that each sample is of; -1 for padding.
    weight : float
        Factor of its loss: 0 for padding.
    inputs : Tensor of shape (batch, input, *space), optional
        The input fields of the simulation, if the spec has any.
    remaining : float
        How many batches are still to come, as far as is known; infinite if it is not.
    """

    parameters: Float[Tensor, "batch parameter"]
    step: Float[Tensor, " batch"]
    history: Float[Tensor, "batch inputs channel *space"]
    target: Float[Tensor, "batch outputs channel *space"]
    simulation: Int[Tensor, " batch"]
    weight: float = 1.0
    inputs: Float[Tensor, "batch input *space"] | None = None
    remaining: float = math.inf

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but the numbers of the batch as a whole."""
        return self[:5] if self.inputs is None else (*self[:5], self.inputs)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What follows the history in a call of a network: inputs, if there are any."""
        return () if self.inputs is None else (self.inputs,)

    @classmethod
    def from_draw(cls, draw: Draw, window: Window) -> Batch:
        """Split drawn windows into the history and the steps to predict."""
        fields = torch.as_tensor(draw.fields)
        return cls(
            parameters=torch.from_numpy(draw.parameters),
            step=torch.from_numpy(draw.step + window.inputs).to(torch.float32),
            history=fields[:, : window.inputs],
            target=fields[:, window.inputs :],
            simulation=torch.from_numpy(draw.simulation),
            inputs=None if draw.inputs is None else torch.as_tensor(draw.inputs),
            remaining=draw.remaining,
        )

    def sent(self, stream: CopyStream) -> Batch:
        """Return a copy on a device; it may not be complete yet."""
        names = "parameters", "step", "history", "target", "simulation", "inputs"
        tensors = {n: t for n in names if (t := getattr(self, n)) is not None}
        sent: Any = {name: stream.send(tensor) for name, tensor in tensors.items()}
        return self._replace(**sent)

    @classmethod
    def padding(cls, spec: FieldSpec, window: Window) -> Batch:
        """Return one sample of weight zero, for a rank whose data have ended."""
        fields = torch.zeros(1, window.span, *spec.step_shape)
        return cls(
            parameters=torch.tensor([[p.low for p in spec.parameters]]).float(),
            step=torch.full((1,), float(window.inputs)),
            history=fields[:, : window.inputs],
            target=fields[:, window.inputs :],
            simulation=torch.full((1,), -1),
            weight=0.0,
            inputs=torch.zeros(1, *spec.input_shape) if spec.inputs else None,
        )
