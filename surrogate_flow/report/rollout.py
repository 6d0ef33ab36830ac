"""What a run leaves of its rollouts: a table, a picture and a history to go on from."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from surrogate_flow.data.module import data_of
from surrogate_flow.report.error_curve import ErrorCurve
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["HISTORY", "RolloutReport"]

HISTORY = "history.nc"
_FILES = ("rollout.csv", "rollout.png", HISTORY)

logger = logging.getLogger(__name__)


class RolloutReport(Callback):
    """rollout.csv and rollout.png: the error at each step, over all held-out.

    Written at the end of ``fit`` and of ``test``, from the simulations of all ranks.
    For autoregressive windows a fit also leaves history.nc, the first steps of a
    held-out simulation, from which ``predict`` can go on.

    Parameters
    ----------
    folder : Path
        Of the run.
    console : rich.console.Console, optional
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or Console()
        self._line = ""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all of them."""
        self._write(trainer, pl_module, history=True)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write table and picture."""
        self._write(trainer, pl_module, history=False)

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Print the errors, after the progress line has ended."""
        if self._line:
            self.console.print(
                self._line, soft_wrap=True, markup=False, highlight=False
            )
        self._line = ""

    def _write(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, history: bool
    ) -> None:
        data = data_of(trainer)
        if data is None or not isinstance(pl_module, Surrogate):
            return
        held_out = data.held_out
        if held_out is None:
            return
        mine = ErrorCurve.of(pl_module, held_out)
        shares = data.ranks.gather(
            [mine.squared_errors.tolist(), mine.squares.tolist()]
        )
        curve = dataclasses.replace(
            mine,
            squared_errors=np.array([s for share in shares for s in share[0]]),
            squares=np.array([s for share in shares for s in share[1]]),
        )
        if not (trainer.is_global_zero and len(curve.squares)):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            curve.write(self.folder / _FILES[0])
            curve.draw().savefig(self.folder / _FILES[1])
            if history and pl_module.window.inputs and held_out.finished:
                seen = slice(pl_module.window.inputs)
                first = held_out.simulation(held_out.finished[0], seen)
                first.to_netcdf(self.folder / HISTORY)
        except OSError as error:
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
            logger.error("No rollouts were written to %s (%s).", self.folder, error)
        if pl_module.window.inputs:
            relative = np.nanmean(curve.relative_l2, axis=1)
            self._line = (
                f"Rollout error over {len(relative)} steps: {np.nanmean(relative):.2%} "
                "relative (L2, to the size of whole rollouts), "
                f"{relative[-1]:.2%} at the last step "
                f"(mean over {len(curve.squares)} simulations)"
            )
