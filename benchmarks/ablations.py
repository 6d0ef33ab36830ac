"""Which training settings help: one pair of workflow and model, one setting at a time.

Each fit draws the very same batches, since inserts and draws take turns and the seeds
of sampler and reservoir are those of the fit: only what a row names differs, but for
the size of batches, the number of draws and the capacity, which change the batches.
Rows down to ``the recipe`` add a setting to the row above; each below changes one
setting of the recipe. The table has the median over the seeds of the error of the last
weights on held-out simulations, the smallest and the largest, that of best.ckpt (of
rollouts, where the window has a history), and seconds.

Fits that are there are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fits import digest, fit_once
from rich.console import Console
from rich.table import Table

__all__ = ["PAIRS", "VARIANTS"]


@dataclass(frozen=True)
class Pair:
    """A workflow and a model, at a size for minutes of a core."""

    words: Sequence[str]
    simulations: int
    batch_size: int
    #: Steps, and samples of several of them.
    capacity: int
    threshold: int
    #: Of each sample, on average, while simulations run.
    draws: float = 1.0
    #: Predictions that are unrolled before one is learnt; None if there is no history.
    unroll: int | None = None
    #: Whether the loss of the recipe is relative.
    relative: bool = True

    def takes(self, variant: dict[str, Any]) -> bool:
        """Return whether a variant means something here, and is another than it is."""
        if variant == (_RELATIVE if self.relative else _MSE):
            return False
        if self.unroll is None:
            return not variant.keys() & _ROLLOUTS
        return variant.get(_UNROLL) != self.unroll

    def fit(self, variant: dict[str, Any]) -> list[str]:
        """Return the words of a fit; a variant has factors of sizes, too."""
        of = {name: variant.get(name, 1.0) for name in ("batch", "draws", "capacity")}
        unroll = [] if self.unroll is None else [f"{_UNROLL}={self.unroll}"]
        return [
            *(*self.words, *unroll),
            f"--data.simulations={self.simulations}",
            f"--data.batch_size={round(self.batch_size * of['batch'])}",
            f"--data.reservoir.capacity={round(self.capacity * of['capacity'])}",
            f"--data.reservoir.threshold={self.threshold}",
            "--data.reservoir.limiter=surrogate_flow.reservoir.SamplesPerInsert",
            f"--data.reservoir.limiter.ratio={self.draws * of['draws']}",
            "--data.reservoir.limiter.tolerance=1000",
            *(f"{name}={word}" for name, word in variant.items() if name[:2] == "--"),
        ]


_UNROLL, _CHANGE = "--model.window.unroll", "--model.predicts"
_NOISE = "--model.noise"
_ROLLOUTS = {_UNROLL, _CHANGE, _NOISE}
_WINDOW = "--model.window=surrogate_flow.fields.Autoregressive"
_BUNDLE = [
    *(_WINDOW, "--model.window.inputs=25", "--model.window.outputs=25"),
    "--model.window.stride=5",
]
_FLOW = ["--data=navier_stokes2d", "--data.solver.points=32", _WINDOW]
_E1 = ["--data=combined1d_e1", "--data.solver.cells=40", *_BUNDLE]
_SMALL_FNO = ["--model=fno", "--model.network.width=16", "--model.network.modes=8"]
_HEAT = ["--model=fully_connected", "--data.solver.cells=[50,50]"]
PAIRS = {
    "heat2d": Pair(["--data=heat2d", *_HEAT], 300, 32, 6000, 1000),
    "heat2d_nonlinear": Pair(["--data=heat2d_nonlinear", *_HEAT], 300, 32, 6000, 1000),
    "heat2d_steps": Pair(
        [
            "--data=heat2d",
            *("--model=fully_connected_autoregressive", "--data.solver.cells=[20,20]"),
        ],
        *(200, 32, 6000, 1000, 2.0),
        unroll=1,
        relative=False,
    ),
    "fno_e1": Pair([*_E1, *_SMALL_FNO], 200, 16, 20_000, 1000, 2.0, unroll=0),
    "message_passing_e1": Pair(
        [
            *(*_E1, "--model=message_passing", "--model.network.width=64"),
            "--model.network.periodic=true",
        ],
        *(200, 16, 20_000, 1000, 2.0),
        unroll=1,
    ),
    "fno_flow": Pair([*_FLOW, *_SMALL_FNO], 150, 16, 1500, 300, 4.0, unroll=0),
    "unet_flow": Pair(
        [
            *(*_FLOW, "--model=unet", "--model.network.widths=[16,32,64]"),
            "--model.network.padding=circular",
        ],
        *(150, 16, 1500, 300, 4.0),
        unroll=0,
    ),
    "darcy": Pair(
        ["--data=darcy", "--data.solver.cells=32", *_SMALL_FNO], 1500, 20, 500, 200, 4.0
    ),
}
_RATE, _LOSS = "--model.optimizer.lr", "--model.loss"
_SCHEDULE, _AVERAGE = "--model.scheduler", "--model.averaging"
_MSE, _RELATIVE = {_LOSS: "torch.nn.MSELoss"}, {_LOSS: "surrogate_flow.RelativeL2"}
_SLOW = {_RATE: "0.001"}
VARIANTS: dict[str, dict[str, Any]] = {
    "constant rate 0.001": {_SCHEDULE: "null", _AVERAGE: "false", **_MSE, **_SLOW},
    "+ schedule": {_AVERAGE: "false", **_MSE, **_SLOW},
    "+ averaged weights": {**_MSE, **_SLOW},
    "+ rate of the recipe": _MSE,
    "the recipe": {},
    "relative L2": _RELATIVE,
    "rate 0.001": _SLOW,
    "rate 0.01": {_RATE: "0.01"},
    "constant rate": {_SCHEDULE: "null"},
    "constant rate, no average": {_SCHEDULE: "null", _AVERAGE: "false"},
    "gradients of norm 0.1 at most": {"--trainer.gradient_clip_val": "0.1"},
    "gradients of norm 1 at most": {"--trainer.gradient_clip_val": "1"},
    "bf16": {"--trainer.precision": "bf16-mixed"},
    "batches of half the size": {"batch": 0.5},
    "batches of twice the size": {"batch": 2.0},
    "twice the draws": {"draws": 2.0},
    "half the capacity": {"capacity": 0.5},
    "predicts the change": {_CHANGE: "change"},
    "the change, noise 0.01": {_CHANGE: "change", _NOISE: "0.01"},
    "with push-forward": {_UNROLL: 1},
    "without push-forward": {_UNROLL: 0},
    "the change, push-forward": {_CHANGE: "change", _UNROLL: 1},
}
# To see that it runs.
QUICK = [
    *("--data.simulations=4", "--data.held_out=2", "--trainer.max_steps=4"),
    *("--data.reservoir.threshold=16", "--data.reservoir.capacity=200"),
]


def fitted(folder: Path, words: Sequence[str], seed: int) -> dict[str, float]:
    """Run a fit, unless it is there; return its errors, batches and seconds."""
    more = [
        *("--data.deterministic=true", f"--seed_everything={seed}"),
        "--data.sampler=surrogate_flow.sampling.Uniform",
        *(f"--data.sampler.seed={seed}", f"--data.reservoir.seed={seed}"),
    ]
    run = fit_once(folder, [*words, *more], quiet=True)
    outcome = json.loads((run / "outcome.json").read_text())
    name = "val_rollout_relative_l2"
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {
        kind: [float(row[kind]) for row in rows if row.get(kind)]
        for kind in ("val_relative_l2", name)
    }
    return {
        "last": errors["val_relative_l2"][-1],
        "best": min(errors[name] or errors["val_relative_l2"]),
        "rollout": errors[name][-1] if errors[name] else float("nan"),
        "batches": outcome["batches"],
        "seconds": outcome["training_seconds"],
    }


def shown(values: Sequence[float]) -> str:
    """Return the median, and the smallest and the largest, in percent."""
    if math.isnan(values[0]):
        return "-"
    least, most = (f"{100 * bound(values):.2f}" for bound in (min, max))
    middle = f"{100 * statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({least} to {most})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5])
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--quick", action="store_true", help="four batches of each")
    options, rest = parser.parse_known_args()
    if unknown := {*options.variants} - {*VARIANTS}:
        parser.error(f"no such variants: {', '.join(unknown)}. There are {[*VARIANTS]}")
    table = Table(
        *("setting", "error, %", "rollout, %", "best.ckpt, %", "batches", "seconds")
    )
    for variant in options.variants:
        if not PAIRS[options.pair].takes(VARIANTS[variant]):
            continue
        words = [*PAIRS[options.pair].fit(VARIANTS[variant]), *rest]
        words += QUICK if options.quick else []
        name = "".join(c if c.isalnum() else "_" for c in variant)
        place = options.output / options.pair / f"{name}-{digest(words)}"
        runs = [fitted(place / str(seed), words, seed) for seed in options.seeds]
        of = {key: [run[key] for run in runs] for key in runs[0]}
        table.add_row(
            variant,
            *(shown(of[key]) for key in ("last", "rollout", "best")),
            f"{statistics.median(of['batches']):.0f}",
            f"{statistics.median(of['seconds']):.0f}",
        )
        Console(width=140).print(table)
