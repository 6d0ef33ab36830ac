"""Independent uniform points."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from surrogate_flow.sampling.sampler import BlockSampler

__all__ = ["Uniform"]


class Uniform(BlockSampler):
    """p ~ U[low, high]: independent points, also known as Monte Carlo sampling.

    Parameters
    ----------
    seed : int
        Of the random numbers, >= 0; default 0.

    Examples
    --------
    >>> Uniform(seed=1).block(0, dimensions=2).shape
    (1024, 2)
    """

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block; see `BlockSampler.block`."""
        generator = np.random.default_rng([self.seed, index])
        return generator.random((self.block_size, dimensions))
