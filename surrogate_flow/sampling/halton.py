"""The scrambled Halton sequence."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from surrogate_flow.sampling.sampler import BlockSampler

__all__ = ["Halton"]


class Halton(BlockSampler):
    """Scrambled Halton points: even in every prefix, best in few dimensions.

    Parameters
    ----------
    seed : int
        Of the scrambling, >= 0; default 0.

    References
    ----------
    J. H. Halton, "On the efficiency of certain quasi-random sequences of points in
    evaluating multi-dimensional integrals", 1960, https://doi.org/10.1007/BF01386213.
    A. B. Owen, "A randomized Halton algorithm in R", 2017,
    https://arxiv.org/abs/1706.02808.

    Examples
    --------
    >>> Halton(seed=1).block(0, dimensions=2).shape
    (1024, 2)
    """

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block; see `BlockSampler.block`."""
        engine = qmc.Halton(dimensions, seed=self.seed)
        # fast_forward would draw, and hold, every point that it passes over.
        engine.num_generated = index * self.block_size
        points: Float[np.ndarray, "point parameter"] = engine.random(self.block_size)
        return points
