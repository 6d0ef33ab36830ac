"""What the trainer gets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Draw"]


class Draw(NamedTuple):
    """A batch, copied out: nothing else uses its memory while anybody holds it.

    `step` is the number of the first step of each sample.
    """

    fields: (
        Float[np.ndarray, "batch span channel *space"]
        | Float[Tensor, "batch span channel *space"]
    )
    simulation: Int[np.ndarray, " batch"]
    step: Int[np.ndarray, " batch"]
    parameters: Float[np.ndarray, "batch parameter"]
