"""A sweep on Slurm whose trials, workers and controller are killed at random moments.

Each trial notes in a file of its own, by a Lightning callback, when it begins and which
steps it trains; a step is read off the values of its field, which no other step of any
simulation has. With `FIFO` each is trained once. A trial that is killed goes on from a
checkpoint: what it noted after that counts no more. At the end, from these notes alone:

- *lost*: trials without all steps of the data set,
- *twice*: trials of which two processes trained at once, or that began after its end,
- *repeated*: steps that a trial had more than once.

A trial that is killed is any, or (*training*) one that has trained a batch.

Run it with a Slurm of its own: ``eval "$(tests/slurm-local.sh env)"``.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import xarray as xr
import yaml
from rich.console import Console
from rich.table import Table

from surrogate_flow import FieldSpec, Parameter, Solver, Variable
from surrogate_flow.cli.sweep.attempt import Attempt
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.dataset import Archive
from surrogate_flow.solvers.solver import Run

STEPS, CELLS, STRIDE, HELD_OUT = 10, 8, 64, 2
NOTES = "notes.txt"
PAUSE = 0.2  # seconds that a batch takes, at least


class Numbered(Solver):
    """u = 64 n + t, for step t of simulation n; a step takes `pause` seconds."""

    spec = FieldSpec(
        parameters=(Parameter("a", 0.0, 1.0),),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(CELLS,),
        times=tuple(float(k) for k in range(STEPS)),
    )

    def __init__(self, pause: float = 0.2) -> None:
        self.pause = pause

    def solve(self, parameters: Any) -> Iterator[xr.Dataset]:
        """Never called: `start` knows the number."""
        raise NotImplementedError

    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Yield the steps one by one."""
        for k, t in enumerate(self.spec.times):
            time.sleep(self.pause)
            u = np.full((1, CELLS), run.simulation * STRIDE + k, np.float32)
            yield xr.Dataset({"u": (("time", "x"), u)}, {"time": [t]})


