"""Training from a data set on disk: the offline baseline."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pytorch_lightning as L
from dask.utils import format_bytes, parse_bytes

from surrogate_flow.data.module import (
    Changes,
    Cost,
    DatasetStats,
    Status,
    SurrogateData,
    Vector,
    at_least,
    require_setup,
)
from surrogate_flow.data.prefetch import Prefetch, in_step
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.shuffle import ShuffledReader
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import named
from surrogate_flow.surrogate.batch import Batch

__all__ = ["StoredData", "StoredLoader"]

logger = logging.getLogger(__name__)


class StoredData(SurrogateData):
    """data set on disk -> shuffled batches, each sample once an epoch.

    What fits into `memory` is read once in all. Of a larger data set each chunk is read
    once an epoch, or twice at the borders of what is read at once: `ShuffledReader` has
    the bound. Threads read ahead while the trainer works. Each rank has its share of
    the simulations.

    Parameters
    ----------
    path : Path
        Of a data set that ``surrogate-flow generate --output`` or ``--data.archive``
        wrote.
    batch_size : int
        Samples of a batch.
    memory : str or int
        Size of the fields in memory, on each rank, such as ``"4 GiB"``, or in bytes. A
        larger data set is shuffled in blocks of half of it. The held-out simulations
        and the batches in preparation take memory besides.
    threads : int, optional
        Number of threads that read; one a core, eight at most, by default.
    seed : int
        Of the order of the samples, which differs between epochs.
    simulations : int, optional
        Train on the first so many, held-out ones not counted; on all by default.
    name : str, optional
        Workflow's name in folders; that of the data set and ``_stored`` by default.

    Raises
    ------
    ArchiveError
        If there is no data set, or it cannot be read.
    """

    repeats = True
    tests_apart = False

    def __init__(
        self,
        path: Path,
        *,
        batch_size: int = 10,
        memory: str | int = "4 GiB",
        threads: int | None = None,
        seed: int = 0,
        simulations: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, threads=threads, simulations=simulations)
        at_least(0, seed=seed)
        try:
            self.memory = int(parse_bytes(memory))
        except ValueError as error:
            size = "a size such as '4 GiB'"
            raise UserError("data.memory", size, repr(memory)) from error
        self.path = Path(path)
        self.archive = Archive(self.path)
        self.spec = self.archive.spec
        self.batch_size = batch_size
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.seed = seed
        there = self.archive.simulations - self.archive.held_out
        if simulations is not None and simulations > there:
            most = f"at most {there}, which {self.path} has beside those held out"
            raise UserError("data.simulations", most, simulations)
        self.simulations = simulations
        self.workflow = name or f"{self.path.stem}_stored"
        named(self.workflow, "", "data")
        self._samples: ShuffledReader | None = None
        self._loader: StoredLoader | None = None

    def setup(self, stage: str) -> None:
        """Check that all is there, and read the held-out simulations.

        It is an ArchiveError if there is nothing to train with, or chunks are missing.
        """
        if self.validation is not None:
            return
        self._stopped.clear()
        self._begin()
        ranks, archive, count = self.ranks, self.archive, self.archive.held_out
        with ranks.fail_together():
            complete = self._complete(stage)
            validation = ValidationSet.of_rank(
                ranks, self.spec, self.window, self.batch_size, count
            )
            self._read_validation(validation, complete)
            train = [n for n in complete if n >= count][: self.simulations]
            steps = int(archive.steps()[train].sum())
            self._shares = [train[k :: ranks.world] for k in range(ranks.world)]
            if stage == "fit":
                self._samples = ShuffledReader(
                    archive,
                    self._shares[ranks.rank],
                    self.window,
                    memory=self.memory,
                    threads=self.threads,
                    seed=(self.seed, ranks.rank),
                )
        self.validated = validation.validated(ranks, count)
        self.validation = validation
        if ranks.rank == 0 and self._samples is not None:
            logger.info(
                "%s: %d simulations to train on, %s of fields, %s",
                self.path,
                len(train),
                format_bytes(steps * self.spec.step_bytes),
                self._samples.describe(),
            )

    def _complete(self, stage: str) -> list[int]:
        """Return the complete simulations, none of whose chunks is missing."""
        complete, archive = self.archive.complete(), self.archive
        if stage == "fit" and not any(n >= archive.held_out for n in complete):
            raise ArchiveError(
                f"{self.path}: none of its {archive.simulations - archive.held_out} "
                "training simulations is complete: there is nothing to train on.",
                remedy="Type the command that generates it again: "
                f"{archive.attributes['command']}",
            )
        archive.require_chunks(complete)
        if len(complete) < archive.simulations and self.ranks.rank == 0:
            logger.warning(
                "%s: %d of %d simulations are complete; the others failed, or have not "
                "been generated yet.",
                self.path,
                len(complete),
                archive.simulations,
            )
        return complete

    def _read_validation(self, validation: ValidationSet, complete: list[int]) -> None:
        lengths = self.archive.steps()
        for row in range(validation.count):
            number = validation.number(row)
            if number not in complete:
                validation.close(number, complete=False)
                continue
            fields = np.empty(validation.fields.shape[1:], dtype=np.float32)
            self.archive.read(number, 0, fields[: lengths[number]])
            parameters = self.archive.parameters[[number]].astype(np.float32)
            inputs = self.archive.inputs(number)[None]
            steps = lengths[[number]]
            validation.restore(np.array([row]), fields[None], parameters, inputs, steps)

    def moments(self) -> tuple[Vector, Vector]:
        """Return mean and std of each variable over the training part.

        If it does not fit into memory, they are those of its first block, at random.
        """
        samples = require_setup(self._samples)
        with self.ranks.fail_together():
            own = samples.moments()
        moments = self._pooled(own.count, (own.mean, own.std))
        return moments.mean, moments.std

    def changes(self) -> Changes:
        """Return the root mean squares of changes, over some of the same samples."""
        return self._pooled_changes(require_setup(self._samples).changes())

    def train_dataloader(self) -> StoredLoader:
        """Return the shuffled batches; each iteration is another epoch."""
        samples = require_setup(self._samples)
        self._loader = StoredLoader(
            samples,
            self.batch_size,
            windows=self.ranks.gather(samples.windows),
            ranks=self.ranks,
            stopped=self._stopped,
            trainer=self.trainer,
        )
        return self._loader

    def val_dataloader(self) -> ValidationSet:
        """Return the batches of the held-out simulations.

        A data set has one such set: ``test`` takes those that ``best.ckpt`` was chosen
        by, and says so.
        """
        return require_setup(self.validation)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def cost(self) -> Cost:
        """Return what the simulations took, those held out included.

        Of a part of the data set, its share of the seconds of all.
        """
        drawn = self._loader.different if self._loader else 0
        every = used = len(self.archive.complete())
        if self.simulations is not None:
            used = min(every, self.archive.held_out + self.simulations)
        return Cost(used, drawn, self.archive.solver_seconds * used / max(every, 1))

    def close(self) -> None:
        """Read no more, and free the memory; may be called again."""
        self.stop()
        if self._samples is not None:
            self._samples.close()
        self._samples = self._loader = None

    def teardown(self, stage: str) -> None:
        """End reading with the run."""
        super().teardown(stage)
        self.validation = None

    def status(self) -> Status | None:
        """Return how much was read, or None before that begins."""
        samples, loader = self._samples, self._loader
        if samples is None:
            return None
        return Status(
            dataset=DatasetStats(
                name=self.path.name,
                epoch=max(0, loader.epoch if loader else 0),
                read=samples.bytes_read,
                total=samples.total,
                in_memory=samples.in_memory,
            )
        )


@final
class StoredLoader:
    """Iterable of batches, each sample once; each iteration is an epoch.

    Parameters
    ----------
    samples : ShuffledReader
        This rank's share.
    batch_size : int
    windows : sequence of int
        Number of samples of each rank. All take as many steps as the one with most.
    ranks : Ranks, optional
    stopped : threading.Event, optional
        Set when this rank, and all with it, are to stop.
    trainer : Trainer, optional
        To whose device batches are copied, and which is stopped with the other ranks.
    """

    def __init__(
        self,
        samples: ShuffledReader,
        batch_size: int,
        windows: Sequence[int],
        *,
        ranks: Ranks | None = None,
        stopped: threading.Event | None = None,
        trainer: L.Trainer | None = None,
    ) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._ranks = ranks or Ranks()
        self._windows = windows[self._ranks.rank]
        self._steps = -(-max(windows) // batch_size)
        self._stopped = stopped or threading.Event()
        self._trainer = trainer
        self._resumed: tuple[int, int] | None = None
        #: Number of the epoch, and of its batches that were given.
        self.epoch, self.given = -1, 0

    def __len__(self) -> int:
        return self._steps

    @property
    def different(self) -> int:
        """Number of samples of this rank that were given, once or more often."""
        first = min(self._windows, self.given * self._batch_size)
        return self._windows if self.epoch > 0 else first

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, for Lightning's checkpoints."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place in an epoch."""
        self._resumed = int(state_dict["epoch"]), int(state_dict["given"])

    def __iter__(self) -> Iterator[Batch]:
        self.epoch, self.given = self._resumed or (self.epoch + 1, 0)
        self._resumed = None
        if self.given >= len(self):
            self.epoch, self.given = self.epoch + 1, 0
        samples, trainer = self._samples, self._trainer
        padding = Batch.padding(samples.spec, samples.window)
        draws = samples.draws(self.epoch, self._batch_size, self.given)
        device = trainer.strategy.root_device if trainer else None
        with Prefetch(draws, samples.window, device, self._stopped) as batches:
            steps = in_step(batches, self._ranks, padding)
            # One is kept back, so that the last one is known when a rank stops.
            kept: deque[Batch] = deque()
            for batch in itertools.islice(steps, len(self) - self.given):
                kept.append(batch)
                if len(kept) > 1:
                    self.given += 1
                    yield kept.popleft()
            if self.given + len(kept) < len(self) and trainer is not None:
                # All ranks validate and save after it.
                trainer.should_stop = True
            for batch in kept:
                self.given += 1
                yield batch
