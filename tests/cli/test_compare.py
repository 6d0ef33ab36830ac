"""Offline against online: every arm trains the same number of batches, and what came of it is put side by side."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import programs
import psutil
import pytest
from batch import wait_until
from programs import start
from rich.console import Console

from surrogate_flow.cli.app import main
from surrogate_flow.cli.compare import (
    Comparison,
    ComparisonError,
    ComparisonTable,
    FinishedRun,
    comparison,
    process,
    variants_of,
)
from surrogate_flow.cli.compare.process import running
from surrogate_flow.cli.compare.variant import Overrides
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.report.folder.run_folder import RunSummary

WORDS = [
    "--data=heat2d",
    "--model=fully_connected",
    "--batches=40",
    "--offline=4",
    "--data.solver.cells=[6,6]",
    "--data.solver.steps=20",
    "--data.held_out=2",
    "--data.batch_size=8",
    "--data.reservoir.capacity=100",
    "--data.reservoir.threshold=30",
    "--output=comparison",
    "--variants",
]

SHORT = ["--data.solver.steps=2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty one, to run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forked(monkeypatch):
    """Runs of a comparison are forked, as other commands of these tests are."""
    own = SimpleNamespace(**{**vars(subprocess), "Popen": programs.popen})
    monkeypatch.setattr(process, "subprocess", own)


def rows():
    with Path("comparison/comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def outcome_of(words):
    """Train without a comparison; return what the run has come to."""
    main(["fit", "--model=fully_connected", *words])
    (path,) = Path("runs").glob("*/*/outcome.json")
    outcome = RunSummary.read(path.parent)
    shutil.rmtree("runs")
    return outcome


def test_different_samples_are_those_that_were_drawn(folder, monkeypatch):
    """Of 80 stored samples 5 batches of 8 draw 40, 20 draw all; online, no more than were drawn."""
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    study = [word for word in WORDS if word.startswith("--data")]
    few = [word for word in study if "reservoir" not in word]
    main(["generate", *few, "--data.simulations=4", "--output=wave.zarr"])
    offline = ["--data=wave.zarr", "--data.batch_size=8", "--trainer.max_epochs=-1"]
    for batches, different in ((5, 40), (20, 80)):
        run = outcome_of([*offline, f"--trainer.max_steps={batches}"])
        assert (run.samples, run.unique_samples) == (8 * batches, different)
        assert run.validated == 2
    # The reservoir holds 100 samples before it gives the first.
    online = [*study, "--data.reservoir.threshold=100", "--data.simulations=30"]
    run = outcome_of([*online, "--trainer.max_steps=1"])
    assert (run.samples, run.validated) == (8, 2)
    assert run.unique_samples == 8


def test_it_is_said_when_simulations_are_used_up(folder, monkeypatch, capsys):
    """Before the steps that were asked for; not where these were trained."""
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    study = [word for word in WORDS if word.startswith("--data")]
    for steps, used_up in ((400, True), (2, False)):
        run = outcome_of(
            [*study, "--data.simulations=4", f"--trainer.max_steps={steps}"]
        )
        printed = "".join(capsys.readouterr())
        words = f"used up after {run.batches} of {steps} batches"
        assert (words in printed) == used_up, printed


@pytest.mark.timeout(280)
def test_arms_train_the_same_batches_and_are_run_once(
    folder, forked, capsys, monkeypatch
):
    """An offline and an online arm; what has ended does not run again."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    once = ["--seeds=1", "--trainer.callbacks=recorder.ValidatedOn"]
    main(["compare", *WORDS, "offline", "reservoir", *once])
    printed = capsys.readouterr().out
    assert printed.count(": done") == 3  # with the data set
    assert "relative_l2, change from offline" in printed
    runs = {(row["variant"], int(row["seed"])): row for row in rows()}
    assert len(runs) == 2
    for (variant, _), row in runs.items():
        assert int(row["batches"]) == 40
        assert int(row["samples"]) == 40 * 8
        assert float(row["solver_seconds"]) > 0
        if variant == "offline":
            assert (int(row["unique_samples"]), int(row["simulations"])) == (80, 6)
        # The process has to start, and the data to come.
        places = [f"{variant}/seed-0", *(["generate"] if variant == "offline" else [])]
        took = [Path("comparison", place, "done.json") for place in places]
        wall = sum(json.loads(path.read_text())["seconds"] for path in took)
        assert float(row["wall_seconds"]) == pytest.approx(wall)
        assert wall > float(row["training_seconds"]) + len(places)
    assert "seconds in all" in printed
    assert "offline with those of the data set" in " ".join(printed.split())
    errors = [float(row["val_relative_l2"]) for row in runs.values()]
    assert len(set(errors)) == 2
    assert Path("comparison/comparison.png").stat().st_size > 5000
    written = {p: p.stat().st_mtime_ns for p in Path("comparison").rglob("last.ckpt")}
    assert len(written) == 2
    # From a data set or from the stream: the same parameters, the same fields.
    paths = sorted(Path("comparison").glob("*/seed-*/*/*/*/validated_on.npz"))
    assert [path.parts[1] for path in paths] == ["offline", "reservoir"]
    offline, online = (np.load(path) for path in paths)
    assert online["parameters"].shape == (2, 5)
    assert online["fields"].shape == (2, 20, 1, 6, 6)
    assert np.ptp(online["fields"]) > 1
    for name in ("parameters", "fields"):
        np.testing.assert_array_equal(online[name], offline[name])

    main(["compare", *WORDS, "reservoir", *once])
    assert [row["variant"] for row in rows()] == ["reservoir"]
    for path, when in written.items():
        assert path.stat().st_mtime_ns == when
    # A held-out simulation that had failed, and a data set that was made in parts.
    (path,) = Path("comparison/reservoir").rglob("outcome.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "validated": 1}))
    Path("comparison/generate/done.json").unlink()
    main(["compare", *WORDS, "offline", "reservoir", *once])
    assert "simulations: offline over 2, reservoir over 1" in capsys.readouterr().out
    assert [bool(row["wall_seconds"]) for row in rows()] == [False, True]
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, "offline", *once, "--data.solver.diffusivity=2"])
    assert "runs of another comparison: of_study was" in capsys.readouterr().err


