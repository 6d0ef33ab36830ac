"""Training throughput of one rank and of two (DDP over gloo), on the same total work.

Each run is a whole ``surrogate-flow fit`` of the heat equation in a process of its
own: the same simulations, of which every sample is trained exactly once (FIFO); batches
of 64 samples, which two ranks share (32 each). Threads are those that Lightning
chooses: all cores for one rank, half of them for each of two. Solvers run on the same
cores.

*training* is samples a second from the first batch to the last, of all ranks together.
*run* is samples a second of the whole command, with its start, validation and report.
*trained* counts the samples: the ranks' own, added up, against what was simulated.
Values are medians over rounds, in which the cases take turns. The peer is one rank.

On a machine with two cores one rank uses both already, so two cannot be twice as fast:
the figure says what the ranks cost each other. ``--devices`` and ``--accelerator gpu``
measure on a machine with several GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import track
from row import Row, report

BATCH = 64
STEPS = 100
HELD_OUT = 4
TIMEOUT = 900.0


def workflow(simulations: int, ranks: int) -> dict[str, Any]:
    """Return a recipe; JSON is YAML."""
    return {
        "name": "ranks",
        "solver": {
            "class_path": "surrogate_flow.solvers.Heat2D",
            "init_args": {"cells": [32, 32], "steps": STEPS},
        },
        "simulations": simulations,
        "held_out": HELD_OUT,
        "batch_size": BATCH // ranks,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIFO",
            "init_args": {"capacity": 2000},
        },
    }


def run(simulations: int, ranks: int, accelerator: str) -> tuple[float, float, int]:
    """Return samples/s while training, samples/s of the whole run, and their number."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "workflow.yaml").write_text(json.dumps(workflow(simulations, ranks)))
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        start = time.time()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "surrogate_flow", "fit"),
                *("--data", "workflow.yaml", "--model", "fully_connected"),
                f"--trainer.devices={ranks}",
                f"--trainer.accelerator={accelerator}",
                f"--trainer.strategy={'ddp' if ranks > 1 else 'auto'}",
                "--trainer.callbacks+=stopwatch.Stopwatch",
                f"--trainer.callbacks.folder={folder}",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"A run with {ranks} ranks failed:\n{done.stderr}")
        each = [json.loads((folder / f"{k}.json").read_text()) for k in range(ranks)]
    samples = sum(rank["samples"] for rank in each)
    began, ended = min(r["first"] for r in each), max(r["last"] for r in each)
    return samples / (ended - began), samples / (time.time() - start), samples


def measure(simulations: int, devices: int, accelerator: str, rounds: int) -> list[Row]:
    """Run one rank and several in turn; return the rows of the table."""
    cases: dict[int, list[tuple[float, float, int]]] = {1: [], devices: []}
    for _ in track(range(rounds), "rounds", transient=True):
        for ranks, found in cases.items():
            found.append(run(simulations, ranks, accelerator))
    rows = []
    for ranks in cases:
        plural = "s" if ranks > 1 else ""
        for i, what in enumerate(("training", "run")):
            mine, one = (statistics.median(r[i] for r in cases[k]) for k in (ranks, 1))
            case = f"{what}, {ranks} rank{plural}"
            rows.append(Row(case, mine, "samples/s", "1 rank", one))
        fewest = min(r[2] for r in cases[ranks])
        case = f"trained, {ranks} rank{plural}"
        rows.append(Row(case, fewest, "samples", "simulated", simulations * STEPS))
    return rows


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--devices", type=int, default=2, help="ranks to compare with")
    parser.add_argument("--accelerator", default="cpu", help="as Lightning's")
    parser.add_argument("--simulations", type=int, default=600)
    options = parser.parse_args()
    simulations, rounds = (24, 1) if options.quick else (options.simulations, 3)
    rows = measure(simulations, options.devices, options.accelerator, rounds)
    report(rows, options.json)


if __name__ == "__main__":
    main()
