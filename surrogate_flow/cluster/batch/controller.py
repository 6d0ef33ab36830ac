"""How many jobs the training needs."""

from __future__ import annotations

from dataclasses import dataclass

from surrogate_flow.fields.errors import ArgumentError

__all__ = ["Bounds", "JobCountController", "Load"]

_STARVED = 0.05  # share of the time that the trainer waits, above which jobs are added
_FED = 0.02  # share below which it has enough data
_FULL = 0.5  # share of the time that simulations wait, above which jobs are removed
_STEP = 0.125  # share of the jobs that are removed at a time, at least one job
_DOUBLE = 0.5  # share of waiting at which the number of jobs doubles


@dataclass(frozen=True)
class Bounds:
    """minimum <= number of jobs <= maximum; fixed where both are equal.

    Raises
    ------
    ArgumentError
        If no number of at least one is within.
    """

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ArgumentError(
                "data.cluster",
                "1 <= minimum_jobs <= maximum_jobs",
                f"{self.minimum} and {self.maximum}",
            )

    def at_least(self, jobs: int) -> Bounds:
        """Return bounds with a minimum of so many jobs."""
        return Bounds(max(self.minimum, jobs), max(self.maximum, jobs))


@dataclass(frozen=True)
class Load:
    """How busy a study is; times are in seconds since it began.

    Attributes
    ----------
    trainer_waited : float
        The trainer waited for samples.
    simulations_waited : float
        The reservoir had no room for steps.
    stale : bool
        Whether nearly all samples in the reservoir have been trained on.
    simulations_left : int, optional
        Simulations that have not ended, once all have been submitted.
    longest : float
        Seconds that a simulation takes, at most.
    """

    trainer_waited: float = 0.0
    simulations_waited: float = 0.0
    stale: bool = False
    simulations_left: int | None = None
    longest: float = 0.0


class JobCountController:
    """n <- n / (1 - w) while the trainer waits a share w of its time, at most 2 n.

    This feeds the trainer, if each job brings the same. While simulations wait for the
    trainer, n <- 7/8 n, or n - 1. Otherwise n stays. It also stays for `settle` seconds
    after a change, and does not grow while jobs are missing. If the trainer waits after
    a step down, the next step down is tried after 8 of these spans, then after 16, and
    so on: n settles near the smallest number that feeds the trainer.

    Parameters
    ----------
    bounds : Bounds
    per_job : int
        Simulations that a job runs at once.
    settle : float
        Seconds over which waits are measured, several simulations long.

    Examples
    --------
    >>> controller = JobCountController(Bounds(1, 8), settle=10.0)
    >>> controller.update(0.0, Load(), at_work=1)
    1
    >>> controller.update(10.0, Load(trainer_waited=9.0), at_work=1)
    2
    """

    def __init__(self, bounds: Bounds, per_job: int = 1, settle: float = 60.0) -> None:
        self.bounds = bounds
        self.per_job = per_job
        self.settle = settle
        self.wanted = bounds.minimum
        # Time and load at the beginning of the present span.
        self._mark: tuple[float, Load] | None = None
        self._jobs_missing = False
        self._grown = False
        self._shrunk = False
        # A number of jobs that was too small, when it may be tried again, and how many
        # spans lie between two tries.
        self._floor, self._floor_until, self._spans = 0, 0.0, 8

    def update(self, now: float, load: Load, at_work: int) -> int:
        """Return how many jobs are wanted.

        Parameters
        ----------
        now : float
            Seconds of a monotonic clock.
        load : Load
        at_work : int
            Jobs that have workers.
        """
        missing = at_work < self._useful(load)
        if self._mark is None or load.trainer_waited < self._mark[1].trainer_waited:
            # The first span, or the counters began anew.
            self._mark, self._jobs_missing = (now, load), missing
            return self._useful(load)
        if self._grown and not missing:
            # All new jobs have workers: measure what they bring from now on.
            self._mark, self._jobs_missing, self._grown = (now, load), False, False
        self._jobs_missing = self._jobs_missing or missing
        since, before = self._mark
        span = now - since
        if span < self.settle:
            return self._useful(load)
        starved = (load.trainer_waited - before.trainer_waited) / span
        full = (load.simulations_waited - before.simulations_waited) / span
        if full < _FULL and (starved > _STARVED or load.stale):
            # Jobs that wait in the queue must not cause others.
            if not self._jobs_missing:
                self._grow(now, starved)
        elif full > _FULL and starved < _FED and not load.stale:
            self._shrink(now, at_work)
        self._mark, self._jobs_missing = (now, load), at_work < self._useful(load)
        return self._useful(load)

    def _grow(self, now: float, starved: float) -> None:
        if self._shrunk:
            self._floor = self.wanted
            self._floor_until = now + self._spans * self.settle
            self._spans *= 2
            self._shrunk = False
        share = min(starved, _DOUBLE)
        step = max(1, round(self.wanted * share / (1 - share)))
        self.wanted = min(self.wanted + step, self.bounds.maximum)
        self._grown = True

    def _shrink(self, now: float, at_work: int) -> None:
        # Jobs without workers are the first to be removed.
        present = min(self.wanted, max(at_work, self.bounds.minimum))
        removed = max(1, int(_STEP * present)) if present == self.wanted else 0
        fewer = present - removed
        if fewer <= self._floor and now < self._floor_until:
            return
        if self.bounds.minimum <= fewer < self.wanted:
            self.wanted = fewer
            self._shrunk = True

    def _useful(self, load: Load) -> int:
        if load.simulations_left is None:
            return self.wanted
        return min(self.wanted, -(-load.simulations_left // self.per_job))
