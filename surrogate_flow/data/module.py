"""What the command line, the surrogate and the report ask of a data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as L
from jaxtyping import Float

from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.status import Status
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Direct, Window
from surrogate_flow.sampling import Observations

__all__ = ["Cost", "SurrogateData", "ranks_and_window"]


@dataclass(frozen=True)
class Cost:
    """What it took to make the data of one process.

    Attributes
    ----------
    simulations : int
        That are whole, the held-out ones included.
    samples : int
        Different ones drawn to train on, once or more often.
    solver_seconds : float
        Of all simulations, together; without waiting for room.
    """

    simulations: int
    samples: int
    solver_seconds: float


class SurrogateData(L.LightningDataModule, ABC):
    """Batches to train on, and simulations kept apart.

    Attributes
    ----------
    spec : FieldSpec
        Of the fields; known before `setup`.
    workflow : str
        Names the folder of its runs.
    ranks : Ranks
        That train together; after `setup`.
    held_out : ValidationSet or None
        This rank's share of the held-out simulations; after `setup`.
    validated : int
        Number of held-out simulations, of all ranks, that errors are taken over.
    repeats : bool
        Whether each epoch brings the same samples again.
    tests_apart : bool
        Whether ``test`` has simulations of its own, which chose no checkpoint.
    observes : bool
        Whether `observe` is called, after each training step.
    """

    spec: FieldSpec
    workflow: str
    ranks: Ranks
    held_out: ValidationSet | None
    validated: int
    repeats: bool = False
    tests_apart: bool = True
    observes: bool = False

    @abstractmethod
    def moments(
        self,
    ) -> tuple[Float[np.ndarray, " channel"], Float[np.ndarray, " channel"]]:
        """Return mean and std of each variable, over what is trained on first."""

    @abstractmethod
    def status(self) -> Status | None:
        """Return its state, or None before it has begun."""

    @abstractmethod
    def effort(self) -> Cost:
        """Return what it took to make the data, up to now."""

    def observe(self, seen: Observations) -> None:
        """Take the loss of each sample of a training step; ignored by default."""

    @abstractmethod
    def stop(self) -> None:
        """Deliver no further batch; what waits wakes up."""


def ranks_and_window(trainer: L.Trainer | None) -> tuple[Ranks, Window]:
    """Return the processes of a trainer, and the window of what it trains."""
    if trainer is None:
        return Ranks(), Direct()
    window = getattr(trainer.lightning_module, "window", None)
    return Ranks(trainer.global_rank, trainer.world_size), window or Direct()
