"""Batches as the trainer gets them, and those whose gradients are not applied yet."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Draw", "PendingBatches"]


class Draw(NamedTuple):
    """A batch of samples, copied out: nothing else uses its memory while it is held.

    `step` is the number of the first step of each sample. `inputs` are the input fields
    of its simulation, if the spec has any. `remaining` is how many batches are still to
    come, as far as is known when it is drawn; infinite if it is not.
    """

    fields: (
        Float[np.ndarray, "batch span channel *space"]
        | Float[Tensor, "batch span channel *space"]
    )
    simulation: Int[np.ndarray, " batch"]
    step: Int[np.ndarray, " batch"]
    parameters: Float[np.ndarray, "batch parameter"]
    inputs: Float[np.ndarray, "batch input *space"] | None = None
    remaining: float = math.inf


class PendingBatches:
    """Batches drawn from the store whose gradients are not applied yet, oldest first.

    Batches are drawn ahead of the training, so those that a checkpoint finds between
    the two are neither in the store nor in the weights. They are kept here, and a run
    that goes on from the checkpoint begins with them, which it gets as `again`.

    Thread-safe. Batches are numbered from 0 on, in the order in which they were begun
    or taken again.

    Examples
    --------
    >>> nothing = np.zeros(0)
    >>> pending = PendingBatches()
    >>> number = pending.begin()
    >>> pending.copying, len(pending.draws)
    (1, 0)
    >>> pending.complete(number, Draw(nothing, nothing, nothing, nothing))
    >>> pending.copying, len(pending.draws)
    (0, 1)
    >>> pending.acknowledge(1)
    >>> len(pending.draws)
    0
    """

    def __init__(self, again: Iterable[Draw] = ()) -> None:
        self._again = deque(again)
        self._draws: deque[Draw | None] = deque()
        self._first = 0
        self._lock = threading.Lock()

    @property
    def copying(self) -> int:
        """Number of batches that are being copied out of the store."""
        with self._lock:
            return self._draws.count(None)

    @property
    def draws(self) -> list[Draw]:
        """All batches that are not trained, but for those still being copied out."""
        with self._lock:
            return [draw for draw in self._draws if draw is not None] + [*self._again]

    def begin(self) -> int:
        """Note that a batch is being drawn; return its number."""
        with self._lock:
            self._draws.append(None)
            return self._first + len(self._draws) - 1

    def complete(self, number: int, draw: Draw) -> None:
        """Note what was drawn under a number."""
        with self._lock:
            self._draws[number - self._first] = draw

    def acknowledge(self, trained: int) -> None:
        """Drop the first `trained` batches, counted from number 0: they are trained."""
        with self._lock:
            while self._draws and self._first < trained:
                self._draws.popleft()
                self._first += 1

    def requeue(self, given: int) -> None:
        """Have all but the first `given` batches taken again, as undelivered."""
        with self._lock:
            while self._draws and self._first + len(self._draws) > given:
                if (draw := self._draws.pop()) is not None:
                    self._again.appendleft(draw)

    def take_again(self) -> Draw | None:
        """Return the next batch to be trained before anything is drawn, if any is."""
        with self._lock:
            draw = self._again.popleft() if self._again else None
            if draw is not None:
                self._draws.append(draw)
            return draw
