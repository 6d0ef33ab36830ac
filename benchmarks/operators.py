"""Fourier neural operators on published settings, with fewer updates.

Each setting is a comparison, as ``surrogate-flow compare`` makes it: offline, from a
data set, and online, from simulations that are drawn while the network is trained, with
as many updates. Both are measured on test simulations that no run has seen, which the
last weights, not the best, predict: the mean of ‖û - u‖ / ‖u‖ over the simulations, as
published. `burgers` and `darcy` map a field to a field, from as many pairs as there;
`navier_stokes_1e-3` and `_1e-4` map vorticity on [1 s, 10 s] to that until the end, in
rollouts of ten steps a prediction, from fewer simulations than there. The same command
goes on where it was. docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fits import by_case_and_seed, compared
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.cli.lightning import build
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.inputs import named_inputs
from surrogate_flow.solvers.grid import GridSolver
from surrogate_flow.surrogate.metrics import relative_l2
from surrogate_flow.surrogate.rollout import roll_out

__all__ = ["SETTINGS", "Setting"]

VARIANTS = ("offline", "reservoir")
HISTORY = "history"
BUNDLE = 10  # steps of a prediction, and before the first

Fields = Float[np.ndarray, "simulation *space"]


@dataclass(frozen=True)
class Setting:
    """What is compared, and what was published."""

    workflow: str
    #: Simulations of the data set.
    offline: int
    tests: int
    batches: int
    #: Of the rest of the command.
    words: tuple[str, ...]
    published: str


_PAIRS = (
    *("--data.held_out=50", "--data.reservoir.capacity=4000"),
    *("--data.reservoir.threshold=200", "--data.reservoir.limiter.init_args.ratio=8"),
)


def _flow(viscosity: float, steps: int, published: str) -> Setting:
    """Return the setting of a viscosity in m²/s, until so many seconds."""
    band = f"[{viscosity * 0.9999:.5e},{viscosity * 1.0001:.5e}]"
    return Setting(
        workflow="navier_stokes2d",
        offline=100,
        tests=50,
        batches=1000,
        words=(
            *(f"--data.solver.viscosity={band}", f"--data.solver.steps={steps}"),
            *("--data.batch_size=16", "--data.held_out=10"),
            "--model.window=surrogate_flow.fields.Autoregressive",
            *(f"--model.window.inputs={BUNDLE}", f"--model.window.outputs={BUNDLE}"),
            *("--model.window.stride=2", "--model.conditions=[]"),
            *("--model.network.modes=24", "--model.network.width=20"),
        ),
        published=published,
    )


SETTINGS = {
    "burgers": Setting(
        workflow="burgers_u0",
        offline=1000,
        tests=200,
        batches=3000,
        words=(
            *_PAIRS,
            *("--model.network.modes=32", "--model.network.width=64"),
            "--model.network.positions=false",
        ),
        published="0.0139 (ICLR 2021), 0.0018 (revised)",
    ),
    "darcy": Setting(
        workflow="darcy",
        offline=1000,
        tests=200,
        batches=4000,
        words=(
            *(*_PAIRS, "--data.batch_size=10"),
            *("--model.network.modes=16", "--model.network.width=32"),
            *("--model.network.padding=0.07", "--model.optimizer.weight_decay=1e-4"),
        ),
        published="0.0108",
    ),
    "navier_stokes_1e-3": _flow(1e-3, 50, "0.0128 (1,000 simulations)"),
    "navier_stokes_1e-4": _flow(1e-4, 30, "0.1559 (1,000 simulations)"),
}
QUICK = ("--data.reservoir.threshold=20", "--data.held_out=2", "--seeds=1")


def words_of(name: str, *, quick: bool) -> list[str]:
    """Return the words of the comparison, but for its folder."""
    setting = SETTINGS[name]
    batches, offline = (4, 20) if quick else (setting.batches, setting.offline)
    return [
        *("--data", setting.workflow, "--model", "fno", *setting.words),
        *("--variants", *VARIANTS, "--batches", str(batches)),
        *("--offline", str(offline), "--seeds", "3"),
        "--model.network.channel_mlp=false",
        *("--model.loss=surrogate_flow.RelativeL2", "--model.loss.floor=0.001"),
        *("--model.optimizer.lr=0.003", *(QUICK if quick else ())),
    ]


#: Fields given, by the names of the inputs or as HISTORY, and those to predict.
Tests = tuple[dict[str, np.ndarray], Fields]


def tests_of(setting: Setting, count: int) -> Tests:
    """Return what is given of test simulations, and what the solver makes of it."""
    solver = [word for word in setting.words if word.startswith("--data.solver")]
    words = ["--data", setting.workflow, "--model", "fno", *solver]
    data, _ = build(["fit", *words, f"--data.held_out={count}"])
    assert isinstance(data, OnlineData)
    assert isinstance(data.solver, GridSolver)
    spec, design = data.spec, data.new_design(simulations=0, part="test")
    if data.inputs is None:
        runs = [[*data.solver.fields(simulation.parameters)] for simulation in design]
        solved = np.array(runs, np.float32)[:, :, 0]
        return {HISTORY: solved[:, :BUNDLE]}, solved[:, BUNDLE:]
    drawn = [data.inputs.fields(simulation, spec) for simulation in design]
    ends = [next(data.solver.fields(named_inputs(spec, a)))[0] for a in drawn]
    return {spec.inputs[0].name: np.stack(drawn)[:, 0]}, np.array(ends, np.float32)


def error_of(checkpoint: Path, given: dict[str, np.ndarray], truth: Fields) -> float:
    """Return the mean of ‖û - u‖ / ‖u‖, over all times and points."""
    surrogate = Surrogate.load(checkpoint)
    if HISTORY in given:
        history = torch.from_numpy(given[HISTORY])
        none = torch.zeros(len(truth), len(surrogate.spec.parameters))
        first = torch.full((len(truth),), float(BUNDLE))
        steps = truth.shape[1]
        with torch.no_grad():
            guess = roll_out(surrogate.eval(), none, first, history, steps)
    else:
        predicted = surrogate.predict({}, inputs=given)
        (field,) = predicted.data_vars.values()
        guess = torch.from_numpy(field.values)
    error, size = relative_l2(
        guess.reshape(len(truth), 1, 1, -1),
        torch.from_numpy(truth).reshape(len(truth), 1, 1, -1),
    )
    return float((error / size).mean())


def run(name: str, folder: Path, *, quick: bool, words: list[str]) -> None:
    """Run a setting, print what the networks err on the test pairs, and write it."""
    compared([*words_of(name, quick=quick), *words], folder)
    setting = SETTINGS[name]
    tests = tests_of(setting, 4 if quick else setting.tests)
    errors = by_case_and_seed(folder, lambda path: error_of(path, *tests))
    table = Table(title=f"{name}: relative L2 of {len(tests[1])} test simulations")
    for column in ("", "median", "each seed"):
        table.add_column(column)
    for variant, found in errors.items():
        each = [f"{found[seed]:.5f}" for seed in sorted(found)]
        median = f"{statistics.median(found.values()):.5f}"
        table.add_row(variant, median, ", ".join(each))
    table.add_row("published, offline", setting.published, "")
    Console().print(table)
    (folder / "test.json").write_text(json.dumps(errors, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--output", type=Path, default=Path("runs/operators"))
    parser.add_argument("--quick", action="store_true", help="a few batches")
    options, rest = parser.parse_known_args()
    run(options.name, options.output / options.name, quick=options.quick, words=rest)
