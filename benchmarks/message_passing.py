"""Message passing on E1, 100 cells, beside the released code of the paper.

Brandstetter, Worrall and Welling, Message Passing Neural PDE Solvers, ICLR 2022. Ours
is a comparison, as ``surrogate-flow compare`` makes it: offline from a few trajectories
and online from many, with as many updates. Theirs, if ``--peer`` names a checkout, is
trained with its own loop and graphs on the same trajectories, for as many updates, once
with its own rate and schedule and once with those of our recipe; all are then measured
on test trajectories that no run has seen. The same command goes on where it was;
docs/results.md has what came of it.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fits import by_case_and_seed, compared, unseen
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler

from surrogate_flow import Surrogate
from surrogate_flow.dataset import Archive
from surrogate_flow.solvers import Combined1D
from surrogate_flow.surrogate.schedule import WarmupCosine

__all__ = ["errors", "words_of"]

CELLS, BUNDLE, BATCH = 100, 25, 16
#: Of the released code: its own, for the many epochs of the paper, and our recipe's.
RATES = ("its rate", "our rate")
START = 2 * BUNDLE  # the first step of the published rollouts
HOW = """To run the released code, too:
  git clone https://github.com/brandstetter-johannes/MP-Neural-PDE-Solvers
  pip install torch_geometric torch_cluster h5py
