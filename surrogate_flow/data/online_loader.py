"""Batches out of the reservoir, and how many of them are in the weights."""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from typing import Any, final

import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import Callback

from surrogate_flow.data.prefetch import POLL_SECONDS, Prefetch, in_step
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.source import Source
from surrogate_flow.reservoir import Draw, PendingBatches, Store
from surrogate_flow.reservoir.stats import Stopwatch
from surrogate_flow.surrogate.batch import Batch

__all__ = ["AppliedBatches", "OnlineLoader"]

_CHECK = 0.1  # seconds between two looks at whether the study has failed


@final
class OnlineLoader:
    """Iterable of batches, of unknown length; ends when the reservoir has drained.

    A DataLoader's worker processes could not see the reservoir.

    Parameters
    ----------
    store : Store
    pending : PendingBatches
        Keeps batches until they have been trained; those that a checkpoint left in it
        come first.
    source : Source, optional
        Raises what stopped the study, if anything did, so that no wait is for ever.
    applied : AppliedBatches, optional
        Counts the batches trained so far, padding included; by default all that were
        given are.
    ranks : Ranks, optional
    stopped : threading.Event, optional
        Set when this rank, and all with it, are to stop.
    waits_for_all : bool
        Whether a rank without data is waited for even when this one is full.
    device : torch.device, optional
        To which batches are copied; the CPU by default.
    """

    def __init__(
        self,
        store: Store,
        *,
        pending: PendingBatches,
        source: Source | None = None,
        applied: AppliedBatches | None = None,
        ranks: Ranks | None = None,
        stopped: threading.Event | None = None,
        waits_for_all: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self._store, self._pending = store, pending
        self._source = source
        self._applied = applied
        self._ranks = ranks or Ranks()
        self._stopped = stopped or threading.Event()
        self._waits_for_all = waits_for_all
        self._device = device
        self._waited = Stopwatch()
        self._given = 0
        # Numbers of the batches given that were padding: in no reservoir.
        self._padding = array("q")

    @property
    def waited(self) -> float:
        """Seconds that the trainer has waited for batches, up to now."""
        return self._waited.total

    def __iter__(self) -> Iterator[Batch]:
        store = self._store
        padding = Batch.padding(store.spec, store.window)
        try:
            with Prefetch(
                self._draws(), store.window, self._device, self._stopped, self._waited
            ) as batches:
                for batch in in_step(batches, self._ranks, padding, self._full):
                    if not batch.weight:
                        self._padding.append(self._given)
                    self._given += 1
                    yield batch
        finally:
            self._pending.requeue(self._given - len(self._padding))

    def trained(self) -> int:
        """Return how many batches of the reservoir are in the weights."""
        applied = self._applied.count() if self._applied else self._given
        return applied - bisect_left(self._padding, applied)

    def _full(self) -> bool:
        return not self._waits_for_all and self._store.held_up

    def _check(self) -> None:
        if self._source is not None:
            self._source.check(self.waited)

    def _draws(self) -> Generator[Draw | None]:
        checked = 0.0
        while True:
            # Not with every batch: its time is the trainer's, who waits for Python.
            if time.monotonic() - checked > _CHECK:
                self._check()
                checked = time.monotonic()
            self._pending.acknowledge(self.trained())
            draw = self._pending.take_again()
            if draw is None:
                try:
                    draw = self._store.draw(POLL_SECONDS, self._pending)
                except TimeoutError:
                    yield None
                    continue
            if draw is None:
                # It drained, or was stopped since the study failed.
                self._check()
                return
            yield draw


@final
class AppliedBatches(Callback):
    """Counts batches in the weights since this was made.

    Batches whose gradients still add up (``accumulate_grad_batches``) are in no
    checkpoint, and come again in a run that goes on. It becomes a callback of the
    trainer, in place of an earlier one.
    """

    def __init__(
        self, trainer: L.Trainer, at_end: Callable[[], None] | None = None
    ) -> None:
        self._trainer, self._at_end = trainer, at_end
        # A run that was told to stop has saved that it had come to its end; whether it
        # has is for the reservoir to say.
        trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False
        self._before = self._progress.total.processed
        # Lightning sets the attribute elsewhere.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, AppliedBatches)]
        callbacks.append(self)

    def count(self) -> int:
        """Return how many batches' gradients have been applied."""
        total = self._progress.total.processed - self._adding_up()
        return max(0, int(total - self._before))

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """End a fit whose stream has ended, or Lightning asks it for ever for more."""
        unlimited = trainer.num_training_batches == float("inf")
        if unlimited or not self._progress.current.ready:
            trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        """Let others go on while pictures and reports are made of the run."""
        if self._at_end is not None:
            self._at_end()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Any
    ) -> None:
        """Leave batches whose gradients add up out of Lightning's counters.

        They come again, so the next step of the optimizer is made of as many as ever.
        """
        count = self._adding_up()
        saved = checkpoint.get("loops", {}).get("fit_loop", {})
        for part in ("current", "total"):
            counters = saved.get("epoch_loop.batch_progress", {}).get(part, {})
            for name in counters:
                counters[name] -= count
        if count:
            # Lightning adds it again when it goes on behind a step of the optimizer.
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def _adding_up(self) -> int:
        current = self._progress.current
        now: int = current.processed
        # The flag is set before the batch is trained.
        last = self._progress.is_last_batch and now == current.ready
        over = last or now >= self._trainer.num_training_batches
        return 0 if over else now % self._trainer.accumulate_grad_batches

    @property
    def _progress(self) -> Any:
        return self._trainer.fit_loop.epoch_loop.batch_progress
