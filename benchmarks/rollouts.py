"""What makes rollouts accurate: the field against its change, noise, push-forward.

    python benchmarks/rollouts.py [PROBLEM ...]

For each problem simulations are made once, and every variant trains the same number of
batches of them. The best weights by `val_rollout_relative_l2`, of 10 held-out
simulations, are measured on 20 others: the relative L2 error of single predictions, of
rollouts from the first steps to the end, and at the last step. The table has medians
over the seeds and, in brackets, least and greatest. A run that is in results.json is
not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from surrogate_flow import Autoregressive, Surrogate
from surrogate_flow.data.module import Cost, SurrogateData
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.nn import FNO, MessagePassingSolver, UNet
from surrogate_flow.reservoir import Draw, Moments
from surrogate_flow.sampling import Design, Uniform
from surrogate_flow.solvers import Combined1D, NavierStokes2D
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.metrics import field_metrics

SOLVERS = {"burgers": Combined1D(cells=40), "flow": NavierStokes2D(points=32)}
_MESSAGES = partial(MessagePassingSolver, width=64, periodic=True)
_BUNDLE, _STEP = Autoregressive(25, 25, stride=5), Autoregressive()
#: Solver, network, window and number of batches of each problem.
PROBLEMS: Mapping[str, tuple[str, Any, Autoregressive, int]] = {
    "burgers, message passing, 25": ("burgers", _MESSAGES, _BUNDLE, 500),
    "burgers, message passing, 1": ("burgers", _MESSAGES, _STEP, 500),
    "burgers, fno, 25": ("burgers", partial(FNO, modes=12, width=32), _BUNDLE, 1000),
    "burgers, fno, 1": ("burgers", partial(FNO, modes=12, width=32), _STEP, 1000),
    "flow, fno, 1": ("flow", partial(FNO, modes=8, width=16), _STEP, 500),
    "flow, unet, 1": (
        *("flow", partial(UNet, widths=[16, 32, 64], padding="circular"), _STEP, 500),
    ),
}
#: Predicts, noise and unroll of each variant.
VARIANTS: Mapping[str, tuple[str, float, int]] = {
    "field": ("field", 0.0, 0),
    "field, push-forward": ("field", 0.0, 1),
    "field, noise 0.01": ("field", 0.01, 0),
    "change": ("change", 0.0, 0),
    "change, push-forward": ("change", 0.0, 1),
    "change, noise 0.003": ("change", 0.003, 0),
    "change, noise 0.01": ("change", 0.01, 0),
    "change, noise 0.03": ("change", 0.03, 0),
}
FIGURES = ("single", "rollout", "at_end")
_SIZE = 16  # of a batch


class InMemory(SurrogateData):
    """Batches of simulations in memory, at random, without a cluster."""

    workflow = "rollouts"

    def __init__(
        self, training: ValidationSet, held_out: ValidationSet, batches: int, seed: int
    ) -> None:
        super().__init__()
        self.spec, self.window = training.spec, training.window
        self.training, self.validation = training, held_out
        self.validated, self.batches, self.seed = held_out.count, batches, seed

    def setup(self, stage: str) -> None:
        """Take the window of the surrogate."""
        self._begin()

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each variable."""
        moments = Moments(len(self.spec.variables))
        for fields in self.training.fields:
            moments.update(fields)
        return moments.mean, moments.std

    def changes(self) -> np.ndarray:
        """Return the root mean squares of the changes."""
        moments = Moments(self.window.outputs * len(self.spec.variables))
        for _ in range(100):
            fields = np.asarray(self._windows(_SIZE).fields)
            moments.update_changes(fields, self.window)
        return self._pooled_changes(moments)

    def _windows(self, count: int, seed: int = 0) -> Draw:
        chance, spec, window = np.random.default_rng(seed), self.spec, self.window
        row = chance.integers(self.training.count, size=count)
        first = window.stride * chance.integers(window.samples(spec.steps), size=count)
        fields = self.training.fields[
            row[:, None], first[:, None] + np.arange(window.span)
        ]
        return Draw(fields, row, first, self.training.parameters[row])

    def train_dataloader(self) -> Iterator[Batch]:
        """Return batches, the same for each variant with as long windows."""
        for batch in range(self.batches):
            seed = self.batches * self.seed + batch + 1
            yield Batch.from_draw(self._windows(_SIZE, seed), self.window)

    def val_dataloader(self) -> ValidationSet:
        """Return the held-out simulations."""
        assert self.validation is not None
        return self.validation

    def status(self) -> None:
        """There is nothing to tell."""

    def cost(self) -> Cost:
        """Return nothing: simulations were made before."""
        return Cost(0, 0, 0.0)


