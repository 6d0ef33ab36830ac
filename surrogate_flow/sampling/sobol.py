"""The scrambled Sobol' sequence."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from surrogate_flow.sampling.sampler import BlockSampler

__all__ = ["Sobol"]


class Sobol(BlockSampler):
    """Scrambled Sobol' points: even in every prefix whose length is a power of two.

    Parameters
    ----------
    seed : int
        Of the scrambling, >= 0; default 0.

    Notes
    -----
    The sequence has 2³² points, about 4.3e9; after them scipy raises an error.

    References
    ----------
    I. M. Sobol', "The distribution of points in a cube and the approximate evaluation
    of integrals", 1967. A. B. Owen, "Scrambling Sobol' and Niederreiter-Xing points",
    1998, https://doi.org/10.1006/jcom.1998.0487.

    Examples
    --------
    >>> Sobol(seed=1).block(0, dimensions=2).shape
    (1024, 2)
    """

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block; see `BlockSampler.block`."""
        # The longest sequence: with more than 32 bits scipy cannot fast-forward.
        engine = qmc.Sobol(dimensions, bits=32, seed=self.seed)
        if index:
            engine.fast_forward(index * self.block_size)
        points: Float[np.ndarray, "point parameter"] = engine.random(self.block_size)
        return points
