"""First in, random out: each sample trains once, in random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Int

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.population import Population
from surrogate_flow.reservoir.store import Store

__all__ = ["FIRO"]


@final
class FIRO(Store):
    """A shuffle buffer. With `n` samples held::

        put  waits  <=>  no slot is free
        draw waits  <=>  n < max(threshold, batch_size)  (while steps come in)

    A batch is drawn uniformly at random, without repetition, and leaves the store.

    Parameters
    ----------
    spec, window, batch_size, capacity
        As `Store`.
    threshold : int
        Number of samples to shuffle among.
    seed : int
        Of the draws.
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
        capacity: int | str,
        threshold: int,
        seed: int = 0,
        memory: Callable[[int, tuple[int, ...], int], Memory] = HostMemory,
    ) -> None:
        super().__init__(
            spec,
            window,
            batch_size,
            capacity=capacity,
            threshold=threshold,
            memory=memory,
        )
        self._members = Population(self.capacity)
        self._random = np.random.default_rng(seed)

    def _needed(self) -> int:
        return max(self.threshold, self.batch_size)

    def _take(self) -> tuple[Int[np.ndarray, " sample"], bool]:
        count = len(self._members)
        places = self._random.choice(count, min(self.batch_size, count), replace=False)
        return self._members.remove(places), True
