"""Batches of a data set, made ahead by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from surrogate_flow.data.ranks import Ranks, State
from surrogate_flow.data.shuffle import Shuffled
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.devices import side_of
from surrogate_flow.surrogate.batch import Batch

__all__ = ["StoredLoader"]

_SLICE = 0.5  # seconds of a wait between two looks at whether to stop


class StoredLoader:
    """Iterable of batches, each sample once; each time it is iterated is an epoch.

    Parameters
    ----------
    samples : Shuffled
        This rank's share.
    spec : FieldSpec
    window : Window
    batch_size : int
    windows : sequence of int
        Number of samples of each rank. All ranks take as many batches as the one that
        has most; the others end with batches of weight zero.
    ranks : Ranks
    stopped : callable
        Whether this rank was told to stop, and all with it.
    on_stop : callable
        Called when they do.
    device : torch.device, optional
        To which batches are copied, beside the training step; the CPU by default.
    ahead : int
        Batches made ahead.
    """

    def __init__(
        self,
        samples: Shuffled,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        *,
        windows: Sequence[int],
        ranks: Ranks,
        stopped: Callable[[], bool] = bool,
        on_stop: Callable[[], object] = bool,
        device: torch.device | None = None,
        ahead: int = 2,
    ) -> None:
        self._samples = samples
        self._spec = spec
        self._window = window
        self._batch_size = batch_size
        self._windows = windows[ranks.rank]
        self._batches = [-(-count // batch_size) for count in windows]
        self._ranks = ranks
        self._stopped = stopped
        self._on_stop = on_stop
        self._side = side_of(device or torch.device("cpu"))
        self._ahead = ahead
        self._resumed: tuple[int, int] | None = None
        #: Number of the epoch, and of its batches that were given.
        self.epoch, self.given = -1, 0

    def __len__(self) -> int:
        return max(self._batches)

    @property
    def different(self) -> int:
        """Number of samples of this rank that were given, once or more often."""
        first = min(self._windows, self.given * self._batch_size)
        return self._windows if self.epoch > 0 else first

    def state_dict(self) -> dict[str, Any]:
        """Return where it is, for Lightning's checkpoints."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._resumed = int(state_dict["epoch"]), int(state_dict["given"])

    def __iter__(self) -> Iterator[Batch]:
        self._begin()
        ready: queue.Queue[Batch | BaseException] = queue.Queue(self._ahead)
        left = threading.Event()
        thread = threading.Thread(
            target=self._make_ahead,
            args=(ready, left, self.epoch, self.given),
            name="prefetch",
            daemon=True,
        )
        thread.start()
        mine = self._batches[self._ranks.rank]
        try:
            for number in range(self.given, len(self)):
                item = self._look(ready) if number < mine else None
                if not self._together(item):
                    self._on_stop()
                    return
                self.given = number + 1
                if not isinstance(item, Batch):
                    yield Batch.padding(self._spec, self._window)
                    continue
                having = sum(number < count for count in self._batches)
                self._side.hand_over(*item.tensors)
                # Gradients are averaged over all ranks, those without data too.
                yield item._replace(weight=self._ranks.world / having)
        finally:
            left.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(0.01)

    def _begin(self) -> None:
        if self._resumed is None:
            self.epoch, self.given = self.epoch + 1, 0
            return
        self.epoch, self.given = self._resumed
        self._resumed = None
        if self.given >= len(self):
            self.epoch, self.given = self.epoch + 1, 0

    def _together(self, item: Batch | BaseException | None) -> bool:
        """Return whether all ranks go on; raise what went wrong on this one."""
        failed = isinstance(item, BaseException)
        state = State.STOPPED if self._stopped() else State.READY
        states = self._ranks.gather_states(State.FAILED if failed else state)
        if isinstance(item, BaseException):
            raise item
        return State.STOPPED not in states

    def _look(
        self, ready: queue.Queue[Batch | BaseException]
    ) -> Batch | BaseException | None:
        while not self._stopped():
            try:
                return ready.get(timeout=_SLICE)
            except queue.Empty:
                continue
        return None

    def _make_ahead(
        self,
        ready: queue.Queue[Batch | BaseException],
        left: threading.Event,
        epoch: int,
        skip: int,
    ) -> None:
        try:
            for draw in self._samples.draws(epoch, self._batch_size, skip):
                batch = Batch.from_draw(draw, self._window).sent(self._side)
                if not _put(ready, batch, left):
                    return
        except BaseException as error:
            # Raised again by the thread that iterates.
            _put(ready, error, left)


def _put(
    ready: queue.Queue[Batch | BaseException],
    item: Batch | BaseException,
    left: threading.Event,
) -> bool:
    while not left.is_set():
        try:
            ready.put(item, timeout=_SLICE)
            return True
        except queue.Full:
            continue
    return False
