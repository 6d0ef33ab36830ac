"""How much may go wrong before a study ends with an error."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Faults"]


@dataclass(frozen=True)
class Faults:
    """How much may go wrong.

    Attributes
    ----------
    retries : int
        Further attempts for a simulation that failed, unless it broke its own spec.
    max_failures : int
        Simulations that may be set aside for good before the study ends with an error.
    start_timeout : float
        Seconds to wait for the first worker.
    patience : float
        Seconds that the trainer waits for a step before the study ends with an error
        that names the silent simulations. Longer than the longest step of the solver.
    """

    retries: int = 2
    max_failures: int = 10
    start_timeout: float = 300.0
    patience: float = 3600.0

    def __post_init__(self) -> None:
        if self.retries < 0 or self.max_failures < 0:
            raise ValueError(
                "Faults: expected retries >= 0 and max_failures >= 0, got "
                f"{self.retries} and {self.max_failures}."
            )
        if self.start_timeout <= 0 or self.patience <= 0:
            raise ValueError(
                "Faults: expected start_timeout > 0 s and patience > 0 s, got "
                f"{self.start_timeout} and {self.patience}."
            )
