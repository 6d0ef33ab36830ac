"""What training has seen of the simulations, for samplers that choose by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Observations"]


@dataclass(frozen=True)
class Observations:
    """The samples of one training step, each with its loss.

    Attributes
    ----------
    simulation : array of shape (sample,)
        Number of the simulation that each sample is of.
    step : array of shape (sample,)
        Index of the first step that was predicted.
    parameters : array of shape (sample, parameter)
        In physical units, in the order of the spec.
    loss : array of shape (sample,)
        Before the weights were updated, in normalised units.
    """

    simulation: Int[np.ndarray, " sample"]
    step: Int[np.ndarray, " sample"]
    parameters: Float[np.ndarray, "sample parameter"]
    loss: Float[np.ndarray, " sample"]
