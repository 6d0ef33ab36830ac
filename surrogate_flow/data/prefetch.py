"""Batches prepared ahead by a thread, and the same number of steps on all ranks."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Self, final

import torch

from surrogate_flow.data.ranks import Ranks, RankState, must_wait
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw
from surrogate_flow.reservoir.device import copy_stream
from surrogate_flow.reservoir.stats import Stopwatch
from surrogate_flow.surrogate.batch import Batch

__all__ = ["POLL_SECONDS", "Prefetch", "in_step"]

POLL_SECONDS = 0.5  # between two looks at whether to stop, while blocked

_AHEAD = 2  # batches


@final
class Prefetch:
    """A thread that draws batches and copies them to the device of the training.

    A context manager: the thread ends with the context, and also when `stopped` is set
    and no batch is taken.

    Parameters
    ----------
    draws : generator of Draw or None
        Run in the thread; yields None while there is nothing yet.
    window : Window
    device : torch.device, optional
        The CPU by default.
    stopped : threading.Event
        Set when the run is to stop.
    waited : Stopwatch, optional
        Runs while `take` waits for the thread.
    """

    def __init__(
        self,
        draws: Generator[Draw | None],
        window: Window,
        device: torch.device | None,
        stopped: threading.Event,
        waited: Stopwatch | None = None,
    ) -> None:
        self._draws = draws
        self._window = window
        self._stream = copy_stream(device or torch.device("cpu"))
        self._waited = waited or Stopwatch()
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self.stopped = stopped
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()

    def take(self, seconds: float) -> tuple[RankState, Batch | None]:
        """Wait for the next batch, and return it with what this rank has.

        What the thread raised is raised again.
        """
        self._waited.start()
        try:
            item = self._ready.get(timeout=seconds)
        except queue.Empty:
            return RankState.WAITING, None
        self._waited.stop()
        if isinstance(item, BaseException) and not self.stopped.is_set():
            raise item
        if not isinstance(item, Batch):
            return RankState.ENDED, None
        # The training step waits for the copies on the device, not this thread.
        self._stream.synchronize(*item.tensors)
        return RankState.READY, item

    def _fill(self) -> None:
        try:
            with contextlib.closing(self._draws):
                for draw in self._draws:
                    if draw is not None:
                        batch = Batch.from_draw(draw, self._window).sent(self._stream)
                        if not self._put(batch):
                            return
                    if self._closed.is_set():
                        return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                # An error elsewhere may hold the context open for ever.
                if self.stopped.is_set():
                    return False
        return False


def in_step(
    batches: Prefetch,
    ranks: Ranks,
    padding: Batch,
    full: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yield a batch for each step that all ranks take, until no rank has data.

    A rank without data gets `padding`, of weight zero, if its data have ended or
    another one is full. The weights of the others make up for it, since gradients are
    averaged over all ranks.

    `full` says whether this rank, which has a batch, cannot wait for those without.
    """
    state, batch = RankState.READY, None
    while True:
        # One that had nothing when others went on does not hold them up.
        seconds = 0.0 if state is RankState.WAITING else POLL_SECONDS
        states = [RankState.WAITING]
        while must_wait(states):
            if batch is None and state is not RankState.ENDED:
                with ranks.fail_together():
                    state, batch = batches.take(seconds)
                seconds = POLL_SECONDS
            if state is RankState.READY and full():
                state = RankState.FULL
            stopped = batches.stopped.is_set()
            states = ranks.gather_states(RankState.STOPPED if stopped else state)
        having = states.count(RankState.READY) + states.count(RankState.FULL)
        if RankState.STOPPED in states or not having:
            return
        mine, batch = batch, None
        # The learning rate of all follows it.
        remaining = ranks.largest(mine.remaining if mine else 0.0)
        if mine is None:
            yield padding._replace(remaining=remaining)
        else:
            yield mine._replace(weight=ranks.world / having, remaining=remaining)