def test_seconds_of_a_data_set_that_was_made_in_parts_are_unknown(
    tmp_path, monkeypatch
):
    """Made in one go it counts with each run; interrupted once, nothing is known."""
    recipe = tmp_path / "one.yaml"
    recipe.write_text("name: one\n")
    folder = tmp_path / "c"
    variants = variants_of({"solver": "a.B"}, ["offline"], {})
    one = Comparison(folder, variants, 1, recipe, str(recipe), 5, 2)
    place = folder / "offline/seed-0"
    place.mkdir(parents=True)
    (place / "done.json").write_text('{"folder": ".", "seconds": 7.0}')
    ended: list[BaseException | None] = [None]

    def run_command(*_):
        (folder / "generate").mkdir(exist_ok=True)
        (folder / "offline.zarr").mkdir(exist_ok=True)
        if error := ended.pop(0):
            raise error

    monkeypatch.setattr(comparison, "run_command", run_command)
    console = Console(quiet=True)
    one._generate(console)
    assert one.seconds(variants[0], 0) >= 7
    shutil.rmtree(folder / "generate")
    (folder / "offline.zarr").rmdir()
    ended += [KeyboardInterrupt(), None]
    with pytest.raises(KeyboardInterrupt):
        one._generate(console)
    one._generate(console)
    assert one.seconds(variants[0], 0) is None


def test_a_run_that_fails_shows_the_end_of_its_log(folder, forked, capsys):
    """Its words, and where the rest of them is."""
    # No look at the settings could tell: nobody listens there.
    late = ["surrogate_flow.cluster.Existing", "address=tcp://127.0.0.1:9", "timeout=1"]
    late = [f"--data.cluster{'.' if '=' in w else '='}{w}" for w in late]
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, "reservoir", *late])
    said = capsys.readouterr().err
    assert "reservoir, seed 0: the run failed (exit status 2)" in said
    assert "does not answer within 1 s" in said
    assert "comparison/reservoir/seed-0/log.txt ends with" in said


