"""After how many evaluations a surrogate has paid for itself, at equal error.

For each run of ``surrogate-flow fit`` or ``compare`` on the heat equation, the combined
equation or Navier-Stokes: the error of its surrogate on simulations that it never saw,
and the cheapest setting of the same solver that errs no more. Settings are coarser
grids and longer steps; what they give is brought to the surrogate's grid by linear and
by trigonometric interpolation, of which the better one counts. The error is relative
L2, over all cells and all steps that the surrogate predicts, the mean over simulations;
the truth is the solver that made the training data. One thread each.

A surrogate that goes on from steps of the solver is charged for these. *Pays after* is
what the run took, solvers and training, over what one evaluation saves::

    n = (solver seconds + training seconds) / (t_solver - t_surrogate)

To compare at equal accuracy, or not at all, is the first rule of N. McGreivy and A.
Hakim, Weak baselines and reporting biases lead to overoptimism in machine learning for
fluid-related partial differential equations, 2024, https://arxiv.org/abs/2407.07218.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import yaml
from coarser import LADDERS, Fields, on_grid
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.outcome import Outcome
from surrogate_flow.rollout import roll_out
from surrogate_flow.schedule import held_out as planned
from surrogate_flow.solvers import Solver


@dataclass(frozen=True)
class Row:
    """A surrogate beside the solver that errs as much; times of one simulation."""

    run: str
    error: float
    seconds: float
    seconds_of_many: float
    full_solver_seconds: float
    peer: str
    peer_error: float
    peer_seconds: float
    #: Of the solver and of training, for the run.
    solver_seconds: float
    training_seconds: float
    #: Evaluations, against the peer and the full solver; None if none saves anything.
    pays_after: int | None
    pays_after_full: int | None


def solver_of(run: Path) -> Solver:
    """Return the solver that a run's config.yaml names."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    settings = config["data"]
    solver = settings.get("init_args", settings)["solver"]
    for cls in LADDERS:
        if solver["class_path"].rpartition(".")[2] == cls.__name__:
            made: Solver = cls(**solver.get("init_args", {}))
            return made
    raise SystemExit(
        f"{run}: expected a run of one of {[c.__name__ for c in LADDERS]}, got "
        f"{solver['class_path']}."
    )


def solved(
    solver: Solver, simulations: list[dict[str, float]]
) -> tuple[list[xr.Dataset], float]:
    """Return what each simulation yields, and the median seconds of one."""
    runs, seconds = [], []
    for parameters in simulations:
        begin = time.perf_counter()
        steps = list(solver.solve(parameters))
        seconds.append(time.perf_counter() - begin)
        runs.append(xr.concat(steps, "time"))
    return runs, statistics.median(seconds)


def error(guess: Fields, truth: Fields) -> float:
    """Return the relative L2 error over all cells and steps."""
    return float(np.linalg.norm(guess - truth) / np.linalg.norm(truth))


@torch.inference_mode()
def predicted(
    surrogate: Surrogate, vectors: np.ndarray, truth: np.ndarray
) -> Float[np.ndarray, "simulation time channel *space"]:
    """Predict what comes after the history, of all simulations at once."""
    spec, inputs = surrogate.spec, surrogate.window.inputs
    parameters = torch.from_numpy(vectors)
    if inputs:
        begin = torch.full((len(vectors),), float(inputs))
        history = torch.from_numpy(truth[:, :inputs])
        steps = spec.steps - inputs
        return roll_out(surrogate, parameters, begin, history, steps).numpy()
    each = parameters.repeat_interleave(spec.steps, 0)
    begin = torch.arange(float(spec.steps)).repeat(len(vectors))
    history = torch.empty(len(begin), 0, *spec.step_shape)
    fields: np.ndarray = surrogate(each, begin, history).numpy()
    return fields.reshape(len(vectors), spec.steps, *spec.step_shape)


def measure(run: Path, count: int) -> Row:
    """Return one run's row, from `count` simulations of the test seed."""
    surrogate = Surrogate.load(run / "checkpoints" / "best.ckpt").eval()
    solver, outcome = solver_of(run), Outcome.read(run)
    if outcome is None:
        raise SystemExit(f"{run}: expected outcome.json of a run that ended, got none.")
    spec, inputs = surrogate.spec, surrogate.window.inputs
    simulations = [
        dict(s.parameters)
        for s in islice(planned("test", spec.parameters, count), count)
    ]
    truth_sets, full = solved(solver, simulations)
    truth = np.stack([on_grid(t, solver)[0] for t in truth_sets]).astype(np.float32)
    vectors = np.stack([spec.vector(p) for p in simulations]).astype(np.float32)
    predicted(surrogate, vectors[:1], truth[:1])
    seconds, mine = [], []
    for k in range(count):
        begin = time.perf_counter()
        guess = predicted(surrogate, vectors[k : k + 1], truth[k : k + 1])[0]
        seconds.append(time.perf_counter() - begin)
        mine.append(error(guess, truth[k, inputs:]))
    begin = time.perf_counter()
    predicted(surrogate, vectors, truth)
    many = (time.perf_counter() - begin) / count
    history = full * inputs / spec.steps
    equal, equal_error, equal_seconds = "the solver itself", 0.0, full
    for name, coarse in LADDERS[type(solver)](solver):
        runs, taken = solved(coarse, simulations)
        ways = [
            [error(way[inputs:], t[inputs:]) for way in on_grid(r, solver)]
            for r, t in zip(runs, truth, strict=True)
        ]
        theirs = min(np.mean(ways, axis=0))
        print(f"    {name}: {theirs:.3%}, {taken:.4g} s")
        if theirs <= np.mean(mine) and taken < equal_seconds:
            equal, equal_error, equal_seconds = name, float(theirs), taken
    spent = outcome.solver_seconds + outcome.training_seconds
    own = statistics.median(seconds) + history

    def evaluations(saved: float) -> int | None:
        return math.ceil(spent / saved) if saved > 0 else None

    return Row(
        f"{type(surrogate.network).__name__}, {run}",
        float(np.mean(mine)),
        own,
        many + history,
        full,
        equal,
        equal_error,
        equal_seconds,
        outcome.solver_seconds,
        outcome.training_seconds,
        evaluations(equal_seconds - own),
        evaluations(full - own),
    )


def main() -> None:
    """Print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--simulations", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for run in options.runs:
        print(f"{run}:")
        rows.append(measure(run, options.simulations))
    columns = (
        "run",
        "error",
        "s",
        "solver that errs as much",
        "error",
        "s",
        "pays after",
    )
    table = Table(*columns, title="evaluations until a surrogate has paid for itself")
    for row in rows:
        never = "never" if row.pays_after is None else f"{row.pays_after:,}"
        table.add_row(
            row.run,
            f"{row.error:.2%}",
            f"{row.seconds:.3g}",
            row.peer,
            f"{row.peer_error:.2%}",
            f"{row.peer_seconds:.3g}",
            never,
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
