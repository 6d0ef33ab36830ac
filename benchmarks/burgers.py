"""Surrogates of the combined equation against WENO5 on their own grid: error and time.

Of the experiment E1, E2 or E3 it trains a message-passing network and an FNO on 40
cells, 25 steps from 25 with one push-forward step, and prints for each the figure of
merit of Brandstetter, Worrall and Welling, Message Passing Neural PDE Solvers, ICLR
2022 (from step 50, the sum over the steps of the mean squared error, mean over
simulations), as a ratio to that of this project's own WENO5 on as many cells. The truth
is WENO5 on a fine grid, brought down by averaging. Times are of a whole simulation, as
bare arrays on one thread; a network is charged for the steps that WENO5 on the fine
grid makes before it goes on from them.

A run that has trained all its batches is not run again, one that was cut off is.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fits import digest, fit_once, unseen
from jaxtyping import Float
from row import Row, report

from surrogate_flow import Surrogate
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.solvers import Combined1D
from surrogate_flow.surrogate.error_curve import ErrorCurve

START = 50  # index of the first step that counts
NETWORKS = {
    "message_passing": ["--model.network.width=64", "--model.network.periodic=true"],
    "fno": ["--model.network.modes=12"],
}
TRAINING = [
    "--model.window=surrogate_flow.fields.Autoregressive",
    *("--model.window.inputs=25", "--model.window.outputs=25"),
    # Windows that begin at every step are so alike that each simulation would be
    # learnt by heart while it is in the reservoir.
    *("--model.window.unroll=1", "--model.window.stride=5"),
    *("--data.solver.cells=40", "--data.batch_size=16", "--data.simulations=6000"),
]
LENGTH = ["--data.reservoir.threshold=1000", "--trainer.max_steps=8000"]
# To see that it runs.
QUICK = [
    *("--data.reservoir.threshold=16", "--trainer.max_steps=4"),
    *("--data.held_out=2", "--data.simulations=4"),
]


def trained(experiment: str, network: str, folder: Path, length: list[str]) -> Path:
    """Train, unless that has been done; return the checkpoint of the best weights."""
    words = [f"--data=combined1d_{experiment}", f"--model={network}"]
    words += [*NETWORKS[network], *TRAINING, *length]
    # What is trained in another way has another folder.
    place = folder / experiment / f"{network}-{digest(words)}"
    return fit_once(place, words) / "checkpoints" / "best.ckpt"


def solved(
    solver: Combined1D, simulations: list[dict[str, float]]
) -> tuple[Float[np.ndarray, "simulation time channel x"], float]:
    """Return all fields, and the seconds of one simulation."""
    begin = time.perf_counter()
    fields = [np.concatenate(list(solver.fields(p))) for p in simulations]
    seconds = (time.perf_counter() - begin) / len(simulations)
    return np.array(fields, dtype=np.float32), seconds


def compare(path: Path, count: int) -> list[Row]:
    """Roll a surrogate out, and solve the same on its grid."""
    surrogate = Surrogate.load(path)
    spec = surrogate.spec
    cells = spec.shape[0]
    simulations = unseen(spec, count)
    fine = _solver(surrogate, cells, 200 // cells * cells)
    truth, fine_seconds = solved(fine, simulations)
    weno, solver_seconds = solved(_solver(surrogate, cells, cells), simulations)
    kept = ValidationSet(spec, surrogate.window, 1, 0, count)
    vectors = np.stack([spec.vector(p) for p in simulations]).astype(np.float32)
    kept.restore(np.arange(count), truth, vectors)
    begin = time.perf_counter()
    curve = ErrorCurve.of(surrogate, kept, start=START)
    seconds = (time.perf_counter() - begin) / count
    seconds += fine_seconds * START / spec.steps
    mine = float(curve.accumulated[0])
    steady = np.repeat(truth[:, START - 1 : START], spec.steps - START, axis=1)
    still = _accumulated(truth[:, START:], steady)
    theirs = _accumulated(truth[:, START:], weno[:, START:])
    name = f"{type(surrogate.network).__name__}, {cells} cells"
    peer = f"WENO5, {cells} cells"
    return [
        Row(f"{name}: error", mine, "m²/s²", peer, theirs),
        Row("nothing moves: error", still, "m²/s²", peer, theirs),
        Row(
            f"{name}: time",
            seconds,
            "s",
            peer,
            solver_seconds,
        ),
    ]


def _solver(surrogate: Surrogate, cells: int, fine: int) -> Combined1D:
    spec = surrogate.spec
    bounds = {p.name: (p.low, p.high) for p in spec.parameters}
    none = (0.0, 0.0)
    solver = Combined1D(
        cells,
        fine,
        steps=spec.steps,
        time_step=spec.times[1] - spec.times[0],
        alpha=bounds.get("alpha", (1.0, 1.0)),
        beta=bounds.get("beta", none),
        gamma=bounds.get("gamma", none),
    )
    if replace(solver.spec, times=spec.times) != spec:
        raise SystemExit(
            "expected a surrogate of the combined equation, alpha = 1 unless it "
            f"varies, got one of {[p.name for p in spec.parameters]} on {spec.shape}."
        )
    return solver


def _accumulated(
    truth: Float[np.ndarray, "simulation time channel x"],
    guess: Float[np.ndarray, "simulation time channel x"],
) -> float:
    squares = np.square(guess.astype(np.float64) - truth).mean(axis=(2, 3))
    return float(squares.sum(axis=1).mean())


def main() -> None:
    """Train what has not been trained, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=["e1", "e2", "e3"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--output", type=Path, default=Path("runs/papers/burgers"))
    parser.add_argument("--simulations", type=int, default=20, help="to measure by")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--quick", action="store_true", help="a few batches")
    options = parser.parse_args()
    length = QUICK if options.quick else LENGTH
    paths = [
        trained(options.experiment, n, options.output, length) for n in options.networks
    ]
    torch.set_num_threads(1)
    rows = [row for path in paths for row in compare(path, options.simulations)]
    report(rows, options.json)


if __name__ == "__main__":
    main()
