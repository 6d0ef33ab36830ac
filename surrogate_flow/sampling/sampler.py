"""The contract of everything that chooses parameters."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.spec import Parameter

__all__ = ["Sampler"]


class Sampler(ABC):
    """An endless sequence of points in the box of the parameters.

    A subclass draws blocks of points in the unit cube; the base joins them and scales
    them to the bounds. A block depends on the seed and its number alone, so the
    sequence can be entered anywhere, and a resumed run goes on where it stopped.

    Parameters
    ----------
    seed : int
        Of the random numbers, >= 0; default 0. The same seed gives the same sequence.

    Attributes
    ----------
    block_size : int
        Points in a block.

    Raises
    ------
    ValueError
        If the seed is not a whole number >= 0.

    Examples
    --------
    >>> class Centre(Sampler):
    ...     def block(self, index, dimensions):
    ...         return np.full((self.block_size, dimensions), 0.5)
    >>> next(Centre().parameters([Parameter("rate", 0.0, 3.0)]))
    {'rate': 1.5}
    """

    block_size: int = 1024

    def __init__(self, seed: int = 0) -> None:
        if seed < 0 or seed != int(seed):
            raise ValueError(
                f"{type(self).__name__}: expected seed to be a whole number >= 0, got "
                f"{seed}. Any such number will do."
            )
        self.seed = int(seed)

    @abstractmethod
    def block(
        self, index: int, dimensions: int
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw one block of points in the unit cube.

        Parameters
        ----------
        index : int
            Number of the block in the sequence, from 0.
        dimensions : int
            Number of parameters.

        Returns
        -------
        array of shape (block_size, dimensions)
            Points in [0, 1), the same ones whenever it is asked for.
        """

    def parameters(
        self, bounds: Sequence[Parameter], start: int = 0
    ) -> Iterator[dict[str, float]]:
        """Yield points of the box for ever.

        Parameters
        ----------
        bounds : sequence of Parameter
            The sides of the box.
        start : int
            Number of points to leave out at the beginning; default 0.

        Returns
        -------
        iterator of dict of str to float
            A value in [low, high] for each parameter. Memory does not grow.

        Raises
        ------
        ValueError
            If there is no parameter to draw, or `start` is negative.
        """
        if not bounds:
            raise ValueError(
                f"{type(self).__name__}: expected at least one parameter to draw, got "
                "none. Declare what varies between simulations in the solver's spec."
            )
        if start < 0:
            raise ValueError(
                f"{type(self).__name__}: expected start >= 0, got {start}. Give the "
                "number of points that were drawn before."
            )
        return self._walk(tuple(bounds), start)

    def _walk(
        self, bounds: tuple[Parameter, ...], start: int
    ) -> Iterator[dict[str, float]]:
        names = [p.name for p in bounds]
        low = np.array([p.low for p in bounds])
        high = np.array([p.high for p in bounds])
        first, skip = divmod(start, self.block_size)
        for index in itertools.count(first):
            unit = self.block(index, len(bounds))
            # Rounding may carry a point just past the upper bound.
            points = np.clip(low * (1 - unit) + high * unit, low, high)
            for point in points[skip:].tolist():
                yield dict(zip(names, point, strict=True))
            skip = 0
