"""What a store keeps, draws and evicts, and how often: FIFO, FIRO and Reservoir."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import CAPACITY, THRESHOLD
from surrogate_flow.reservoir.memory import HostMemory, MemoryFactory
from surrogate_flow.reservoir.population import Places

__all__ = ["FIFO", "FIRO", "Policy", "Reservoir", "SamplesPerInsert"]

# Sums of decimal ratios are a little off; without it both sides could wait on a tie.
_SLACK = 1e-6


@final
@dataclass(frozen=True)
class SamplesPerInsert:
    """A band for the excess `d` of inserts over draws, counted from the threshold on::

        d = ratio * (inserted - threshold) - drawn,    -tolerance <= d <= tolerance

    An insert waits if it would lift `d` above the band, a batch waits if it would push
    `d` below it. Inserts below the threshold are free. Each side waits only while the
    other can go on: a batch does not wait for samples that a full store cannot take,
    nor an insert for batches that an empty store cannot give.

    Parameters
    ----------
    ratio : float
        Number of times that a sample shall be drawn on average.
    tolerance : float
        Half the width of the band, in samples drawn: at least ``(ratio + batch_size) /
        2``, or both sides would wait for each other.

    References
    ----------
    Cassirer et al., *Reverb: A Framework For Experience Replay*, 2021,
    https://arxiv.org/abs/2102.04736 (there ``SampleToInsertRatio``).

    Examples
    --------
    >>> limiter = SamplesPerInsert(ratio=4.0, tolerance=64.0)
    >>> limiter.insertable(inserted=100, drawn=0, threshold=100)
    16
    >>> limiter.drawable(32, inserted=100, drawn=32, threshold=100)
    True
    >>> limiter.drawable(32, inserted=100, drawn=64, threshold=100)
    False
    """

    ratio: float
    tolerance: float

    def __post_init__(self) -> None:
        for name, value in (("ratio", self.ratio), ("tolerance", self.tolerance)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(
                    f"SamplesPerInsert.{name}",
                    "a number > 0",
                    value,
                    "Leave the limiter out if draws and inserts are not to be tied.",
                )

    def check(self, batch_size: int) -> None:
        """Refuse a band into which one batch or one insert does not fit."""
        least = (self.ratio + batch_size) / 2
        if self.tolerance < least:
            raise UserError(
                "SamplesPerInsert",
                f"tolerance >= (ratio + batch_size) / 2 = {least:g}",
                f"{self.tolerance:g}",
                "Simulations and trainer would wait for each other for ever: raise the "
                f"tolerance ({4 * least:g}, say) or lower batch_size.",
            )

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        """Return how many more samples may enter."""
        room = (self.tolerance + drawn) / self.ratio + threshold - inserted
        return max(math.floor(room + _SLACK), threshold - inserted, 0)

    def drawable(self, size: int, inserted: int, drawn: int, threshold: int) -> bool:
        """Return whether a batch of `size` samples may be drawn."""
        excess = self.ratio * (inserted - threshold) - drawn
        return excess - size >= -self.tolerance - _SLACK


@final
@dataclass(frozen=True)
class Deterministic:
    """Either an insert or a batch is possible, never both: a batch if ``d >= size``.

    `d` is as in `SamplesPerInsert`. A batch is drawn from the same samples in every
    run, if they arrive in the same order.

    Parameters
    ----------
    ratio : float
        Number of times that a sample is drawn on average.
    batch_size : int

    Examples
    --------
    >>> limiter = Deterministic(ratio=2.0, batch_size=8)
    >>> limiter.insertable(inserted=100, drawn=0, threshold=100)
    4
    >>> limiter.drawable(8, inserted=104, drawn=0, threshold=100)
    True
    >>> limiter.insertable(inserted=104, drawn=0, threshold=100)
    0
    """

    ratio: float
    batch_size: int

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        missing = (self.batch_size + drawn) / self.ratio + threshold - inserted
        return max(math.ceil(missing - _SLACK), 0)

    def drawable(self, size: int, inserted: int, drawn: int, threshold: int) -> bool:
        return self.ratio * (inserted - threshold) - drawn >= size - _SLACK


Limiter = SamplesPerInsert | Deterministic


class Policy(ABC):
    """The rules and the settings of a `Store`, which keeps all state.

    A store holds `count` samples, ordered as::

        place   0 ... unseen - 1   unseen ... count - 1
                [ never drawn    | drawn at least once ]

    and a policy chooses among these places. Within each part they have no order, unless
    `in_order` is set: a policy knows neither the age of a sample nor how often it was
    drawn. A new policy is a frozen dataclass with the settings that it needs, with
    `needed`, `take`, and, if `take` leaves samples in the store, `evict`. A recipe
    names its class path, and nothing is registered.

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

        `inserted` is the number that have entered the store since the beginning.
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
            Whether reception has ended: then the samples, all different, must leave.
        """

    def evict(
        self, unseen: int, count: int, wanted: int, random: np.random.Generator
    ) -> Places:
        """Return up to `wanted` places >= `unseen` of samples to evict; none here."""
        return np.zeros(0, dtype=np.intp)


@final
@dataclass(frozen=True, kw_only=True)
class FIFO(Policy):
    """A queue: each sample is drawn once, in the order of arrival.

    With `n` held::

        put  waits  <=>  no slot is free
        draw waits  <=>  n < batch_size  (while steps arrive)

    Parameters
    ----------
    capacity : int or str
        Number of steps held, or a size in bytes such as ``"2 GiB"``.
    memory : class of Memory
        Where the steps are: `HostMemory`, or `DeviceMemory` of a GPU.
    """

    capacity: int | str = CAPACITY
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
    """A shuffle buffer: each sample is drawn once, at random.

    With `n` held::

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

    capacity: int | str = CAPACITY
    threshold: int = THRESHOLD
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
    As `FIRO`.
    """

    capacity: int | str = CAPACITY
    threshold: int = THRESHOLD
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
