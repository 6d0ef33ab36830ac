"""What makes rollouts accurate: the field against its change, noise, push-forward.

    python benchmarks/rollouts.py [PROBLEM ...]

For each problem a data set is generated once, and every variant trains the same number
of batches of it. The best weights by `val_rollout_relative_l2`, of 20 held-out
simulations, are measured on 20 others: the relative L2 error of single predictions, of
rollouts from the first steps to the end, and at the last step. The table has medians
over the seeds and, in brackets, least and greatest. A run that is in results.json is
not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.sampling import Design, Uniform
from surrogate_flow.solvers import Combined1D, NavierStokes2D
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.metrics import field_metrics

_BURGERS = [
    *("--data", "combined1d_e1", "--data.solver.cells=40", "--data.simulations=200"),
]
_FLOW = [
    *("--data", "navier_stokes2d", "--data.solver.points=32"),
    "--data.simulations=100",
]
DATA: Mapping[str, tuple[Any, list[str]]] = {
    "burgers": (Combined1D(cells=40), _BURGERS),
    "flow": (NavierStokes2D(points=32), _FLOW),
}
_WINDOW = "--model.window=surrogate_flow.fields.Autoregressive"
_25 = [_WINDOW, *("--model.window.inputs=25", "--model.window.outputs=25")]
_25 += ["--model.window.stride=5"]
_1 = [_WINDOW, *("--model.window.inputs=1", "--model.window.outputs=1")]
_MESSAGES = ["--model=message_passing", "--model.network.width=64"]
_MESSAGES += ["--model.network.periodic=true"]
_UNET = ["--model=unet", "--model.network.widths=[16, 32, 64]"]
_UNET += ["--model.network.padding=circular"]
#: Of each problem: its data, the model, and how many batches are trained.
PROBLEMS: Mapping[str, tuple[str, list[str], int]] = {
    "message_passing_25": ("burgers", [*_MESSAGES, *_25], 1000),
    "message_passing_1": ("burgers", [*_MESSAGES, *_1], 1000),
    "fno_25": ("burgers", ["--model=fno", "--model.network.modes=12", *_25], 2000),
    "fno_1": ("burgers", ["--model=fno", "--model.network.modes=12", *_1], 2000),
    "flow_fno": (
        "flow",
        [*("--model=fno", "--model.network.modes=8", "--model.network.width=16"), *_1],
        1000,
    ),
    "flow_unet": ("flow", [*_UNET, *_1], 1000),
}
_CHANGE, _UNROLL = "--model.predicts=change", "--model.window.unroll=1"
VARIANTS: Mapping[str, list[str]] = {
    "field": [],
    "field, push-forward": [_UNROLL],
    "field, noise 0.01": ["--model.noise=0.01"],
    "change": [_CHANGE],
    "change, push-forward": [_CHANGE, _UNROLL],
    "change, noise 0.003": [_CHANGE, "--model.noise=0.003"],
    "change, noise 0.01": [_CHANGE, "--model.noise=0.01"],
    "change, noise 0.03": [_CHANGE, "--model.noise=0.03"],
}
_COUNT = 20  # held-out simulations, and as many others that nothing was chosen by
FIGURES = ("single", "rollout", "at_end")


def command(*words: str, folder: Path) -> None:
    """Run a command of surrogate-flow; what it prints goes into log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "surrogate_flow", *words]
    with (folder / "log.txt").open("w") as log:
        if subprocess.run(program, stdout=log, stderr=log, check=False).returncode:
            raise SystemExit(f"{' '.join(words)} failed: see {log.name}")


def tested(solver: Any, checkpoint: Path, count: int) -> dict[str, float]:
    """Return the errors over simulations that neither trained nor chose the weights."""
    surrogate = Surrogate.load(checkpoint)
    spec = surrogate.spec
    design = Design(
        spec.parameters, Uniform(), held_out=count, simulations=0, part="test"
    )
    points = [dict(simulation.parameters) for simulation in design]
    fields = [np.concatenate(list(solver.fields(point))) for point in points]
    vectors = np.stack([spec.vector(point) for point in points]).astype(np.float32)
    others = ValidationSet(spec, surrogate.window, 32, 0, count)
    others.restore(np.arange(count), np.array(fields, np.float32), vectors)
    metric: Any = field_metrics(spec, "")["relative_l2"]
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
    name, model, batches = PROBLEMS[problem]
    solver, data = DATA[name]
    count = 2 if quick else _COUNT
    stored = folder / f"{name}.zarr"
    if not stored.exists():
        size = ["--data.simulations=4"] if quick else []
        words = [*data, f"--data.held_out={count}", *size, "--output", str(stored)]
        command("generate", *words, folder=folder / name)
    place = folder / problem / variant.replace(", ", "-").replace(" ", "-") / str(seed)
    most = 4 if quick else batches
    command(
        *("fit", "--data", str(stored), "--data.batch_size=16", *model),
        *VARIANTS[variant],
        *(f"--seed_everything={seed}", f"--data.seed={seed}"),
        *(f"--trainer.max_steps={most}", f"--trainer.default_root_dir={place}"),
        f"--trainer.val_check_interval={max(1, most // 4)}",
        *("--model.scheduler=torch.optim.lr_scheduler.OneCycleLR",),
        *(f"--model.scheduler.total_steps={most}", "--model.scheduler.max_lr=0.003"),
        folder=place,
    )
    best = max(place.rglob("best.ckpt"), key=lambda path: path.stat().st_mtime)
    validation = Surrogate.load(best).error
    assert validation is not None
    return {"validation": validation, **tested(solver, best, count)}


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
    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for seed in [0] if options.quick else options.seeds:
        for problem in options.problems:
            for variant in options.variants:
                name = f"{problem}/{variant}/{seed}"
                if name in results:
                    continue
                results[name] = run(
                    *(problem, variant, seed, options.output), quick=options.quick
                )
                path.write_text(json.dumps(results, indent=1))
                print(name, {k: f"{v:.3%}" for k, v in results[name].items()})
    show(results, options.problems)


if __name__ == "__main__":
    main()
