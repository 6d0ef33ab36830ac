"""Trials of a moment, which note that they begin and end: by these notes none runs twice."""

import sys

from optuna.trial import create_trial

from surrogate_flow.cli.sweep import attempt
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.places import Here, Jobs
from surrogate_flow.cli.sweep.recipe import SweepRecipe

#: The command line, with such trials in the place of trainings.
COMMAND = [sys.executable, __file__]

TRAINING = """
import json, pathlib, runpy, signal, sys, time
if not runpy.run_path("BEGIN")["begin"]():
    sys.exit()
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--trainer.default_root_dir") + 1])
lr = float(next(w for n, w in zip(words, words[1:]) if n.endswith(".lr")))
run = folder / "w" / str(time.time_ns())
(run / "checkpoints").mkdir(parents=True)
(run / "config.yaml").write_text("{}")
(run / "checkpoints" / "last.ckpt").write_text("")
if lr < 0:
    print("surrogate-flow: error: a rate is positive"); sys.exit(2)
def leave(steps, early):
    (run / "outcome.part").write_text(json.dumps(dict(
        batches=steps, samples=3, unique_samples=3, simulations=1, solver_seconds=1.0,
        training_seconds=1.0, samples_per_second=3.0, errors={"val_relative_l2": lr},
        ended_early=early)))
    if not early:
        ledger.write("ends\\n"); ledger.flush()
    (run / "outcome.part").rename(run / "outcome.json")
def end(number, frame):
    leave(1, True); sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
with (folder / "ledger").open("a") as ledger:
    ledger.write("begins\\n"); ledger.flush()
    for step in range(3):
        time.sleep(PAUSE)
        with (run / "metrics.csv").open("a") as metrics:
            metrics.write("" if step else "step,val_relative_l2\\n")
            metrics.write(f"{step},{lr + 1 / (1 + step)}\\n")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leave(3, False)
"""


def program(pause):
    """A command that takes the place of the program, and leaves what a run leaves."""
    training = TRAINING.replace("PAUSE", str(pause)).replace("BEGIN", attempt.__file__)
    return [sys.executable, "-S", "-c", training]


def many_trials(path):
    """The folder of a sweep of 12 trials that are complete, without their runs."""
    space = {
        "model.lr": [0.1, 0.2, 0.3, 0.4],
        "data.reservoir": ["FIFO", "FIRO", "Reservoir"],
    }
    recipe = SweepRecipe(data="heat2d", model="fno", space=space)
    folder = SweepFolder.create(path, recipe)
    with folder.held():
        for number, point in enumerate(recipe.grid(), 1):
            trial = create_trial(
                params=point, distributions=folder.distributions, value=number / 100
            )
            folder.study.add_trial(trial)
    return folder


def ledger(folder):
    """What each trial has noted, by its number."""
    return {
        int(path.parent.name): path.read_text().split()
        for path in (folder.path / "trials").glob("*/ledger")
    }


def ended(folder):
    """The trials that have noted their end."""
    return sorted(number for number, words in ledger(folder).items() if "ends" in words)


if __name__ == "__main__":
    from surrogate_flow.cli.app import main

    Here.program, Jobs.program = program(2.0), COMMAND
    main()
