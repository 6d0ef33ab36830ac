"""outcome.json: the errors of a run at its end, and what it took."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as L

from surrogate_flow.data.module import Cost, RunCallback, SurrogateData, data_of
from surrogate_flow.files import leave, observing
from surrogate_flow.report.folder.run_folder import OUTCOME, RunSummary
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["WriteSummary"]

_PATIENCE = 1.0  # seconds that predictions are measured in


class WriteSummary(RunCallback):
    """Writes outcome.json into the folder of a run at the end of a fit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / OUTCOME
        self._samples = 0
        self._first = self._last = math.nan

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        if math.isnan(self._first):
            self._first = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the samples of the batch."""
        self._samples += len(batch.step)
        self._last = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        data = data_of(trainer)
        if data is None or data.ended_untrained(self._samples > 0):
            return
        stopped = any(data.ranks.gather(data.stopped))
        if not trainer.is_global_zero:
            return
        cost, evaluation = data.cost(), None
        with observing(f"surrogate_seconds of {self.path}"):
            evaluation = _evaluation(pl_module, data, cost)
        seconds = self._last - self._first if self._samples else 0.0
        metrics = trainer.callback_metrics.items()
        summary = RunSummary(
            batches=trainer.global_step,
            samples=self._samples,
            # Samples drawn ahead have not been trained.
            unique_samples=min(cost.samples, self._samples),
            simulations=cost.simulations,
            solver_seconds=cost.solver_seconds,
            training_seconds=seconds,
            samples_per_second=self._samples / seconds if seconds else 0.0,
            errors={k: float(v) for k, v in metrics if k.startswith("val_")},
            validated=data.validated,
            set_aside=[*cost.set_aside],
            early_simulations=dict(cost.early),
            surrogate_seconds=evaluation,
            ended_early=stopped and trainer.global_step != trainer.max_steps,
        )
        text = json.dumps(asdict(summary), indent=1)
        leave(self.path, lambda part: part.write_text(text, "utf-8"))


def _evaluation(
    surrogate: L.LightningModule, data: SurrogateData, cost: Cost
) -> float | None:
    """Return the seconds of one simulation, predicted, with those of its history."""
    held_out = data.validation
    if not (isinstance(surrogate, Surrogate) and held_out and held_out.finished):
        return None
    spec, inputs, row = held_out.spec, surrogate.window.inputs, held_out.finished[0]
    names = (p.name for p in spec.parameters)
    parameters = dict(zip(names, held_out.parameters[row].tolist(), strict=True))
    history = held_out.simulation(row, slice(inputs)) if inputs else None
    given, taken = held_out.given(row), list[float]()
    # The first may build what the others find.
    while len(taken) < 3 and sum(taken) < _PATIENCE:
        begin = time.perf_counter()
        surrogate.predict(parameters, spec.times[inputs:], history, inputs=given)
        taken.append(time.perf_counter() - begin)
    share = cost.solver_seconds / max(cost.simulations, 1) * inputs / spec.steps
    return min(taken) + share
