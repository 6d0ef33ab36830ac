"""The state of a run at one moment: training, reservoir or data set, simulations."""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import format_bytes

from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.reservoir import StoreStats
from surrogate_flow.stream import StreamStats

__all__ = ["DatasetStats", "Status", "TrainingStats"]


@dataclass(frozen=True)
class TrainingStats:
    """How far the training of one process is.

    Attributes
    ----------
    stage : str
        ``fit``, ``validate``, ``test`` or ``predict``.
    ranks : int
        Processes that train together.
    step : int
        Steps of the optimizer, those before a checkpoint that was resumed included.
    samples : int
        Trained by this process in this run, repetitions counted.
    samples_per_second : float
        Over the last five seconds; at the end, over the last five of the training.
    loss : float, optional
        Of the last batch, in normalised units.
    validation : float, optional
        ``val_relative_l2`` of the last validation.
    """

    stage: str
    ranks: int = 1
    step: int = 0
    samples: int = 0
    samples_per_second: float = 0.0
    loss: float | None = None
    validation: float | None = None

    def describe(self) -> list[str]:
        """Return the parts of a line."""
        parts = [self.stage]
        if self.ranks > 1:
            parts.append(f"rank 0 of {self.ranks}")
        if self.loss is not None:
            parts += [
                f"batch {self.step}",
                f"loss {self.loss:.3g}",
                f"{self.samples_per_second:.0f} samples/s",
            ]
        if self.validation is not None:
            parts.append(f"validation {self.validation:.2%}")
        return parts


@dataclass(frozen=True)
class DatasetStats:
    """How much of a data set has been read.

    Attributes
    ----------
    name : str
    epoch : int
        Number of the one that is trained, from 0.
    read : int
        Bytes of fields read since the beginning of the run.
    total : int
        Bytes of fields to train on, of this process.
    in_memory : bool
        Whether all of them stay in memory, so that they are read once.
    """

    name: str
    epoch: int
    read: int
    total: int
    in_memory: bool

    def describe(self, *, narrow: bool = False) -> list[str]:
        """Return the parts of a line; shortened where that is narrow."""
        read = f"{format_bytes(self.read)} read"
        if narrow:
            return [f"epoch {self.epoch}", read]
        kept = ", in memory" if self.in_memory else ""
        of = f"{format_bytes(self.total)} of {self.name}{kept}"
        return [f"epoch {self.epoch}", f"{read} ({of})"]


@dataclass(frozen=True)
class Status:
    """What a run does at one moment; parts that it does not have are None.

    Attributes
    ----------
    seconds : float
        Since the run began to be watched.
    training : TrainingStats, optional
        Added by the `Monitor` to what a data module says.
    ensemble, stream, store : optional
        Of an online run: its simulations, inlet and reservoir.
    dataset : DatasetStats, optional
        Of a run on a data set.
    waiting : str
        Who waits for whom, in words; empty if nobody does.
    """

    seconds: float = 0.0
    training: TrainingStats | None = None
    ensemble: EnsembleStats | None = None
    stream: StreamStats | None = None
    store: StoreStats | None = None
    dataset: DatasetStats | None = None
    waiting: str = ""

    def describe(self, *, narrow: bool = False) -> list[str]:
        """Return the parts of a line; shortened where that is narrow.

        Examples
        --------
        >>> Status(training=TrainingStats("fit", step=3, loss=0.25)).describe()
        ['fit', 'batch 3', 'loss 0.25', '0 samples/s']
        """
        parts = self.training.describe() if self.training else []
        if self.dataset is not None:
            parts += self.dataset.describe(narrow=narrow)
        if (store := self.store) is not None:
            seen = store.population - store.unseen
            parts.append(
                f"reservoir {seen}+{store.unseen}"
                if narrow
                else f"reservoir {store.population}/{store.capacity} "
                f"(seen {seen}, unseen {store.unseen})"
            )
        if (s := self.ensemble) is not None:
            parts.append(
                f"simulations {s.done}/{s.running}/{s.failed}"
                if narrow
                else f"simulations {s.done} done, {s.running} running, "
                f"{s.failed} failed"
            )
        waiting = self.waiting.partition(":")[0] if narrow else self.waiting
        return [*parts, waiting] if waiting else parts