class Notes(L.Callback):
    """Writes what a trial trains, in the folder of all its attempts."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the process, and the batch that it goes on from."""
        _note(trainer, "begins")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the steps of a batch, by their values."""
        known = batch.target.cpu().numpy().reshape(len(batch.step), -1)[:, 0]
        steps = ",".join(str(round(float(value))) for value in known)
        _note(trainer, "trains", steps)
        time.sleep(PAUSE)


def _note(trainer: L.Trainer, *words: str) -> None:
    known = [words[0], str(os.getpid()), str(trainer.global_step), *words[1:]]
    with Path(trainer.default_root_dir, NOTES).open("a") as file:
        file.write(" ".join(known) + "\n")


def recipe(trials: int, simulations: int, jobs: int) -> dict[str, Any]:
    """Return the recipe of the sweep; the workflow is beside it."""
    size = math.ceil(math.sqrt(trials))
    slurm = {"class_path": "surrogate_flow.cluster.Slurm"}
    small = {"cores": 1, "memory": "900 MB", "walltime": "2h", "interface": "lo"}
    workflow = {
        "name": "numbered",
        "solver": {"class_path": "sweep_kills.Numbered"},
        "simulations": simulations,
        "held_out": HELD_OUT,
        "batch_size": 50,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIFO",
            "init_args": {"capacity": 500},
        },
        "cluster": {**slurm, "init_args": {**small, "n_workers": 2}},
    }
    Path("numbered.yaml").write_text(yaml.safe_dump(workflow), "utf-8")
    return {
        "data": "numbered.yaml",
        "model": "fully_connected",
        "options": {
            "model.network.init_args.widths": [8],
            "trainer.callbacks": [{"class_path": "sweep_kills.Notes"}],
            "trainer.val_check_interval": 5,
            "trainer.logger": False,
        },
        # Each value is tried before anything runs: few values, many trials.
        "space": {
            "model.optimizer.init_args.lr": [k / 1000 for k in range(1, 1 + size)],
            "seed_everything": [*range(size)],
        },
        "trials": trials,
        "at_once": jobs,
        "jobs": {**slurm, "init_args": small},
    }


def control(log: Path) -> subprocess.Popen[bytes]:
    """Start whoever runs the sweep, or goes on with it."""
    begun = Path("sweeps/s/journal.log").exists()
    words = ["resume", "sweeps/s"] if begun else ["s.yaml"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "surrogate_flow", "sweep", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def processes(folder: SweepFolder) -> tuple[list[int], list[int]]:
    """Return those of all trials, and those that have trained a batch."""
    files = [*(folder.path / "trials").glob("*/attempt-*[0-9]")]
    found = {f: Attempt(f).handle["pid"] for f in files if Attempt(f).trains}
    notes = {f: f.with_name(NOTES) for f in found}
    known = {f: n.read_text() for f, n in notes.items() if n.exists()}
    return [*found.values()], [found[f] for f in known if f"s {found[f]} " in known[f]]


def kill(kind: str, folder: SweepFolder, chance: random.Random) -> bool:
    """Kill a trial, or the job of a worker; return whether there was one."""
    if kind != "worker":
        found, trained = processes(folder)
        # Most of a short trial is its start.
        found = trained if kind == "training" else found
        if found:
            os.kill(chance.choice(found), signal.SIGKILL)
        return bool(found)
    words = ["squeue", "-h", "--states=RUNNING", "--name=dask-worker", "-o", "%i"]
    jobs = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if ids := jobs.split():
        words = ["scancel", "--full", "--signal=KILL", chance.choice(ids)]
        subprocess.run(words, check=False)
    return bool(ids)


def harass(trials: int, kills: int, seed: int) -> Counter[str]:
    """Run the sweep to its end, with kills meanwhile; return how many of each kind."""
    chance, done = random.Random(seed), Counter[str]()
    fifth = max(1, kills // 5)
    later = ["controller"] * fifth + ["trial"] * fifth
    later += ["training"] * (kills - 3 * fifth)
    chance.shuffle(later)
    # Workers live while simulations run, which is at the beginning.
    early, later = ["worker"] * fifth + later[: kills // 5], later[kills // 5 :]
    chance.shuffle(early)
    plan, log = early + later, Path("controller.log")
    folder: SweepFolder | None = None
    process, following = control(log), time.monotonic() + 30.0
    while True:
        time.sleep(0.2)
        if folder is None:
            if not Path("sweeps/s/journal.log").exists() or process.poll() is not None:
                assert process.poll() is None, log.read_text()
                continue
            folder = SweepFolder(Path("sweeps/s"))
        if process.poll() is not None:
            if not folder.left:
                return done
            process = control(log)
        ended, number = trials - folder.left, len(plan) - sum(done.values())
        # The later ones are spread over all that is left.
        share = 1 - number / max(1, len(later))
        due = number > len(later) or ended >= 0.9 * share * trials
        if not number or not due or time.monotonic() < following:
            continue
        kind = plan[len(plan) - number]
        if kind == "controller":
            process.kill()
            process.wait()
        elif not kill(kind, folder, chance):
            continue
        done[kind] += 1
        print(f"{ended} of {trials} have ended: killed a {kind}", flush=True)
        following = time.monotonic() + chance.uniform(5.0, 20.0)


def audit(folder: SweepFolder) -> list[tuple[str, int]]:
    """Return what the notes of the trials say, as questions and counts."""
    archive = Archive(folder.path / "simulations.zarr")
    trained = [n for n in archive.complete() if n >= HELD_OUT]
    steps = {n * STRIDE + k for n in trained for k in range(STEPS)}
    found = Counter[str]()
    for number in range(folder.recipe.count):
        counts, process, stayed = Counter[tuple[int, int]](), "", True
        path = folder.trial(number) / NOTES
        for line in path.read_text().splitlines() if path.exists() else ():
            word, pid, batch, *rest = line.split()
            if word == "begins":
                found["attempts"] += 1
                stayed, process = not process, pid
                if {step for _, step in counts} == steps:
                    found["twice"] += 1
                for key in [key for key in counts if key[0] > int(batch)]:
                    del counts[key]
            elif pid != process:
                found["twice"] += 1
            else:
                counts.update((int(batch), int(step)) for step in rest[0].split(","))
        each = Counter[int]()
        for (_, step), count in counts.items():
            each[step] += count
        exact = {*each} == steps and set(each.values()) == {1}
        found["lost"] += {*each} < steps
        found["foreign"] += bool({*each} - steps)
        found["stayed" if stayed else "went on"] += 1
        found["stayed, each step once" if stayed else "went on, each step once"] += (
            exact
        )
        found["repeated"] += sum(count - 1 for count in each.values())
    states = Counter(row.state for row in folder.rows())
    order = [
        *("attempts", "lost", "twice", "foreign", "repeated", "stayed"),
        *("stayed, each step once", "went on", "went on, each step once"),
    ]
    return [
        ("simulations in the data set", len(trained)),
        ("trials complete", states["complete"]),
        *((name, found[name]) for name in order),
    ]


def main() -> None:
    """Run it, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--simulations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    os.environ["PYTHONPATH"] = paths
    os.environ.setdefault("SURROGATE_FLOW_REPORT", "no")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sweep-kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    plain = recipe(options.trials, options.simulations, options.jobs)
    Path("s.yaml").write_text(yaml.safe_dump(plain), "utf-8")
    began = time.monotonic()
    done = harass(options.trials, options.kills, options.seed)
    table = Table("", "count")
    for kind, count in sorted(done.items()):
        table.add_row(f"killed: {kind}", str(count))
    for name, count in audit(SweepFolder(Path("sweeps/s"))):
        table.add_row(name, str(count))
    table.add_row("seconds", f"{time.monotonic() - began:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
