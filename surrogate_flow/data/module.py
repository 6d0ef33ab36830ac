"""Lightning data modules of simulations: what the other packages use of them."""

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

__all__ = ["Cost", "SurrogateData", "data_of", "ranks_and_window"]


@dataclass(frozen=True)
class Cost:
    """What the simulations of one process have cost.

    Attributes
    ----------
    simulations : int
        Number of complete ones, the held-out ones included.
    samples : int
        Number of different samples drawn to train on, once or more often.
    solver_seconds : float
        Of all simulations together, without waiting for the trainer.
    """

    simulations: int
    samples: int
    solver_seconds: float


class SurrogateData(L.LightningDataModule, ABC):
    """Batches to train on, and simulations for validation and test.

    Attributes
    ----------
    spec : FieldSpec
        Of the fields; known before `setup`.
    workflow : str
        Name of the folder of its runs.
    ranks : Ranks
        The processes of the run; after `setup`.
    held_out : ValidationSet or None
        This rank's share of the held-out simulations; after `setup`.
    validated : int
        Number of held-out simulations, of all ranks, that errors are averaged over.
    repeats : bool
        Whether each epoch has the same samples again.
    tests_apart : bool
        Whether ``test`` has other simulations than those that chose ``best.ckpt``.
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
        """Return mean and std of each variable, over the first samples to train on."""

    @abstractmethod
    def status(self) -> Status | None:
        """Return its state, or None before it has begun."""

    @abstractmethod
    def effort(self) -> Cost:
        """Return what the data have cost up to now."""

    def observe(self, seen: Observations) -> None:
        """Take the loss of each sample of a training step; ignored by default."""

    @abstractmethod
    def stop(self) -> None:
        """Deliver no further batch, and end what waits for one."""


def data_of(trainer: L.Trainer) -> SurrogateData | None:
    """Return the data module of a trainer, if it has one of ours."""
    # Lightning sets the attribute where there is a data module, and only there.
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, SurrogateData) else None


def ranks_and_window(trainer: L.Trainer | None) -> tuple[Ranks, Window]:
    """Return the processes of a trainer, and the window of what it trains."""
    if trainer is None:
        return Ranks(), Direct()
    window = getattr(trainer.lightning_module, "window", None)
    return Ranks(trainer.global_rank, trainer.world_size), window or Direct()
