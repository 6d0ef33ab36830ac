"""How much may go wrong before a study ends with an error."""

from __future__ import annotations

from dataclasses import dataclass

from surrogate_flow.fields.errors import ArgumentError

__all__ = ["Faults"]


@dataclass(frozen=True)
class Faults:
    """How much may go wrong.

    Attributes
    ----------
    retries : int
        Further attempts for a simulation that failed, unless it broke its own spec.
    max_failures : int
        Simulations that may fail permanently before the study ends with an error.
    start_timeout : float
        Seconds to wait for the first worker.
    step_timeout : float, optional
        Seconds, at least one, that a simulation may take for a step, its start and its
        end included, before it counts as hanging: its worker's process is restarted,
        and the attempt has failed. Set several times the longest step of the solver;
        ``None`` is never.
    patience : float
        Seconds that the trainer waits for a step before the study ends with an error
        that names the silent simulations. Longer than the longest step of the solver,
        and than `step_timeout`.
    """

    retries: int = 2
    max_failures: int = 10
    start_timeout: float = 300.0
    step_timeout: float | None = None
    patience: float = 3600.0

    @property
    def worker_ttl(self) -> float | None:
        """Seconds without a heartbeat after which a worker counts as stopped.

        Later than the watchdog acts, whose error says where the solver was.
        """
        return None if self.step_timeout is None else 2 * self.step_timeout + 60

    def __post_init__(self) -> None:
        if self.retries < 0 or self.max_failures < 0:
            got = f"{self.retries} and {self.max_failures}"
            raise ArgumentError("faults", "retries >= 0 and max_failures >= 0", got)
        if self.start_timeout <= 0 or self.patience <= 0:
            got = f"{self.start_timeout} and {self.patience}"
            raise ArgumentError("faults", "start_timeout > 0 s and patience > 0 s", got)
        if self.step_timeout is not None and not 1 <= self.step_timeout < self.patience:
            raise ArgumentError(
                "faults",
                f"1 s <= step_timeout < patience ({self.patience:g} s)",
                f"{self.step_timeout:g} s",
                "null switches it off.",
            )
