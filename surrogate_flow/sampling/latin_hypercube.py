"""Latin hypercube designs, one after another."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling.sampler import BlockSampler

__all__ = ["LatinHypercube"]


class LatinHypercube(BlockSampler):
    """Successive Latin hypercube designs: each fills every stratum exactly once.

    A design cuts every parameter's range into equal strata and puts one point into
    each of them.

    Parameters
    ----------
    seed : int
        Of the random numbers, >= 0; default 0.
    strata : int
        Strata of each parameter, which is the number of points of a design; default 64.

    Raises
    ------
    ArgumentError
        If the seed is not a whole number >= 0, or there is no stratum.

    References
    ----------
    M. D. McKay, R. J. Beckman and W. J. Conover, "A comparison of three methods for
    selecting values of input variables in the analysis of output from a computer code",
    1979, https://doi.org/10.2307/1268522.

    Examples
    --------
    >>> design = LatinHypercube(seed=1, strata=4).block(0, dimensions=2)
    >>> np.sort(np.floor(4 * design), axis=0).T
    array([[0., 1., 2., 3.],
           [0., 1., 2., 3.]])
    """

    def __init__(self, seed: int = 0, *, strata: int = 64) -> None:
        super().__init__(seed)
        if strata < 1 or strata != int(strata):
            raise ArgumentError("LatinHypercube: strata", "a whole number >= 1", strata)
        self.strata = self.block_size = int(strata)

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one design; see `BlockSampler.block`."""
        engine = qmc.LatinHypercube(
            dimensions, seed=np.random.default_rng([self.seed, index])
        )
        points: Float[np.ndarray, "point parameter"] = engine.random(self.strata)
        return points
