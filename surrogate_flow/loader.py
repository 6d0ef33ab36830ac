"""Batches out of the reservoir, drawn ahead by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import torch

from surrogate_flow.batch import Batch
from surrogate_flow.reservoir import Flight, Store
from surrogate_flow.windows import Window

__all__ = ["OnlineLoader"]

_SLICE = 0.5  # seconds of a wait between two looks at the study


class OnlineLoader:
    """Iterable of batches, of unknown length; ends when the reservoir has drained.

    A DataLoader's worker processes could not see the reservoir; one thread that draws
    ahead copies rows while the training step runs.

    Parameters
    ----------
    store : Store
    window : Window
    flight : Flight
        Where batches are noted until they have been trained; those that a checkpoint
        found there come first.
    trained : callable, optional
        Number of batches trained so far, of those that this loader gave; by default all
        that it gave.
    check : callable
        Raises what stopped the study, if anything did, so that no wait is for ever.
    ahead : int
        Batches drawn ahead.
    """

    def __init__(
        self,
        store: Store,
        window: Window,
        *,
        flight: Flight,
        trained: Callable[[], int] | None = None,
        check: Callable[[], None],
        ahead: int = 2,
    ) -> None:
        self._store = store
        self._window = window
        self._flight = flight
        self._given = 0
        self._trained = trained or (lambda: self._given)
        self._check = check
        self._ahead = ahead

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._ahead)
        left = threading.Event()
        thread = threading.Thread(
            target=self._draw_ahead, args=(ready, left), name="prefetch", daemon=True
        )
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                self._given += 1
                yield item
        finally:
            left.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(0.01)

    def _draw_ahead(
        self,
        ready: queue.Queue[Batch | BaseException | None],
        left: threading.Event,
    ) -> None:
        pin = torch.cuda.is_available()
        try:
            while not left.is_set():
                batch = self._draw(left)
                if batch is not None and pin:
                    batch = Batch(*(tensor.pin_memory() for tensor in batch))
                ready.put(batch)
                if batch is None:
                    return
        except BaseException as error:
            # Raised again by the thread that iterates.
            ready.put(error)

    def _draw(self, left: threading.Event) -> Batch | None:
        while not left.is_set():
            self._check()
            self._flight.settle(self._trained())
            if (draw := self._flight.repeat()) is not None:
                return Batch.from_draw(draw, self._window)
            try:
                draw = self._store.draw(_SLICE, self._flight)
            except TimeoutError:
                continue
            if draw is None:
                self._check()
                return None
            return Batch.from_draw(draw, self._window)
        return None
