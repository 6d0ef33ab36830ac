"""`SurrogateData`: what all Lightning data modules of simulations have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as L
import torch
from dask.utils import format_bytes
from distributed import Client
from jaxtyping import Float

from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.reservoir import Moments, StoreStats
from surrogate_flow.sampling import Observations
from surrogate_flow.stream import StreamStats
from surrogate_flow.surrogate.batch import Batch

__all__ = [
    "Changes",
    "Cost",
    "DatasetStats",
    "RunCallback",
    "Status",
    "SurrogateData",
    "TrainingStats",
    "Vector",
    "at_least",
    "data_of",
    "require_setup",
    "run_folder",
]

Part = TypeVar("Part")

#: A number for each variable.
Vector = Float[np.ndarray, " channel"]
#: A number for each predicted step and variable.
Changes = Float[np.ndarray, "outputs channel"]


@dataclass(frozen=True)
class Cost:
    """What the simulations of one process have cost."""

    #: Number of complete ones, the held-out ones included.
    simulations: int
    #: Number of different samples drawn to train on, once or more often.
    samples: int
    #: Of all simulations together, without waiting for the trainer.
    solver_seconds: float
    #: Workers and hosts that were set aside, where most attempts have failed.
    set_aside: tuple[str, ...] = ()
    #: How many simulations have ended before their last step, by reason.
    early: Mapping[str, int] = field(default_factory=dict)
    #: Of the quickest simulation, which others disturbed least; None if none ran.
    quickest: float | None = None


@dataclass(frozen=True)
class TrainingStats:
    """How far the training of one process is."""

    #: ``fit``, ``validate``, ``test`` or ``predict``, and ``, validating`` and so on.
    stage: str
    #: Processes that train together.
    ranks: int = 1
    #: Steps of the optimizer, those before a checkpoint that was resumed included.
    step: int = 0
    #: Trained by this process in this run, repetitions counted.
    samples: int = 0
    #: Over the last five seconds; at the end, over the last five of the training.
    samples_per_second: float = 0.0
    #: Of the last batch, in normalised units.
    loss: float | None = None
    #: Relative L2 error of the last validation, of rollouts where there are any.
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
    """How much of a data set has been read."""

    name: str
    #: Number of the one that is trained, from 0.
    epoch: int
    #: Bytes of fields read since the beginning of the run, by this process.
    read: int
    #: Bytes of fields to train on, of this process; whether all stay in memory, so that
    #: they are read once.
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
    """What a run does at one moment; parts that it does not have are None."""

    #: Since the run began to be watched.
    seconds: float = 0.0
    #: When, in ISO 8601 with the time zone.
    time: str = ""
    #: Added by the `Monitor` to what a data module says.
    training: TrainingStats | None = None
    #: Simulations, inlet and reservoir of an online run.
    ensemble: EnsembleStats | None = None
    stream: StreamStats | None = None
    store: StoreStats | None = None
    #: Of a run on a data set.
    dataset: DatasetStats | None = None
    #: Who waits for whom, as text; empty if no one does.
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


class SurrogateData(L.LightningDataModule, ABC):
    """Batches to train on, and simulations for validation and test.

    Attributes
    ----------
    spec : FieldSpec
        Of the fields; known before `setup`.
    workflow : str
        Name of the folder of its runs.
    window : Window
        Of the network; after `setup`.
    ranks : Ranks
        The processes of the run; after `setup`.
    validation : ValidationSet or None
        This rank's share of the held-out simulations; after `setup`.
    validated : int
        Number of held-out simulations, of all ranks, that errors are averaged over.
    repeats : bool
        Whether each epoch has the same samples again.
    tests_apart : bool
        Whether ``test`` has other simulations than those that chose ``best.ckpt``.
    observes : bool
        Whether `observe` is called, after each training step.
    client : distributed.Client or None
        Of the cluster that simulates, if there is one; after `setup`.
    """

    spec: FieldSpec
    workflow: str
    window: Window
    repeats: bool = False
    tests_apart: bool = True
    observes: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.ranks = Ranks()
        self.validation: ValidationSet | None = None
        self.validated = 0
        self.client: Client | None = None
        self._stopped = threading.Event()

    @abstractmethod
    def moments(self) -> tuple[Vector, Vector]:
        """Return mean and std of each variable, over the first samples to train on.

        Those of each input field come behind them.
        """

    @abstractmethod
    def status(self) -> Status | None:
        """Return its state, or None before it has begun."""

    @abstractmethod
    def cost(self) -> Cost:
        """Return what the data have cost up to now."""

    def observe(self, seen: Observations) -> None:
        """Take the loss of each sample of a training step; ignored by default."""

    @property
    def stopped(self) -> bool:
        """Whether it was told to deliver no further batch."""
        return self._stopped.is_set()

    def ended_untrained(self, trained: bool) -> bool:
        """Whether a fit was ended before its first batch; all ranks ask together."""
        return not trained and any(self.ranks.gather(self.stopped))

    def stop(self) -> None:
        """Deliver no further batch, and end what waits for one."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, and free what the run has taken; may be called again."""
        self.stop()

    def teardown(self, stage: str) -> None:
        """Close with the run."""
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        """Close when the run fails."""
        self.ranks.leave()
        self.close()

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave a batch that is there already, as all of ours are."""
        if isinstance(batch, Batch) and batch.step.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _begin(self) -> None:
        """Note the processes, and the window of what is trained."""
        trainer = self.trainer
        self.window = Direct()
        if trainer is not None:
            window = getattr(trainer.lightning_module, "window", None)
            self.window = window or Direct()
            self.ranks = Ranks(trainer.global_rank, trainer.world_size)

    def _pooled_changes(self, own: Moments) -> Changes:
        """Return the root mean squares of all ranks, (outputs, channel)."""
        channels = len(self.spec.variables)
        pooled = self._pooled(
            own.count, (own.mean, own.std), self.window.outputs * channels
        )
        return pooled.rms.reshape(-1, channels)

    def _pooled(
        self, count: int, own: tuple[Vector, Vector] | None, channels: int | None = None
    ) -> Moments:
        """Return the moments of all ranks: those of `count` numbers are `own`.

        They are of variables and input fields, unless it is said how many there are.
        """
        moments = Moments(channels or len(self.spec.variables) + len(self.spec.inputs))
        for number, of_rank in self.ranks.gather((count, own)):
            if number:
                moments.join(number, *of_rank)
        return moments


def data_of(trainer: L.Trainer) -> SurrogateData | None:
    """Return the data module of a trainer, if it has one of ours."""
    # Lightning sets the attribute where there is a data module, and only there.
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SurrogateData) else None


class RunCallback(L.Callback):
    """One of a run, which has a folder.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    trained : bool
        Whether a batch was begun: if not, there is nothing to tell.
    """

    trained = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, *_: Any) -> None:
        """Note that there is something to tell."""
        self.trained = True


def run_folder(trainer: L.Trainer | None) -> Path:
    """Return the folder of a run: that of its callbacks, or where its loggers write."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, RunCallback):
            return callback.folder
    return Path((trainer and trainer.log_dir) or ".")


def require_setup(part: Part | None) -> Part:
    """Return what `setup` makes, if it has."""
    if part is None:
        raise RuntimeError(
            "No data yet: expected setup() to be called first, which Trainer.fit, "
            "validate, test and predict do."
        )
    return part


def at_least(least: int, **values: int | None) -> None:
    """Refuse arguments of a data module that are smaller."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"data.{name}", f"at least {least}", value)
