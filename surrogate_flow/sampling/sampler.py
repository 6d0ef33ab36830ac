"""The interface of samplers: ask for points, tell losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.fields.quantities import checked_seed

__all__ = ["BlockSampler", "Observations", "Sampler"]


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


class Sampler(ABC):
    """A sequence of points in the box of the parameters: p₀, p₁, …

    A sampler that adapts overrides `tell`, which may change all points that `ask` has
    not returned yet, and saves its state in `state_dict`. Between two calls of `tell` a
    point depends on the seed and its number alone, so `ask` may begin anywhere.

    Parameters
    ----------
    seed : int
        Of the random numbers, >= 0; default 0. The same seed gives the same sequence.

    Attributes
    ----------
    count : int, optional
        How many points there are; without end by default.

    Raises
    ------
    ArgumentError
        If the seed is not a whole number >= 0.

    Notes
    -----
    `Design` calls all methods under one lock.

    Examples
    --------
    >>> class Centre(Sampler):
    ...     def ask(self, first, count, bounds):
    ...         middle = [(p.low + p.high) / 2 for p in bounds]
    ...         return np.tile(middle, (count, 1))
    >>> Centre().ask(0, 2, [Parameter("rate", 0.0, 3.0)])
    array([[1.5],
           [1.5]])
    """

    count: int | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed, self)

    @abstractmethod
    def ask(
        self, first: int, count: int, bounds: Sequence[Parameter]
    ) -> Float[np.ndarray, "point parameter"]:
        """Return the points first, ..., first + count - 1 of the sequence.

        Parameters
        ----------
        first : int
            Number of the first point, from 0.
        count : int
        bounds : sequence of Parameter
            The sides of the box, one or more.

        Returns
        -------
        array of shape (count, len(bounds))
            Values in [low, high] of each parameter, in its units. `Design` asks for
            whole ones within the bounds of `Parameter.drawn`, and rounds them. Those of
            any distribution are ``p.at(shares)`` of shares from 0 to 1; scaled to the
            bounds by itself, a sampler draws all of them as uniform ones.
        """

    def tell(self, seen: Observations) -> None:  # noqa: B027 - optional
        """Use the losses of some samples; ignored by default."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""

    @final
    @property
    def adapts(self) -> bool:
        """Whether `tell` is overridden, so that the points depend on the losses."""
        return type(self).tell is not Sampler.tell


class BlockSampler(Sampler):
    """A sampler that draws blocks of points in the unit cube and ignores losses.

    Attributes
    ----------
    block_size : int
        Points in a block.
    """

    block_size: int = 1024

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
            Points in [0, 1), the same for each call.
        """

    @final
    def ask(
        self, first: int, count: int, bounds: Sequence[Parameter]
    ) -> Float[np.ndarray, "point parameter"]:
        """Draw the blocks that hold the points, as shares; see `Sampler.ask`."""
        begin, skip = divmod(first, self.block_size)
        end = -(-(first + count) // self.block_size)
        none = np.empty((0, len(bounds)))
        blocks = [self.block(index, len(bounds)) for index in range(begin, end)]
        shape = (self.block_size, len(bounds))
        for block in blocks:
            if np.shape(block) != shape:
                raise ArgumentError(
                    f"{type(self).__name__}.block",
                    f"an array of shape (block_size, parameters) = {shape}",
                    np.shape(block),
                    "Draw block_size points, or set block_size in the class.",
                )
        unit = np.concatenate([none, *blocks])[skip : skip + count]
        columns = [p.at(share) for p, share in zip(bounds, unit.T, strict=True)]
        return np.column_stack(columns)