and type this command again with --peer MP-Neural-PDE-Solvers."""
Trajectories = Float[np.ndarray, "trajectory time x"]
#: (history, parameters, index of the first step to predict) -> the next steps.
Predict = Callable[[Trajectories, np.ndarray, int], Trajectories]


def words_of(batches: int, trajectories: int, seeds: int) -> list[str]:
    """Return the words of the comparison, but for its folder."""
    return [
        *("--data", "combined1d_e1", "--model", "message_passing"),
        *("--variants", "offline", "reservoir", "--batches", str(batches)),
        *("--offline", str(trajectories), "--seeds", str(seeds)),
        *(f"--model.window.inputs={BUNDLE}", f"--model.window.outputs={BUNDLE}"),
        *("--model.window.stride=5", "--model.network.periodic=true"),
        # As theirs, which sees the last steps and the time.
        *("--model.conditions=[time]", f"--data.batch_size={BATCH}"),
    ]


def trajectories_of(count: int) -> tuple[Trajectories, np.ndarray]:
    """Return trajectories that no run has seen, and their parameters."""
    solver = Combined1D(CELLS)
    drawn = unseen(solver.spec, count)
    fields = [np.concatenate([*solver.fields(p)])[:, 0] for p in drawn]
    vectors = np.array([solver.spec.vector(p) for p in drawn])
    return np.array(fields, np.float32), vectors.astype(np.float32)


def errors(
    predict: Predict, truth: Trajectories, given: np.ndarray
) -> dict[str, float]:
    """Return the relative L2 error of one prediction, and the published error.

    The latter is of rollouts from step 50: the sum over the steps of the mean squared
    error, mean over trajectories.
    """
    ratios, last = [], truth.shape[1] - BUNDLE
    for step in range(BUNDLE, last + 1, BUNDLE):
        target = truth[:, step : step + BUNDLE]
        error = predict(truth[:, step - BUNDLE : step], given, step) - target
        size = np.linalg.norm(target, axis=(1, 2))
        ratios.append(np.linalg.norm(error, axis=(1, 2)) / size)
    history, total = truth[:, START - BUNDLE : START], 0.0
    for step in range(START, last + 1, BUNDLE):
        history = predict(history, given, step)
        squares = (history - truth[:, step : step + BUNDLE]) ** 2
        total += float(squares.mean(axis=2).sum(axis=1).mean())
    return {"one prediction": float(np.mean(ratios)), "rollout": total}


def of_surrogate(path: Path) -> Predict:
    """Return what a checkpoint predicts."""
    surrogate = Surrogate.load(path).eval()

    @torch.no_grad()
    def predict(history: Trajectories, given: np.ndarray, step: int) -> Trajectories:
        steps = torch.full((len(given),), float(step))
        seen = torch.from_numpy(history)[:, :, None]
        predicted: Trajectories = (
            surrogate(torch.from_numpy(given), steps, seen)[:, :, 0].cpu().numpy()
        )
        return predicted

    return predict


class Peer:
    """The released code, trained as its ``experiments/train.py`` does."""

    def __init__(self, folder: Path, seed: int) -> None:
        sys.path.insert(0, str(folder.resolve()))
        theirs = ["common.utils", "equations.PDEs", "experiments.models_gnn"]
        utils, equations, networks = map(importlib.import_module, theirs)
        random.seed(seed)
        torch.manual_seed(seed)
        times = Combined1D(CELLS).times
        pde = equations.CE()
        pde.tmin, pde.tmax, pde.dt = times[0], times[-1], times[1] - times[0]
        pde.grid_size = (len(times), CELLS)
        self.graphs = utils.GraphCreator(
            pde=pde,
            neighbors=3,
            time_window=BUNDLE,
            t_resolution=len(times),
            x_resolution=CELLS,
        )
        self.model = networks.MP_PDE_Solver(
            pde=pde, time_window=BUNDLE, eq_variables={}
        )
        self.places = np.arange(CELLS) * (pde.L / CELLS)

    def _with_labels(self, u: Float[np.ndarray, "time x"]) -> tuple[Any, ...]:
        # The second is what they train on; coefficients are not used in E1.
        return u, u, self.places, dict.fromkeys(("alpha", "beta", "gamma"), 0.0)

    def train(self, trajectories: Trajectories, batches: int, rate: str) -> None:
        """Make so many updates: 20 epochs, whose first has no push-forward.

        The rate is theirs, with its steps, or that of our recipe, with its schedule.
        """
        loop = importlib.import_module("experiments.train_helper").training_loop
        data = [self._with_labels(u) for u in trajectories]
        ours = rate == "our rate"
        weights = self.model.parameters()
        optimizer = torch.optim.AdamW(weights, lr=2e-3 if ours else 1e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, milestones=[1, 5, 10, 15], gamma=1.0 if ours else 0.4
        )
        if ours:
            left, cosine = iter(range(batches - 1, -1, -1)), WarmupCosine(optimizer)

            def follow(*_: object) -> None:
                cosine.follow(next(left))
                cosine.step()

            optimizer.register_step_post_hook(follow)
        for part in np.array_split(np.arange(batches), min(20, batches)):
            drawn: Any = RandomSampler(
                data,
                replacement=True,
                num_samples=len(part) * BATCH,
            )
            loop(
                self.model,
                [0] if part[0] == 0 else [0, 1],
                BATCH,
                optimizer,
                DataLoader(data, batch_size=BATCH, sampler=drawn),  # type: ignore[arg-type]
                self.graphs,
                torch.nn.MSELoss(reduction="sum"),
            )
            schedule.step()

    @torch.no_grad()
    def __call__(
        self, history: Trajectories, given: np.ndarray, step: int
    ) -> Trajectories:
        """Predict."""
        count = len(history)
        seen = torch.from_numpy(history)
        variables = dict.fromkeys(("alpha", "beta", "gamma"), torch.zeros(count))
        places = torch.from_numpy(np.tile(self.places, (count, 1)))
        graph = self.graphs.create_graph(seen, seen, places, variables, [step] * count)
        out: Trajectories = self.model(graph).numpy().reshape(count, CELLS, BUNDLE)
        return out.transpose(0, 2, 1)


def of_peer(
    folder: Path,
    output: Path,
    seed: int,
    batches: int,
    rate: str,
    test: tuple[Any, Any],
) -> dict[str, float]:
    """Train the released code on the data set of the comparison, unless it has been."""
    file = output / f"peer-{rate.replace(' ', '-')}-{batches}-{seed}.json"
    if not file.is_file():
        archive = Archive(output / "offline.zarr")
        numbers = range(archive.held_out, archive.simulations)
        shape = (archive.spec.steps, *archive.spec.step_shape)
        fields = np.empty((len(numbers), *shape), np.float32)
        for row, number in zip(fields, numbers, strict=True):
            archive.read(number, 0, row)
        peer = Peer(folder, seed)
        peer.train(fields[:, :, 0], batches, rate)
        file.write_text(json.dumps(errors(peer, *test)) + "\n")
    found: dict[str, float] = json.loads(file.read_text())
    return found


def run(options: argparse.Namespace, words: list[str]) -> None:
    """Train all, and print the errors on the test trajectories."""
    batches, trajectories, seeds = options.batches, options.trajectories, options.seeds
    if options.quick:
        batches, trajectories, seeds = 4, 4, 1
        words = ["--data.held_out=2", "--data.reservoir.threshold=16", *words]
    before, folder = words_of(batches, trajectories, seeds), options.output
    compared([*before, *words], folder)
    torch.set_num_threads(1)
    test = trajectories_of(2 if options.quick else 50)
    found = by_case_and_seed(folder, lambda path: errors(of_surrogate(path), *test))
    if options.peer:
        for rate, seed in itertools.product(RATES, range(seeds)):
            theirs = of_peer(options.peer, folder, seed, batches, rate, test)
            found.setdefault(f"released code, {rate}", {})[seed] = theirs
    table = Table(title=f"E1, {CELLS} cells, {batches} updates: median; each seed")
    for column in ("", "relative L2 of one prediction", "error of rollouts, m²/s²"):
        table.add_column(column)
    for case, seeds_of in found.items():
        cells = []
        for kind in ("one prediction", "rollout"):
            each = [seeds_of[seed][kind] for seed in sorted(seeds_of)]
            median = f"{statistics.median(each):.4g}"
            cells.append(f"{median}; {', '.join(f'{e:.4g}' for e in each)}")
        table.add_row(case, *cells)
    console = Console()
    console.print(table)
    if not options.peer:
        console.print(HOW)
    (folder / "test.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, metavar="FOLDER", help="a checkout of it")
    parser.add_argument("--output", type=Path, default=Path("runs/message_passing"))
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--trajectories", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few batches")
    run(*parser.parse_known_args())