@pytest.mark.parametrize("name", ["reservoir", "batches"])
def test_what_is_compared_is_one_thing(name, folder):
    """Runs of another reservoir, or of other batches, are not mixed with these."""
    recipe = Path("one.yaml")
    recipe.write_text("name: one\n")
    Path("c").mkdir()
    same = dict(
        folder=Path("c"),
        variants=[],
        seeds=1,
        model="one.yaml",
        batches=5,
        offline=2,
        workflow=recipe,
        overrides=Overrides(reservoir={"capacity": 7}),
    )
    note = Comparison(**same)._shared()
    Path("c/comparison.json").write_text(json.dumps(note))
    Comparison(**same).run(Console(quiet=True))
    reservoir = {"overrides": Overrides(reservoir={"capacity": 8})}
    other = {"reservoir": reservoir, "batches": {"batches": 6}}[name]
    with pytest.raises(ComparisonError, match=f"of another comparison: {name} was"):
        Comparison(**{**same, **other}).run(Console(quiet=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["offlin"], "--variants: no 'offlin'. Did you mean 'offline'"),
        (
            ["offline", "--data.reservoir=FIFO"],
            "gives each variant a policy of its own",
        ),
        (
            ["offline", "--bathces=3"],
            "unknown option '--bathces'. Did you mean '--batches'",
        ),
        (
            ["offline", "--trainer.max_time"],
            "expected a value after --trainer.max_time",
        ),
        (["offline", "--data.reservoir.capcity=3"], "capcity"),
        (["offline", "reservoir", "--data.reservoir.threshold=500"], "threshold"),
        (["offline", "reservoir", "--data.reservoir.threshold=soon"], "threshold"),
        (["reservoir", "--data.simulations=1"], "threshold can never be reached"),
        (["offline", "--trainer.precision=7"], "precision"),
        (["offline", "--data.solver.cells=[0,6]"], "cells"),
        (["offline", "--model=fully_connected_autoregressive", *SHORT], "2 steps"),
    ],
)
def test_mistakes_are_named(folder, words, message, capsys, monkeypatch):
    """Before anything runs, whichever arm it is that could not."""
    runs = []
    monkeypatch.setattr(comparison, "run_command", lambda *call: runs.append(call))
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, *words])
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not runs
    assert not list(folder.iterdir())


def test_a_model_that_does_not_fit_is_refused_first(folder, monkeypatch, capsys):
    """A Fourier network for fields without dims: nothing runs, no folder is made."""
    runs = []
    monkeypatch.setattr(comparison, "run_command", lambda *call: runs.append(call))
    with pytest.raises(SystemExit):
        main(["compare", "--data=lorenz", "--model=fno", "--output=comparison"])
    said = capsys.readouterr().err
    assert "fifo, before anything has run: FNO" in said
    assert not runs
    assert not list(folder.iterdir())


def test_a_study_of_stored_data_cannot_be_compared(folder, capsys):
    """What is compared is how simulations reach the trainer."""
    with pytest.raises(SystemExit):
        main(["compare", "--data=some.zarr", "--model=fully_connected"])
    assert "compare simulates: expected a workflow" in capsys.readouterr().err


def test_recipes_with_a_class_of_their_own_keep_it():
    """Whatever the form of the recipe, only its reservoir and its end change."""
    recipe = {
        "class_path": "surrogate_flow.OnlineData",
        "init_args": {"solver": "a.B", "simulations": 5},
    }
    (variant,) = variants_of(recipe, ["firo"], {"capacity": 9, "threshold": 3})
    assert variant.recipe["class_path"] == "surrogate_flow.OnlineData"
    assert variant.recipe["init_args"] == {
        "solver": "a.B",
        "simulations": None,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIRO",
            "init_args": {"capacity": 9, "threshold": 3},
        },
    }
    assert recipe["init_args"]["simulations"] == 5
    (variant,) = variants_of(
        {"solver": "a.B"}, ["fifo"], {"capacity": 9, "threshold": 3}
    )
    assert variant.recipe["reservoir"]["init_args"] == {"capacity": 9}
    with pytest.raises(RecipeError):
        variants_of(recipe, ["lifo"], {})


