"""Batches out of the reservoir, drawn ahead by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator

import torch

from surrogate_flow.data.ranks import Ranks, State, must_wait
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import PendingBatches, Store
from surrogate_flow.reservoir.counters import Clock
from surrogate_flow.reservoir.devices import side_of
from surrogate_flow.surrogate.batch import Batch

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
    flight : PendingBatches
        Where batches are noted until they have been trained; those that a checkpoint
        found there come first.
    trained : callable, optional
        Number of batches trained so far, of those that this loader gave, weightless
        ones too; by default all that it gave.
    ranks : Ranks, optional
        All end after the same batch. Those whose data have ended before, or are late
        while another rank is full, get batches of weight zero.
    stopped : callable, optional
        Whether this rank was told to stop, and all with it.
    patient : bool
        Whether a rank without data is waited for even when this one is full.
    device : torch.device, optional
        To which batches are copied, beside the training step; the CPU by default.
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
        flight: PendingBatches,
        trained: Callable[[], int] | None = None,
        ranks: Ranks | None = None,
        stopped: Callable[[], bool] = bool,
        patient: bool = False,
        device: torch.device | None = None,
        check: Callable[[], None],
        ahead: int = 2,
    ) -> None:
        self._store = store
        self._window = window
        self._flight = flight
        self._given = 0
        # Which of those were weightless and are not trained yet, and how many were.
        self._weightless: deque[int] = deque()
        self._weightless_before = 0
        self._weightless_lock = threading.Lock()
        self._processed = trained or (lambda: self._given)
        self._ranks = ranks or Ranks()
        self._stopped = stopped
        self._patient = patient
        self._side = side_of(device or torch.device("cpu"))
        self._check = check
        self._ahead = ahead
        self._waited = Clock()

    @property
    def waited(self) -> float:
        """Seconds that the trainer has waited for batches, up to now."""
        return self._waited.total

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._ahead)
        left = threading.Event()
        thread = threading.Thread(
            target=self._draw_ahead, args=(ready, left), name="prefetch", daemon=True
        )
        thread.start()
        state, item = State.READY, None
        try:
            while True:
                if state is not State.ENDED:
                    # One that had nothing when others went on does not hold them up.
                    patience = 0.0 if state is State.WAITING else _SLICE
                    state, item = self._look(ready, patience)
                states = self._meet(state)
                while must_wait(states):
                    if state is State.WAITING:
                        state, item = self._look(ready, _SLICE)
                    elif state is State.READY:
                        state = self._having()
                    states = self._meet(state)
                if isinstance(item, BaseException):
                    raise item
                having = states.count(State.READY) + states.count(State.FULL)
                if State.STOPPED in states or not having:
                    return
                if item is None:
                    self._weightless.append(self._given)
                self._given += 1
                # Gradients are averaged over all ranks, those without data too.
                weight = self._ranks.world / having
                if item is not None:
                    self._side.hand_over(*item.tensors)
                yield (
                    Batch.padding(self._store.spec, self._window)
                    if item is None
                    else item._replace(weight=weight)
                )
        finally:
            left.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(0.01)
            left_out = self._weightless_before + len(self._weightless)
            self._flight.give_back(self._given - left_out)

    def trained(self) -> int:
        """Return how many batches of the reservoir are in the weights."""
        with self._weightless_lock:
            processed = self._processed()
            while self._weightless and self._weightless[0] < processed:
                self._weightless.popleft()
                self._weightless_before += 1
            return processed - self._weightless_before

    def _meet(self, state: State) -> list[State]:
        """Tell the other ranks, and first of all whether this one was told to stop."""
        told = self._stopped() and state is not State.FAILED
        return self._ranks.gather_states(State.STOPPED if told else state)

    def _look(
        self, ready: queue.Queue[Batch | BaseException | None], patience: float
    ) -> tuple[State, Batch | BaseException | None]:
        """Wait for so many seconds at most, and say what this rank has."""
        self._waited.start()
        try:
            item = ready.get(timeout=patience)
        except queue.Empty:
            return State.WAITING, None
        self._waited.stop()
        if self._stopped():
            return State.STOPPED, None
        if isinstance(item, BaseException):
            return State.FAILED, item
        return (State.ENDED if item is None else self._having()), item

    def _having(self) -> State:
        full = not self._patient and self._store.held_up
        return State.FULL if full else State.READY

    def _draw_ahead(
        self,
        ready: queue.Queue[Batch | BaseException | None],
        left: threading.Event,
    ) -> None:
        try:
            while not left.is_set():
                batch = self._draw(left)
                if batch is not None:
                    batch = batch.sent(self._side)
                while not left.is_set():
                    try:
                        ready.put(batch, timeout=_SLICE)
                        break
                    except queue.Full:
                        # Whoever failed while it trained may never come for the rest.
                        if self._stopped():
                            return
                if batch is None:
                    return
        except BaseException as error:
            # Raised again by the thread that iterates.
            ready.put(error)

    def _draw(self, left: threading.Event) -> Batch | None:
        while not left.is_set():
            self._check()
            self._flight.settle(self.trained())
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
