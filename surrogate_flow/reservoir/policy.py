"""What a store keeps, draws and evicts: FIFO, FIRO and Reservoir."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from surrogate_flow.reservoir.limiter import SamplesPerInsert
from surrogate_flow.reservoir.memory import HostMemory, MemoryFactory
from surrogate_flow.reservoir.population import Places

__all__ = ["FIFO", "FIRO", "Policy", "Reservoir"]


class Policy(ABC):
    """The rules and the settings of a `Store`, which keeps all state.

    A store holds `count` samples, ordered as::

        place   0 ... unseen - 1   unseen ... count - 1
                [ never drawn    | drawn at least once ]

    and a policy chooses among these places. A new policy is a frozen dataclass with the
    settings that it needs, with `needed`, `take`, and, if `take` leaves samples in the
    store, `evict`. A recipe names its class path, and nothing is registered.

    Attributes
    ----------
    capacity : int or str
        Number of steps held (of samples, if a sample is one step), or a size in bytes
        such as ``"2 GiB"``.
    threshold : int
        Number of samples before the first batch.
    seed : int
        Of the generator that `take` and `evict` are given.
    limiter : SamplesPerInsert, optional
        Band for the number of draws per insert.
    memory : class of Memory
        Where the steps are: `HostMemory`, or `DeviceMemory` of a GPU.
    in_order : bool
        Whether places are in the order of arrival, oldest first. Then samples leave
        from the front only, and all that are drawn leave.

    Notes
    -----
    The store calls all methods under its lock, so they must be quick and never block.
    """

    capacity: int | str
    threshold: int = 1
    seed: int = 0
    limiter: SamplesPerInsert | None = None
    memory: MemoryFactory = HostMemory
    in_order: ClassVar[bool] = False

    @abstractmethod
    def needed(self, batch_size: int, inserted: int) -> int:
        """Return how many samples must be held for a batch, while steps arrive.

        Parameters
        ----------
        batch_size : int
        inserted : int
            Number of samples that have entered the store since the beginning.
        """

    @abstractmethod
    def take(
        self, count: int, size: int, random: np.random.Generator, *, draining: bool
    ) -> tuple[Places, bool]:
        """Return the places of a batch, and whether its samples leave the store.

        Parameters
        ----------
        count : int
            Number of samples held, at least 1.
        size : int
            Samples of a batch; there may be fewer in the store.
        random : numpy.random.Generator
        draining : bool
            Whether reception has ended: then the samples must leave, or the run never
            ends. Samples that leave must differ.
        """

    def evict(
        self, unseen: int, count: int, wanted: int, random: np.random.Generator
    ) -> Places:
        """Return up to `wanted` places >= `unseen` of samples to evict; none here."""
        return np.zeros(0, dtype=np.intp)


@final
@dataclass(frozen=True, kw_only=True)
class FIFO(Policy):
    """A queue: each sample is drawn once, in the order of arrival. With `n` held::

        put  waits  <=>  no slot is free
        draw waits  <=>  n < batch_size  (while steps arrive)

    Parameters
    ----------
    capacity : int or str
        Number of steps held, or a size in bytes such as ``"2 GiB"``.
    memory : class of Memory
        Where the steps are: `HostMemory`, or `DeviceMemory` of a GPU.
    """

    capacity: int | str
    memory: MemoryFactory = HostMemory
    in_order: ClassVar[bool] = True

    def needed(self, batch_size: int, inserted: int) -> int:
        return batch_size

    def take(
        self, count: int, size: int, random: np.random.Generator, *, draining: bool
    ) -> tuple[Places, bool]:
        return np.arange(min(size, count)), True


@final
@dataclass(frozen=True, kw_only=True)
class FIRO(Policy):
    """A shuffle buffer: each sample is drawn once, at random. With `n` held::

        put  waits  <=>  no slot is free
        draw waits  <=>  n < max(threshold, batch_size)  (while steps arrive)

    A batch is drawn uniformly at random, without repetition, and leaves the store.

    Parameters
    ----------
    capacity : int or str
        Number of steps held, or a size in bytes such as ``"2 GiB"``.
    threshold : int
        Number of samples to shuffle among.
    seed : int
        Of the draws.
    memory : class of Memory
        Where the steps are: `HostMemory`, or `DeviceMemory` of a GPU.

    References
    ----------
    Meyer et al., *High Throughput Training of Deep Surrogates from Large Ensemble
    Runs*, SC 2023, https://arxiv.org/abs/2309.16743
    """

    capacity: int | str
    threshold: int
    seed: int = 0
    memory: MemoryFactory = HostMemory

    def needed(self, batch_size: int, inserted: int) -> int:
        return max(self.threshold, batch_size)

    def take(
        self, count: int, size: int, random: np.random.Generator, *, draining: bool
    ) -> tuple[Places, bool]:
        return random.choice(count, min(size, count), replace=False), True


@final
@dataclass(frozen=True, kw_only=True)
class Reservoir(Policy):
    """Samples are drawn again and again, and none is evicted unseen.

    With `n` samples held, `u` of them unseen, and `i` inserted since the beginning::

        put  waits  <=>  no slot is free  and  u == n
        draw waits  <=>  i < threshold  or  n == 0   (while steps arrive)

    and both within the band of the limiter, if there is one. A batch is drawn
    uniformly, with repetition, over all samples, and marked as seen. Into a full store
    a new sample enters at the cost of a seen one, chosen uniformly at random. Once
    reception has ended, a batch is drawn without repetition and leaves, until the store
    is empty: every sample is drawn at least once.

    Where samples share steps, an evicted one frees only the steps that no other sample
    needs, so samples are evicted until a step is free, or none of the seen is left.

    Parameters
    ----------
    capacity : int or str
        Number of steps held, or a size in bytes such as ``"2 GiB"``.
    threshold : int
        Number of samples inserted before the first batch.
    seed : int
        Of draws and evictions.
    limiter : SamplesPerInsert, optional
        Holds the mean number of draws a sample within a band.
    memory : class of Memory
        Where the steps are: `HostMemory`, or `DeviceMemory` of a GPU.

    References
    ----------
    Meyer et al., *High Throughput Training of Deep Surrogates from Large Ensemble
    Runs*, SC 2023, https://arxiv.org/abs/2309.16743
    """

    capacity: int | str = 6000
    threshold: int = 1000
    seed: int = 0
    limiter: SamplesPerInsert | None = None
    memory: MemoryFactory = HostMemory

    def needed(self, batch_size: int, inserted: int) -> int:
        return self.threshold if inserted < self.threshold else 1

    def take(
        self, count: int, size: int, random: np.random.Generator, *, draining: bool
    ) -> tuple[Places, bool]:
        if draining:
            return random.choice(count, min(size, count), replace=False), True
        return random.integers(0, count, size), False

    def evict(
        self, unseen: int, count: int, wanted: int, random: np.random.Generator
    ) -> Places:
        seen = count - unseen
        return unseen + random.choice(seen, min(wanted, seen), replace=False)