def outcome(error, **changed):
    numbers = {"batches": 10, "samples": 40, "unique_samples": 20, "simulations": 2}
    numbers |= {"solver_seconds": 1.0, "training_seconds": 2.0}
    errors = {"val_relative_l2": error, "val_loss": 7.0}
    return RunSummary(
        **{**numbers, "samples_per_second": 20.0, "errors": errors, **changed}
    )


def finished(**variants):
    """A table of these runs: a list of (outcome, seconds) for each variant."""
    return ComparisonTable(
        [
            FinishedRun(variant, seed, *run)
            for variant, runs in variants.items()
            for seed, run in enumerate(runs)
        ]
    )


def cells(table, title):
    console = Console(width=100, record=True)
    console.print(table.table())
    lines = console.export_text().splitlines()
    (row,) = (line for line in lines if f"│ {title}" in line)
    return [cell.strip() for cell in row.split("│")[2:-1]]


def column(table, path, name):
    table.write_csv(path)
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_the_table_shows_mean_spread_and_change():
    """0.2 and 0.4 against 0.1 and 0.1: 0.3 ± 0.1, and minus two thirds."""
    table = finished(
        offline=[(outcome(0.2),), (outcome(0.4),)], firo=[(outcome(0.1),)] * 2
    )
    spread = f"0.3 ± {np.std([0.2, 0.4], ddof=1):.2g}"
    assert cells(table, "relative_l2 ") == [spread, "0.1"]
    assert cells(table, "relative_l2, change") == ["", "-67 %"]
    assert "val_loss" not in table.errors


def test_seconds_in_all_are_a_dash_where_they_are_unknown(tmp_path):
    """Unknown in one run, they are unknown of the variant; the cell of the CSV is empty."""
    old, new = outcome(0.2), outcome(0.1)
    table = finished(offline=[(old, 40.0), (old, None)], firo=[(new, 30.0)] * 2)
    assert cells(table, "seconds in all") == ["-", "30"]
    seconds = column(table, tmp_path / "all.csv", "wall_seconds")
    assert seconds == ["40.0", "", "30.0", "30.0"]


def test_variants_that_were_validated_otherwise_are_marked(tmp_path):
    """7 of 10 simulations beside 10: a row, a column and a warning; else no warning."""
    full = [(outcome(0.2, validated=10),)] * 2
    short = [(outcome(0.1, validated=n),) for n in (7, 8)]
    table = finished(offline=full, fifo=short, firo=[(outcome(0.1),)] * 2)
    assert cells(table, "held-out simulations") == ["10", "7 to 8", "-"]
    assert "simulations: offline over 10, fifo over 7 to 8, firo" in table.warning()
    counts = column(table, tmp_path / "all.csv", "validated")
    assert counts == ["10", "10", "7", "8", "", ""]
    assert finished(offline=full, firo=[(outcome(0.1),)]).warning() is None
    assert finished(offline=full, firo=full).warning() is None


def test_outcomes_of_older_versions_are_read(tmp_path):
    """Without the number of simulations that were validated on."""
    numbers = dataclasses.asdict(outcome(0.2))
    del numbers["validated"]
    (tmp_path / "outcome.json").write_text(json.dumps(numbers))
    assert RunSummary.read(tmp_path) == outcome(0.2)


