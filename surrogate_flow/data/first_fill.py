"""The first fill of the reservoir, from which fields are normalised."""

from __future__ import annotations

import contextlib
import time

import numpy as np
from jaxtyping import Float64

from surrogate_flow.data.ranks import Ranks, State
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.reservoir import Moments, Store

__all__ = ["FirstFill", "require_reachable"]

_POLL = 0.05  # seconds between two looks at a reservoir that fills


class FirstFill:
    """population >= max(threshold, capacity / 2), or all that there will be.

    A threshold alone, one batch for FIFO, would give the moments of a few first steps.

    Parameters
    ----------
    store : Store
    deterministic : bool
        Whether the fill shall be the same in each run: that of the threshold.
    """

    def __init__(self, store: Store, *, deterministic: bool) -> None:
        self._store = store
        self._deterministic = deterministic

    def wait(self, seconds: float) -> State:
        """Block, for `seconds` at most; return whether it is there."""
        store, ready = self._store, False
        with contextlib.suppress(TimeoutError):
            ready = store.wait_threshold(seconds) or store.draining
        if self._deterministic or not ready:
            # Nothing comes in before the first draw, so this is the same each time.
            return State.READY if ready else State.WAITING
        if store.held_up:
            return State.FULL
        fill = max(store.threshold, store.capacity // 2)
        if store.stats().population >= fill or store.draining:
            return State.READY
        time.sleep(_POLL)
        return State.WAITING

    def moments(
        self, ranks: Ranks
    ) -> tuple[Float64[np.ndarray, " channel"], Float64[np.ndarray, " channel"]]:
        """Return mean and std of each variable over the samples of all ranks.

        Raises
        ------
        EnsembleError
            If no rank has a sample.
        """
        store = self._store
        count = store.stats().population
        shares = ranks.gather((count, store.moments() if count else None))
        moments = Moments(len(store.spec.variables))
        for share, of_rank in shares:
            if of_rank is not None:
                moments.join(share, *of_rank)
        if not moments.count:
            raise EnsembleError(
                "The study ended before a single sample arrived. Look into "
                "failures.csv in the run's folder."
            )
        return moments.mean, moments.std


def require_reachable(store: Store, simulations: int | None) -> None:
    """Refuse a threshold that so many simulations can never fill.

    Raises
    ------
    ValueError
    """
    each = store.window.samples(store.spec.steps)
    if simulations is not None and simulations * each < store.threshold:
        raise ValueError(
            f"The threshold can never be reached: expected at most "
            f"{simulations * each} samples ({simulations} simulations of {each}), got "
            f"a threshold of {store.threshold}. Lower it, or run more simulations."
        )
