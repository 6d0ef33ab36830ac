"""After how many evaluations a surrogate has paid for itself, at equal error.

For each run of ``surrogate-flow fit`` or ``compare`` on the heat equation, the combined
equation, natural convection or Navier-Stokes: the error of its surrogate on simulations
that it never saw, and the cheapest setting of the same solver that errs no more.
Settings are coarser grids and longer steps; what they give is brought to the
surrogate's grid by linear and by trigonometric interpolation, of which the better one
counts, and which takes no time; what cannot be solved with a setting leaves it out.
The error is relative L2, over all cells and all steps that the surrogate predicts, the
mean over variables and simulations; the truth is the solver that made the training
data. Times are of one simulation, as bare arrays on both sides, on one thread.

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
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
import zarr
from coarser import LADDERS, Fields, labelled, on_grid
from fits import unseen
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.report.folder.cost import break_even
from surrogate_flow.report.folder.run_folder import RunSummary
from surrogate_flow.solvers import GridSolver
from surrogate_flow.surrogate.rollout import roll_out


@dataclass(frozen=True)
class Rung:
    """A setting of a solver, its relative error and the seconds of a simulation."""

    name: str
    error: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A surrogate beside the solver that errs as much; times of one simulation."""

    run: str
    error: float
    seconds: float
    #: When all simulations are predicted in one batch.
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


def cheapest(rungs: Sequence[Rung], most: float) -> Rung:
    """Return the rung that takes least of those that err `most`, or less.

    Examples
    --------
    >>> ladder = [Rung("full", 0.0, 8.0), Rung("a", 0.1, 2.0), Rung("b", 0.3, 1.0)]
    >>> [cheapest(ladder, most).name for most in (0.05, 0.1, 0.5)]
    ['full', 'a', 'b']
    """
    return min((r for r in rungs if r.error <= most), key=lambda r: r.seconds)


def solver_of(run: Path) -> GridSolver:
    """Return the solver of a run's simulations, or of those of its data set."""
    settings = yaml.safe_load((run / "config.yaml").read_text())["data"]
    settings = settings.get("init_args", settings)
    if "path" in settings:
        # As it was typed: from the folder in which the run was started.
        attributes = zarr.open_group(settings["path"], mode="r").attrs
        solver = json.loads(str(attributes["solver"]))
    else:
        solver = settings["solver"]
    for cls in LADDERS:
        if solver["class_path"].rpartition(".")[2] == cls.__name__:
            made: GridSolver = cls(**solver.get("init_args", {}))
            return made
    raise SystemExit(
        f"{run}: expected a run of one of {[c.__name__ for c in LADDERS]}, got "
        f"{solver['class_path']}."
    )


def solved(
    solver: GridSolver, simulations: Sequence[Mapping[str, float]]
) -> tuple[list[Fields], float]:
    """Return the fields of each simulation, and the median seconds of one."""
    runs, seconds = [], []
    for parameters in simulations:
        begin = time.perf_counter()
        runs.append(np.concatenate(list(solver.fields(parameters))))
        seconds.append(time.perf_counter() - begin)
    return runs, statistics.median(seconds)


def relative(guess: Fields, truth: Fields) -> float:
    """Return the relative L2 error over all cells and steps, the mean of variables."""
    axes = (0, *range(2, truth.ndim))
    squares = np.square(guess - truth, dtype=float), np.square(truth, dtype=float)
    error, size = (s.sum(axis=axes) for s in squares)
    return float(np.sqrt(error / size).mean())


def climbed(
    solver: GridSolver,
    simulations: Sequence[Mapping[str, float]],
    truth: Float[np.ndarray, "simulation time channel *space"],
    start: int,
) -> list[Rung]:
    """Return every coarser setting, with its error from the step `start` on."""
    rungs = []
    for name, coarse in LADDERS[type(solver)](solver):
        try:
            runs, taken = solved(coarse, simulations)
        except FloatingPointError:
            continue  # It is too coarse to be solved at all.
        grids = [on_grid(labelled(coarse, course), solver) for course in runs]
        errors = [
            [relative(way[start:], t[start:]) for way in ways]
            for ways, t in zip(grids, truth, strict=True)
        ]
        rungs.append(Rung(name, float(min(np.mean(errors, axis=0))), taken))
    return rungs


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


def measure(run: Path, count: int) -> tuple[Row, list[Rung]]:
    """Return one run's row and rungs, from `count` simulations of the test seed."""
    surrogate = Surrogate.load(run / "checkpoints" / "best.ckpt").eval()
    solver, outcome = solver_of(run), RunSummary.read(run)
    if outcome is None:
        raise SystemExit(f"{run}: expected outcome.json of a run that ended, got none.")
    spec, inputs = surrogate.spec, surrogate.window.inputs
    simulations = unseen(spec, count)
    courses, full = solved(solver, simulations)
    truth = np.array(courses, dtype=np.float32)
    vectors = np.stack([spec.vector(p) for p in simulations]).astype(np.float32)
    predicted(surrogate, vectors[:1], truth[:1])
    seconds, errors = [], []
    for k in range(count):
        begin = time.perf_counter()
        guess = predicted(surrogate, vectors[k : k + 1], truth[k : k + 1])[0]
        seconds.append(time.perf_counter() - begin)
        errors.append(relative(guess, truth[k, inputs:]))
    begin = time.perf_counter()
    predicted(surrogate, vectors, truth)
    many = (time.perf_counter() - begin) / count
    mine, history = float(np.mean(errors)), full * inputs / spec.steps
    rungs = climbed(solver, simulations, truth, inputs)
    peer = cheapest([Rung("the solver itself", 0.0, full), *rungs], mine)
    spent = outcome.solver_seconds + outcome.training_seconds
    own = statistics.median(seconds) + history
    row = Row(
        f"{type(surrogate.network).__name__}, {run}",
        mine,
        own,
        many + history,
        full,
        peer.name,
        peer.error,
        peer.seconds,
        outcome.solver_seconds,
        outcome.training_seconds,
        break_even(spent, peer.seconds, own),
        break_even(spent, full, own),
    )
    return row, rungs


def main() -> None:
    """Print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--simulations", type=int, default=10, help="to measure by")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, rows = Console(), []
    for run in options.runs:
        row, rungs = measure(run, options.simulations)
        rows.append(row)
        console.print(f"{run}: what the solver can be had for", highlight=False)
        for rung in sorted(rungs, key=lambda rung: rung.error):
            words = f"{rung.error:8.2%} {rung.seconds:8.4f} s  {rung.name}"
            console.print(words, highlight=False)
    peer = ("solver that errs as much", "error", "s")
    columns = ("run", "error", "s", *peer, "pays after")
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
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
