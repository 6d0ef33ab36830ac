"""Which simulations a study runs, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from surrogate_flow.fields.quantities import Parameter
from surrogate_flow.fields.simulation import Simulation
from surrogate_flow.sampling import Sampler, Uniform

__all__ = ["SEEDS", "held_out", "training"]

# Held-out sets are drawn uniformly and are the same whatever samples the training set,
# so that studies can be compared; the seeds are none that a user would choose.
SEEDS = {"validation": 1_234_567_891, "test": 1_234_567_892}


def held_out(
    part: str, bounds: Sequence[Parameter], count: int
) -> Iterator[Simulation]:
    """Yield the simulations 0, ..., count - 1, with a seed of their own.

    Parameters
    ----------
    part : {"validation", "test"}
        Each has another seed.
    bounds : sequence of Parameter
    count : int
    """
    points = Uniform(SEEDS[part]).parameters(bounds)
    for number, parameters in enumerate(itertools.islice(points, count)):
        yield Simulation(number, part, parameters)


def training(
    sampler: Sampler, bounds: Sequence[Parameter], first: int, count: int | None
) -> Iterator[Simulation]:
    """Yield the simulations first, first + 1, ..., without end if `count` is None."""
    points = itertools.islice(sampler.parameters(bounds), count)
    for number, parameters in enumerate(points, start=first):
        yield Simulation(number, "training", parameters)
