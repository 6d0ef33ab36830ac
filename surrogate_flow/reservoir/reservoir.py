"""The training reservoir: samples are drawn again and again, none leaves unseen."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Int

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.limiter import SamplesPerInsert
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.population import Population
from surrogate_flow.reservoir.store import Store

__all__ = ["Reservoir"]


@final
class Reservoir(Store):
    """A bounded set of samples, of which only seen ones make room for new ones.

    With `n` samples held, `u` of them unseen, and `i` inserted since the beginning::

        put  waits  <=>  no slot is free  and  u == n
        draw waits  <=>  i < threshold  or  n == 0   (while steps come in)

    and both within the band of the limiter, if there is one. A batch is drawn
    uniformly, with repetition, over the whole population, and marked as seen. Into a
    full store a new sample enters at the cost of a seen one, chosen uniformly at
    random. Once reception has ended, a batch is drawn without repetition and leaves,
    until the store is empty: every sample is drawn at least once.

    Where windows share steps, a seen sample frees only the steps that no other sample
    needs, so samples go until a step is free, or none of the seen is left.

    Parameters
    ----------
    spec, window, batch_size, capacity
        As `Store`.
    threshold : int
        Number of samples inserted before the first batch.
    seed : int
        Of draws and evictions.
    limiter : SamplesPerInsert, optional
        Holds the mean number of draws a sample within a band.
    memory
        As `Store`.

    References
    ----------
    Meyer et al., *High Throughput Training of Deep Surrogates from Large Ensemble
    Runs*, SC 2023, https://arxiv.org/abs/2309.16743
    """

    _members: Population
    _random: np.random.Generator

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        *,
        capacity: int | str = 6000,
        threshold: int = 1000,
        seed: int = 0,
        limiter: SamplesPerInsert | None = None,
        memory: Callable[[int, tuple[int, ...], int], Memory] = HostMemory,
    ) -> None:
        super().__init__(
            spec,
            window,
            batch_size,
            capacity=capacity,
            threshold=threshold,
            limiter=limiter,
            memory=memory,
        )
        self._members = Population(self.capacity)
        self._random = np.random.default_rng(seed)

    def _needed(self) -> int:
        return self.threshold if self._tally.inserted < self.threshold else 1

    def _take(self) -> tuple[Int[np.ndarray, " sample"], bool]:
        members, count = self._members, len(self._members)
        if self._ended:
            size = min(self.batch_size, count)
            places = self._random.choice(count, size, replace=False)
            return members.remove(places), True
        samples = members.samples[self._random.integers(0, count, self.batch_size)]
        members.mark_seen(samples)
        return samples, False

    def _evict(self, count: int) -> Int[np.ndarray, " sample"]:
        members = self._members
        seen = len(members) - members.unseen
        places = self._random.choice(seen, min(count, seen), replace=False)
        return members.remove(members.unseen + places)
