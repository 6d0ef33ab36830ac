"""outcome.json: the errors of a run at its end, and what it took."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as L

from surrogate_flow.data.module import RunCallback, SurrogateData, data_of
from surrogate_flow.files import leave, observing
from surrogate_flow.report.folder.run_folder import OUTCOME, RunSummary
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["WriteSummary"]

# Seconds that single predictions are measured in, and about those of many at once.
_PATIENCE, _MANY = 1.0, 0.3
_BATCH, _ROOM = 256, 2**28  # samples of these, and bytes of their fields, at most


class WriteSummary(RunCallback):
    """Writes outcome.json into the folder of a run at the end of a fit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / OUTCOME
        self._samples = 0
        self._first = self._last = math.nan

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
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
        cost, taken = data.cost(), _Evaluation()
        with observing(f"surrogate_seconds of {self.path}"):
            taken = _evaluation(pl_module, data)
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
            surrogate_seconds=taken.seconds,
            batch_seconds=taken.of_many,
            batch=taken.batch,
            history=taken.history,
            quickest_seconds=cost.quickest,
            ended_early=stopped and trainer.global_step != trainer.max_steps,
        )
        text = json.dumps(asdict(summary), indent=1)
        leave(self.path, lambda part: part.write_text(text, "utf-8"))


class _Evaluation(NamedTuple):
    """Seconds of a simulation that is predicted: by itself, and in a batch."""

    seconds: float | None = None
    of_many: float | None = None
    batch: int = 1
    history: float = 0.0  # share of its steps that the solver makes


def _evaluation(surrogate: L.LightningModule, data: SurrogateData) -> _Evaluation:
    """Measure predictions of whole simulations."""
    held_out = data.validation
    if not (isinstance(surrogate, Surrogate) and held_out and held_out.finished):
        return _Evaluation()
    spec, inputs, row = held_out.spec, surrogate.window.inputs, held_out.finished[0]
    point = held_out.parameters[row]
    history = held_out.simulation(row, slice(inputs)) if inputs else None
    given, times = held_out.given(row), spec.times[inputs:]

    def predict(batch: int | None, most: int, patience: float) -> float:
        # One at a time, or a table of the same simulation, which takes as long.
        columns = np.repeat(point[:, None], batch or 1, axis=1).tolist()
        table = {
            p.name: column if batch else column[0]
            for p, column in zip(spec.parameters, columns, strict=True)
        }
        taken = list[float]()
        # The first may build what the others find.
        while len(taken) < most and sum(taken) < patience:
            begin = time.perf_counter()
            surrogate.predict(table, times, history, inputs=given)
            taken.append(time.perf_counter() - begin)
        return min(taken) / (batch or 1)

    share = inputs / spec.steps
    one = predict(None, 3, _PATIENCE)
    room = _ROOM // (4 * len(times) * math.prod(spec.step_shape))
    batch = min(_BATCH, room, int(_MANY / one)) if spec.parameters else 1
    if batch < 2:
        return _Evaluation(one, history=share)
    return _Evaluation(one, predict(batch, 2, _MANY), batch, share)
