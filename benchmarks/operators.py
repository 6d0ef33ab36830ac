"""Fourier neural operators from a field to a field, at published settings.

Each setting is a comparison, as ``surrogate-flow compare`` makes it: offline, from a
data set of as many pairs as the paper has, and online, from pairs that are drawn while
the network is trained, with as many updates. What both come to is measured on test
pairs that no run has seen, whose last weights, not the best, predict them: the mean of
|û - u| / |u| over the pairs, as published. The same command goes on where it was.
docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.cli.app import main
from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import CASE, SEED
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.inputs import named_inputs
from surrogate_flow.solvers.grid import GridSolver
from surrogate_flow.surrogate.metrics import relative_l2

__all__ = ["SETTINGS", "Setting"]

HERE = Path(__file__).resolve().parent
VARIANTS = ("offline", "reservoir")

Fields = Float[np.ndarray, "pair channel *space"]


@dataclass(frozen=True)
class Setting:
    """What is compared, and what was published."""

    workflow: str
    pairs: int
    tests: int
    batches: int
    rate: float
    #: Of the rest of the command.
    words: tuple[str, ...]
    published: str


SETTINGS = {
    "burgers": Setting(
        workflow="burgers_u0",
        pairs=1000,
        tests=200,
        batches=1200,
        rate=3e-3,
        words=(
            *("--model.network.modes=32", "--model.network.width=64"),
            "--model.network.positions=false",
        ),
        published="0.0139 (ICLR 2021), 0.0018 (revised)",
    ),
    "darcy": Setting(
        workflow="darcy",
        pairs=1000,
        tests=200,
        batches=1500,
        rate=3e-3,
        words=(
            *("--model.network.modes=24", "--model.network.width=32"),
            "--model.network.padding=0.07",
        ),
        published="0.0108",
    ),
}
QUICK = ("--data.reservoir.threshold=20", "--data.held_out=2", "--seeds=1")


def words_of(name: str, *, quick: bool) -> list[str]:
    """Return the words of the comparison, but for its folder."""
    setting = SETTINGS[name]
    batches, pairs = (4, 20) if quick else (setting.batches, setting.pairs)
    return [
        *("--data", setting.workflow, "--model", "fno", *setting.words),
        *("--variants", *VARIANTS, "--batches", str(batches), "--offline", str(pairs)),
        *("--seeds", "3", "--data.held_out", "50", "--data.reservoir.capacity=4000"),
        "--data.reservoir.threshold=200",
        "--data.reservoir.limiter.init_args.ratio=8",
        "--model.network.channel_mlp=false",
        *("--model.loss=surrogate_flow.RelativeL2", "--model.loss.floor=0.001"),
        f"--model.optimizer.lr={setting.rate}",
        *(QUICK if quick else ()),
    ]


def compared(name: str, folder: Path, *, quick: bool, words: list[str]) -> None:
    """Train what has not been trained; `words` go before what the setting says."""
    path = [str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    sys.path.insert(0, str(HERE))
    before = words_of(name, quick=quick)
    main(["compare", *before, "--output", str(folder), *words])


def unseen(workflow: str, count: int) -> tuple[str, Fields, Fields]:
    """Return the name of the input, test inputs, and what the solver makes of them."""
    words = ["--data", workflow, "--model", "fno", f"--data.held_out={count}"]
    data, _ = build(["fit", *words])
    assert isinstance(data, OnlineData)
    assert isinstance(data.solver, GridSolver)
    assert data.inputs is not None
    spec, name = data.spec, data.spec.inputs[0].name
    design = data.new_design(simulations=0, part="test")
    drawn = [data.inputs.fields(simulation, spec) for simulation in design]
    solved = [next(data.solver.fields(named_inputs(spec, a))) for a in drawn]
    return name, np.stack(drawn), np.concatenate(solved).astype(np.float32)


def error_of(checkpoint: Path, name: str, given: Fields, truth: Fields) -> float:
    """Return the mean of |û - u| / |u|."""
    surrogate = Surrogate.load(checkpoint)
    predicted = surrogate.predict({}, inputs={name: given[:, 0]})
    (guess,) = predicted.data_vars.values()
    pair = (
        torch.from_numpy(u.reshape(len(truth), 1, *truth.shape[1:]))
        for u in (guess.values, truth)
    )
    error, size = relative_l2(*pair)
    return float((error / size).mean())


def run(name: str, folder: Path, *, quick: bool, words: list[str]) -> None:
    """Run a setting, print what the networks err on the test pairs, and write it."""
    compared(name, folder, quick=quick, words=words)
    setting, sweep = SETTINGS[name], SweepFolder(folder)
    tests = unseen(setting.workflow, 4 if quick else setting.tests)
    errors: dict[str, dict[int, float]] = {}
    for row in sweep.rows():
        checkpoint = sweep.checkpoint(row.number)
        if row.state == "complete" and checkpoint is not None:
            error = error_of(checkpoint, *tests)
            errors.setdefault(str(row.point[CASE]), {})[int(row.point[SEED])] = error
    table = Table(title=f"{name}: relative L2 of {len(tests[1])} test pairs")
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