def simulated(
    name: str, window: Autoregressive, counts: Sequence[int], path: Path
) -> list[ValidationSet]:
    """Return simulations to train on, held-out and others; they are made once."""
    solver: Any = SOLVERS[name]
    spec, count = solver.spec, sum(counts)
    if not path.is_file():
        design = Design(spec.parameters, Uniform(), held_out=count, simulations=0)
        points = [dict(simulation.parameters) for simulation in design]
        fields = [np.concatenate(list(solver.fields(point))) for point in points]
        vectors = np.stack([spec.vector(point) for point in points])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, fields=np.array(fields, np.float32), vectors=vectors)
    stored, parts, first = np.load(path), [], 0
    for count in counts:
        part = ValidationSet(spec, window, 32, 0, count)
        chosen = slice(first, first + count)
        vectors = stored["vectors"][chosen].astype(np.float32)
        part.restore(np.arange(count), stored["fields"][chosen], vectors)
        parts.append(part)
        first += count
    return parts


def tested(surrogate: Surrogate, others: ValidationSet) -> dict[str, float]:
    """Return the errors over simulations that neither trained nor chose the weights."""
    metric: Any = field_metrics(surrogate.spec, "")["relative_l2"]
    with torch.no_grad():
        for batch in others:
            metric.update(surrogate(*batch[:3]), batch.target)
    errors = ErrorCurve.of(surrogate, others).errors
    figures = (metric.compute(), errors["relative_l2"], errors["relative_l2_at_end"])
    return dict(zip(FIGURES, map(float, figures), strict=True))


def run(
    problem: str, variant: str, seed: int, folder: Path, *, quick: bool
) -> dict[str, float]:
    """Train and test one variant."""
    name, network, window, batches = PROBLEMS[problem]
    predicts, noise, unroll = VARIANTS[variant]
    counts = (2, 1, 1) if quick else (100, 10, 20)
    batches = 4 if quick else batches
    path = folder / f"{name}.npz"
    training, held_out, others = simulated(name, window, counts, path)
    L.seed_everything(seed, verbose=False)
    surrogate = Surrogate(
        training.spec,
        network,
        window=Autoregressive(window.inputs, window.outputs, window.stride, unroll),
        predicts=predicts,  # type: ignore[arg-type]  # one of both
        noise=noise,
        scheduler=partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3, total_steps=batches + 1
        ),
    )
    best = ModelCheckpoint(
        folder / "checkpoints",
        f"{problem}-{variant}-{seed}",
        monitor=surrogate.window.monitor,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=1,
        val_check_interval=max(1, batches // 4),
        callbacks=[best],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(surrogate, InMemory(training, held_out, batches, seed))
    assert best.best_model_score is not None
    figures = tested(Surrogate.load(best.best_model_path), others)
    return {"validation": float(best.best_model_score), **figures}


def show(results: Mapping[str, dict[str, float]], problems: Sequence[str]) -> None:
    """Print what there is, in percent."""
    table = Table("problem", "variant", "seeds", "validation", *FIGURES)
    for problem in problems:
        for variant in VARIANTS:
            known = [
                row
                for name, row in results.items()
                if name.rpartition("/")[0] == f"{problem}/{variant}"
            ]
            cells = []
            for figure in ("validation", *FIGURES) if known else ():
                values = [100 * row[figure] for row in known]
                spread = f" ({min(values):.3g} to {max(values):.3g})"
                several = spread if len(values) > 1 else ""
                cells.append(f"{statistics.median(values):.3g}{several}")
            if known:
                table.add_row(problem, variant, str(len(known)), *cells)
    Console(width=140).print(table)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=[*PROBLEMS])
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/rollouts"))
    parser.add_argument("--quick", action="store_true", help="a few batches of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    folder = options.output / "quick" if options.quick else options.output
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for seed in [0] if options.quick else options.seeds:
        for problem in options.problems:
            for variant in options.variants:
                name = f"{problem}/{variant}/{seed}"
                if name in results:
                    continue
                results[name] = run(
                    *(problem, variant, seed, folder), quick=options.quick
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1))
                print(name, {k: f"{v:.3%}" for k, v in results[name].items()})
    show(results, options.problems)


if __name__ == "__main__":
    main()
