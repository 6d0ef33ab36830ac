"""What trials that share an ensemble cost, and whether they are as good as alone.

*shared*: four learning rates on one ensemble, each beside the same training with an
ensemble of its own (``share_simulations: false``), over seeds. All train every sample
once, in random order (FIRO): as many batches, of the same simulations. Solver seconds
are those that runs note, from a simulation's opening to its end on cores that others
use, too; and those of the processor, which the solver takes from its own thread.

*local*: eight trials on this machine, one, two and four at once, beside eight
``surrogate-flow fit`` one after another. Wall seconds are those of whole commands.

Parts that are in the folder already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metered import metered
from row import Row, report

from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import words_of
from surrogate_flow.dataset import Archive

HERE = Path(__file__).resolve().parent
RATE = "model.optimizer.init_args.lr"
BATCH, HELD_OUT = 32, 10


@dataclass(frozen=True)
class Size:
    """Of the ensemble, the networks and the searches."""

    cells: int = 40
    steps: int = 50
    simulations: int = 160
    widths: int = 256
    seeds: int = 3
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    trials: int = 8
    at_once: tuple[int, ...] = (1, 2, 4)
    falls: bool = False  # the learning rate, as a cosine to zero

    @property
    def batches(self) -> int:
        """That have each sample once."""
        return self.simulations * self.steps // BATCH

    def options(self, log: Path) -> dict[str, Any]:
        """Return what all trainings have, on a problem that notes what it takes."""
        samples = self.simulations * self.steps
        solver = {"log": str(log), "cells": self.cells, "steps": self.steps}
        reservoir = {"capacity": samples // 4, "threshold": samples // 20}
        cosine = "torch.optim.lr_scheduler.CosineAnnealingLR"
        schedule = {"class_path": cosine, "init_args": {"T_max": self.batches}}
        return {
            **({"model.scheduler": schedule} if self.falls else {}),
            "data.solver": {
                "class_path": "metered.MeteredHeat2D",
                "init_args": solver,
            },
            "data.simulations": self.simulations,
            "data.held_out": HELD_OUT,
            "data.batch_size": BATCH,
            "data.reservoir": {
                "class_path": "surrogate_flow.reservoir.FIRO",
                "init_args": reservoir,
            },
            "model.network.init_args.widths": [self.widths, self.widths],
            "trainer.max_steps": self.batches,
            "trainer.val_check_interval": self.batches,
        }


QUICK = Size(12, 20, 32, 16, 1, (1e-3, 1e-2), 2, (2,))


class Bench:
    """Sweeps and fits in a folder, each measured once.

    Parameters
    ----------
    folder : Path
    size : Size
    """

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder.absolute(), size

    def sweep(self, name: str, space: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Run one; return its wall and solver seconds, and the error of each trial."""
        share = more.get("share_simulations", True)

        def run(folder: Path) -> dict[str, Any]:
            options = self.size.options(folder / "solver.log")
            recipe = {
                "data": "heat2d",
                "model": "fully_connected",
                "options": {**options, **more.pop("options", {})},
                "space": space,
                **more,
            }
            (folder / "recipe.yaml").write_text(json.dumps(recipe))
            command("sweep", "recipe.yaml", "--folder", "sweep", folder=folder)
            sweep = SweepFolder(folder / "sweep")
            rows = sorted(sweep.rows(), key=lambda row: row.number)
            if bad := [row for row in rows if row.state != "complete"]:
                raise SystemExit(f"Trial {bad[0].number} is {bad[0].state}: {folder}")
            outcomes = [sweep.outcome(row.number) for row in rows]
            noted = [outcome.solver_seconds for outcome in outcomes if outcome]
            if share:
                noted = [Archive(sweep.path / "simulations.zarr").solver_seconds]
            return {
                "errors": [row.error for row in rows],
                "batches": [row.steps for row in rows],
                "noted": noted,
            }

        return self._once(name, run)

    def fits(self, name: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Train one after another; return wall and solver seconds."""

        def run(folder: Path) -> dict[str, Any]:
            named = {"data": "heat2d", "model": "fully_connected"}
            options = self.size.options(folder / "solver.log")
            for point in points:
                command("fit", *words_of({**named, **options, **point}), folder=folder)
            return {}

        return self._once(name, run)

    def _once(self, name: str, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        folder = self.folder / name
        file = folder / "measured.json"
        if not file.is_file():
            # What was cut off begins anew.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            begin = time.monotonic()
            result = run(folder)
            wall = time.monotonic() - begin
            spent, simulations, different = metered(folder / "solver.log")
            result |= {"wall": wall, "spent": spent}
            result |= {"simulations": simulations, "different": different}
            file.write_text(json.dumps(result))
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def command(*words: str, folder: Path) -> None:
    """Type ``surrogate-flow <words>`` in a folder; its output goes to log.txt there."""
    before = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, [str(HERE), before]))
    log = folder / "log.txt"
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-m", "surrogate_flow", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise SystemExit(f"{words[0]} has failed; {log} ends with\n{tail}")


def shared(bench: Bench) -> list[Row]:
    """Return the errors of each trial, and what the solvers took."""
    size, space = bench.size, {RATE: [*bench.size.rates]}
    count = len(size.rates)
    alone, together = [], []
    for seed in range(size.seeds):
        options = {
            "seed_everything": seed,
            "data.reservoir.init_args.seed": seed,
        }
        together.append(
            bench.sweep(f"shared-{seed}", space, at_once=count, options=options)
        )
        alone.append(
            bench.sweep(
                f"alone-{seed}",
                space,
                at_once=2,
                share_simulations=False,
                options=options,
            )
        )
    rows = []
    for place, rate in enumerate(size.rates):
        mine, its = (
            [100 * part["errors"][place] for part in parts]
            for parts in (together, alone)
        )
        values = statistics.mean(mine), statistics.mean(its)
        name, alike = f"rate {rate:g}: error {_spread(mine)}", f"alone {_spread(its)}"
        rows.append(Row(name, values[0], "%", alike, values[1]))
    ours = [_costs(part) for part in together]
    peers = [{k: v / count for k, v in _costs(part).items()} for part in alone]
    for what, unit in (
        ("solver, processor", "s"),
        ("solver, as noted", "s"),
        ("simulations", "1"),
        ("different ones", "1"),
    ):
        value = statistics.mean(cost[what] for cost in ours)
        peer = statistics.mean(cost[what] for cost in peers)
        if what == "different ones":
            peer *= count  # Those of each are the same.
        rows.append(Row(f"{count} trials: {what}", value, unit, "one alone", peer))
    mine, its = (
        statistics.mean(b for part in parts for b in part["batches"])
        for parts in (together, alone)
    )
    rows.append(Row("batches of each", mine, "1", "alone", its))
    return rows


def _costs(part: dict[str, Any]) -> dict[str, float]:
    """Return what all trials of a sweep took together."""
    return {
        "solver, processor": part["spent"],
        "solver, as noted": sum(part["noted"]),
        "simulations": part["simulations"],
        "different ones": part["different"],
    }


def local(bench: Bench) -> list[Row]:
    """Return wall and solver seconds of trials here, beside those of fits."""
    size = bench.size
    rates = [3e-4 * 1.5**k for k in range(size.trials)]
    fits = bench.fits("fits", [{RATE: rate} for rate in rates])
    peer, rows = f"{size.trials} fits", []
    for at_once in size.at_once:
        part = bench.sweep(f"at-once-{at_once}", {RATE: rates}, at_once=at_once)
        name = f"{size.trials} trials, {at_once} at once"
        for what, key, unit in (
            ("wall", "wall", "s"),
            ("solver, processor", "spent", "s"),
            ("simulations", "simulations", "1"),
        ):
            rows.append(Row(f"{name}: {what}", part[key], unit, peer, fits[key]))
    return rows


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"± {spread:.2g} %"


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["shared", "local"])
    parser.add_argument("--folder", type=Path, help="keeps what was measured")
    parser.add_argument("--quick", action="store_true", help="two trials of a moment")
    parser.add_argument("--seeds", type=int, help="of part shared; three by default")
    parser.add_argument("--falls", action="store_true", help="the rate, to zero")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    with ExitStack() as resources:
        folder = options.folder or Path(
            resources.enter_context(tempfile.TemporaryDirectory())
        )
        size = replace(QUICK if options.quick else Size(), falls=options.falls)
        size = replace(size, seeds=options.seeds or size.seeds)
        bench = Bench(folder, size)
        rows = {"shared": shared, "local": local}[options.part](bench)
    report(rows, options.json)


if __name__ == "__main__":
    main()
