"""How many jobs the training needs."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Bounds", "Load", "Size", "Waits"]

_HUNGRY = 0.05  # share of the time that the trainer waits, from which it needs more
_FED = 0.02  # share below which it has enough
_FULL = 0.5  # share of the time that simulations wait, from which they are too many
_STEP = 0.125  # of the jobs, for one step down, and at least one
_DOUBLE = 0.5  # share that the trainer waits, from which twice as many are wanted


@dataclass(frozen=True)
class Bounds:
    """minimum <= number of jobs <= maximum; the size is fixed where both are equal.

    Raises
    ------
    ValueError
        If no such number is at least one.
    """

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ValueError(
                f"Expected 1 <= minimum_jobs <= maximum_jobs, got {self.minimum} and "
                f"{self.maximum}."
            )

    def at_least(self, jobs: int) -> Bounds:
        """Return the same, with no fewer jobs than that."""
        return Bounds(max(self.minimum, jobs), max(self.maximum, jobs))


@dataclass(frozen=True)
class Waits:
    """Who has waited for whom since the study began.

    Attributes
    ----------
    trainer : float
        Seconds that the trainer waited for samples.
    simulations : float
        Seconds in which the reservoir had no room for steps.
    stale : bool
        Whether nearly all samples held were trained on already.
    useful : int, optional
        Number of jobs that the last simulations need, when all have begun.
    """

    trainer: float
    simulations: float
    stale: bool = False
    useful: int | None = None


@dataclass(frozen=True)
class Load:
    """What the study says of its jobs' work.

    Attributes
    ----------
    waits : Waits
    longest : float
        Seconds that a simulation takes.
    """

    waits: Waits = field(default_factory=lambda: Waits(0.0, 0.0))
    longest: float = 0.0


class Size:
    """n <- n / (1 - w) while the trainer waits a share w of its time, at most 2 n.

    That is what would feed it, if each job brings the same. While simulations wait for
    the trainer, n <- 7/8 n, or n - 1. Between both nothing changes, nor for `settle`
    seconds after a change, and n does not grow while jobs are missing. If a step down
    let the trainer wait, so that jobs were asked for again, the next one comes after
    `memory` of these spans, then after twice as many, and so on: the number settles
    near the smallest that feeds the trainer.

    Parameters
    ----------
    bounds : Bounds
    settle : float
        Seconds over which waits are measured; several simulations should fit in.
    memory : int
        Spans before the next attempt at fewer jobs.

    Examples
    --------
    >>> size = Size(Bounds(1, 8), settle=10.0)
    >>> size.update(0.0, Waits(0.0, 0.0), at_work=1)
    1
    >>> size.update(10.0, Waits(trainer=9.0, simulations=0.0), at_work=1)
    2
    """

    def __init__(self, bounds: Bounds, settle: float = 60.0, memory: int = 8) -> None:
        self.bounds = bounds
        self.settle = settle
        self.wanted = bounds.minimum
        self._mark: tuple[float, Waits] | None = None
        # Whether jobs were missing since then.
        self._short = False
        self._grown = False
        # Number of jobs that was too small, and when it may be tried again.
        self._floor = 0
        self._floor_until = 0.0
        self._spans = memory
        self._shrunk = False

    def update(self, now: float, waits: Waits, at_work: int) -> int:
        """Return how many jobs are wanted.

        Parameters
        ----------
        now : float
            Seconds on a clock that only goes forward.
        waits : Waits
        at_work : int
            Jobs that have workers.
        """
        short = at_work < self._within(waits)
        if self._mark is None or waits.trainer < self._mark[1].trainer:
            # Another clock: what is waited for from now on is something else.
            self._mark, self._short = (now, waits), short
            return self._within(waits)
        if self._grown and not short:
            # All are there: what they bring shows from now on.
            self._mark, self._short, self._grown = (now, waits), False, False
        self._short = self._short or short
        since, before = self._mark
        span = now - since
        if span < self.settle:
            return self._within(waits)
        hungry = (waits.trainer - before.trainer) / span
        full = (waits.simulations - before.simulations) / span
        if full < _FULL and (hungry > _HUNGRY or waits.stale):
            if not self._short:
                # Jobs that still wait in the queue must not ask for others.
                self._grow(now, hungry)
        elif full > _FULL and hungry < _FED and not waits.stale:
            self._shrink(now, at_work)
        self._mark, self._short = (now, waits), at_work < self._within(waits)
        return self._within(waits)

    def _grow(self, now: float, hungry: float) -> None:
        if self._shrunk:
            self._floor = self.wanted
            self._floor_until = now + self._spans * self.settle
            self._spans *= 2
            self._shrunk = False
        share = min(hungry, _DOUBLE)
        step = max(1, round(self.wanted * share / (1 - share)))
        self.wanted = min(self.wanted + step, self.bounds.maximum)
        self._grown = True

    def _shrink(self, now: float, at_work: int) -> None:
        # Those that have not come yet are the first that nobody needs.
        here = min(self.wanted, max(at_work, self.bounds.minimum))
        fewer = here if here < self.wanted else here - max(1, int(_STEP * here))
        if fewer <= self._floor and now < self._floor_until:
            return
        if self.bounds.minimum <= fewer < self.wanted:
            self.wanted = fewer
            self._shrunk = True

    def _within(self, waits: Waits) -> int:
        if waits.useful is None:
            return self.wanted
        return min(self.wanted, waits.useful)
