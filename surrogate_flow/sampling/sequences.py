"""Points that depend on a seed alone: uniform, Latin hypercube, Halton, Sobol'."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.stats import qmc

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling.sampler import BlockSampler

__all__ = ["Halton", "LatinHypercube", "Sobol", "Uniform"]


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


class LatinHypercube(BlockSampler):
    """Successive Latin hypercube designs, each with one point in every stratum.

    A design cuts the range of every parameter into equal strata.

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
        generator = np.random.default_rng([self.seed, index])
        return _points(qmc.LatinHypercube(dimensions, seed=generator), self.strata)


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
    """

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block; see `BlockSampler.block`."""
        engine = qmc.Halton(dimensions, seed=self.seed)
        # fast_forward would draw, and keep, every point that it skips.
        engine.num_generated = index * self.block_size
        return _points(engine, self.block_size)


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
    """

    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block; see `BlockSampler.block`."""
        # The longest sequence: with more than 32 bits scipy cannot fast-forward.
        engine = qmc.Sobol(dimensions, bits=32, seed=self.seed)
        if index:
            engine.fast_forward(index * self.block_size)
        return _points(engine, self.block_size)


def _points(engine: qmc.QMCEngine, count: int) -> Float[np.ndarray, "point parameter"]:
    points: Float[np.ndarray, "point parameter"] = engine.random(count)
    return points