@pytest.fixture
def runs(folder, monkeypatch):
    """The folders of runs that end at once, each beside one of somebody else."""
    made = []

    def run_command(words, *place):
        (root,) = (w.partition("=")[2] for w in words if "default_root_dir" in w)
        mine = Path(root, "heat2d", "now")
        beside = Path(root).parent / "heat2d"
        strangers = [beside / f"{len(made)}-{n}" for n in range(9)]
        made.append(mine)
        for run in (*strangers, mine):
            run.mkdir(parents=True)
            one = outcome(0.1 if run == mine else 0.9, batches=40)
            (run / "outcome.json").write_text(json.dumps(dataclasses.asdict(one)))
            (run / "metrics.csv").write_text("step,val_relative_l2\n39,0.1\n")

    monkeypatch.setattr(comparison, "run_command", run_command)
    return made


def test_a_run_is_its_own_whoever_ends_beside_it(runs):
    """As one whose comparison was killed does; cut off itself, it begins in a new folder."""
    main(["compare", *WORDS, "reservoir", "--seeds=1"])
    Path("comparison/reservoir/seed-0/done.json").unlink()
    main(["compare", *WORDS, "reservoir", "--seeds=1"])
    assert [run.parts[-3] for run in runs] == ["run-1", "run-2"]
    assert [float(row["val_relative_l2"]) for row in rows()] == [0.1]
    assert not Path("comparison/.lock").exists()


def test_a_folder_of_another_version_is_gone_on_with_under_a_warning(runs, capsys):
    """It names the versions, also the next time; nothing is said if nothing runs."""
    words = ["compare", *WORDS, "reservoir"]
    note = Path("comparison/comparison.json")
    main([*words, "--seeds=1"])
    mine = importlib.metadata.version("surrogate-flow")
    described = json.loads(note.read_text())
    assert described["versions"] == [mine]
    main([*words, "--seeds=2"])
    assert "Warning" not in capsys.readouterr().out
    described["versions"] = ["0.0.1"]
    note.write_text(json.dumps(described))
    main([*words, "--seeds=2"])
    assert "Warning" not in capsys.readouterr().out
    for seeds in (3, 4):
        main([*words, f"--seeds={seeds}"])
        said = capsys.readouterr().out
        assert f"holds runs of surrogate-flow 0.0.1; this is {mine}" in said
        assert json.loads(note.read_text())["versions"] == ["0.0.1", mine]
    del described["versions"]
    note.write_text(json.dumps(described))
    main([*words, "--seeds=5"])
    assert "surrogate-flow (version not noted); this is" in capsys.readouterr().out


def test_ctrl_c_ends_the_run_under_way(folder, capsys):
    """The comparison ends, and so does its child; the next one begins it anew.

    Until then no other one may use its folder.
    """
    words = ["compare", *WORDS, "reservoir", "--batches=100000"]
    process = start(*words, cwd=folder, start_new_session=True)
    log = folder / "comparison/reservoir/seed-0/log.txt"
    try:
        wait_until(lambda: log.is_file() and "batch " in log.read_text(), 60)
        with pytest.raises(SystemExit):
            main(["compare", *WORDS, "reservoir", "--batches=100000"])
        said = capsys.readouterr().err
        assert f"in use by another comparison: process {process.pid} on" in said
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGINT
    assert not list(folder.rglob("comparison.csv"))
    assert not list(folder.rglob("done.json"))
    assert not list(folder.glob("comparison/.lock"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_run_that_does_not_end_is_killed_and_named(tmp_path):
    """Deaf to Ctrl-C: killed with its child, named; what interrupted goes on its way."""
    deaf = (
        "import signal, subprocess\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    console, log = Console(width=500, record=True), tmp_path / "log.txt"
    words = [sys.executable, "-c", deaf]
    with (
        pytest.raises(KeyboardInterrupt),
        running(words, log, "firo, seed 2", console, end_seconds=1.0),
    ):
        pid = int(wait_until(log.read_text))
        raise KeyboardInterrupt
    said = console.export_text()
    assert "did not end within 1 s, and was killed" in said
    assert said.startswith("firo, seed 2 (")
    wait_until(lambda: not psutil.pid_exists(pid))
