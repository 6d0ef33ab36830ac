"""Offline against online: every arm trains the same number of batches, and what came of it is put side by side."""

import contextlib
import csv
import dataclasses
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
import pytest
import yaml
from batch import wait_until
from folders import write_run
from programs import start
from rich.console import Console

from surrogate_flow.cli.app import main
from surrogate_flow.cli.compare import command
from surrogate_flow.cli.compare.table import ComparisonTable, FinishedRun, gains_of
from surrogate_flow.cli.compare.variant import Overrides, cases_of
from surrogate_flow.cli.sweep.controller import Controller
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import SweepRecipe
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
    monkeypatch.setattr("surrogate_flow.cli.sweep.places.subprocess", own)
    return own


@pytest.fixture
def unrun(monkeypatch):
    """Comparisons that would run now, none of which does."""
    called = []
    monkeypatch.setattr(Controller, "run", lambda self, _: called.append(self))
    return called


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
    assert printed.count(" is complete: relative L2 error") == 2
    assert "Data set: comparison/offline.zarr, 6 of 6 simulations" in printed
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
        folder = SweepFolder(Path("comparison"))
        (trial,) = (r for r in folder.rows() if r.point["case"] == variant)
        made = folder.study.user_attrs["data set seconds"]
        wall = trial.wall_seconds + made * (variant == "offline")
        assert float(row["wall_seconds"]) == pytest.approx(wall)
        assert trial.wall_seconds > float(row["training_seconds"])
        assert made > 0
    assert "seconds in all" in printed
    assert "offline with those of its part of the data set" in " ".join(printed.split())
    errors = [float(row["val_relative_l2"]) for row in runs.values()]
    assert len(set(errors)) == 2
    assert Path("comparison/comparison.png").stat().st_size > 5000
    written = {p: p.stat().st_mtime_ns for p in Path("comparison").rglob("last.ckpt")}
    assert len(written) == 2
    # From a data set or from the stream: the same parameters, the same fields.
    # Online runs come first.
    paths = sorted(Path("comparison").glob("trials/*/*/*/validated_on.npz"))
    assert [path.parts[3] for path in paths] == ["heat2d", "offline_stored"]
    online, offline = (np.load(path) for path in paths)
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
    (path,) = Path("comparison/trials/0000").rglob("outcome.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "validated": 1}))
    SweepFolder(Path("comparison")).study.set_user_attr("data set seconds", None)
    main(["compare", *WORDS, "offline", "reservoir", *once])
    assert "simulations: offline over 2, reservoir over 1" in capsys.readouterr().out
    assert [bool(row["wall_seconds"]) for row in rows()] == [False, True]
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, "offline", *once, "--data.solver.diffusivity=2"])
    said = capsys.readouterr().err
    assert "is of another sweep: the study of the data set has changed" in said
    assert "data.solver.diffusivity was None, now '2'" in said
    assert Path("comparison/report.html").is_file()


def test_seconds_of_a_data_set_that_was_made_in_parts_are_unknown(
    folder, unrun, monkeypatch
):
    """Made in one go they are noted; interrupted once, they are not."""
    stopped = [130, 0, 0]

    def generate(data, path, console):
        path.mkdir(exist_ok=True)
        return stopped.pop(0)

    monkeypatch.setattr(command, "generate", generate)
    words = ["compare", *WORDS, "offline", "--seeds=1"]
    noted = []
    for status in (130, 0, 0):
        if len(noted) == 2:
            shutil.rmtree("comparison/offline.zarr")
        with pytest.raises(SystemExit) if status else contextlib.nullcontext():
            main(words)
        attributes = SweepFolder(Path("comparison")).study.user_attrs
        noted.append("data set seconds" in attributes)
    assert noted == [False, False, True]
    assert len(unrun) == 2


def test_a_run_that_fails_is_named_and_the_others_go_on(folder, forked, capsys):
    """With the end of its log, and exit status 1; typed again, it alone runs again."""
    # No look at the settings could tell: nobody listens there.
    late = ["surrogate_flow.cluster.Existing", "address=tcp://127.0.0.1:9", "timeout=1"]
    late = [f"--data.cluster{'.' if '=' in w else '='}{w}" for w in late]

    def popen(words, **options):
        fails = "surrogate_flow.reservoir.FIFO" in words
        return programs.popen([*words, *late] if fails else words, **options)

    forked.Popen = popen
    for again in (False, True):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *WORDS, "fifo", "reservoir", "--seeds=1"])
        assert ended.value.code == 1
        log = SweepFolder(Path("comparison")).log(2 if again else 0)
        said = capsys.readouterr().err
        assert f"fifo, seed 0: the run failed. {log} ends with" in said
        assert "does not answer within 1 s" in said
        assert [row["variant"] for row in rows()] == ["reservoir"]
    assert len(list(Path("comparison/trials").glob("*"))) == 3


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("--data.reservoir.capacity=90", "init_args.capacity was 100, now 90"),
        ("--batches=41", "its options.trainer.max_steps is 40, expected 41"),
        ("--offline=5", "data.simulations was 4, now 5"),
    ],
)
def test_what_is_compared_is_one_thing(other, said, folder, unrun, capsys, monkeypatch):
    """Runs of another reservoir, of other batches or of more simulations are not mixed with these."""
    monkeypatch.setattr(command, "generate", lambda *_: 0)
    words = ["compare", *WORDS, "offline", "reservoir", "--seeds=1"]
    main(words)
    SweepFolder(Path("comparison")).begin()
    with pytest.raises(SystemExit):
        main([*words, other])
    told = capsys.readouterr().err
    assert "is of another sweep" in told
    assert said in told
    assert len(unrun) == 1


def test_what_an_older_version_has_compared_is_left_alone(folder, unrun, capsys):
    """One line says what to do."""
    Path("comparison").mkdir()
    Path("comparison/comparison.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, "fifo"])
    assert "of an older version, which cannot go on. Name" in capsys.readouterr().err
    assert [path.name for path in Path("comparison").iterdir()] == ["comparison.json"]


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
        (["fifo", "--data.solver.steps=${sed}"], "steps: no option 'sed'"),
        (["fifo", *["--trainer.callbacks+=Timer"] * 2], "expected it once"),
        (["offline", "reservoir", "--data.reservoir.threshold=500"], "threshold"),
        (["offline", "reservoir", "--data.reservoir.threshold=soon"], "threshold"),
        (["reservoir", "--data.simulations=1"], "threshold can never be reached"),
        (["offline", "--trainer.precision=7"], "precision"),
        (["offline", "--data.solver.cells=[0,6]"], "cells"),
        (["offline", "--model=fully_connected_autoregressive", *SHORT], "2 steps"),
    ],
)
def test_mistakes_are_named(folder, words, message, capsys, unrun):
    """Before anything runs, whichever arm it is that could not."""
    with pytest.raises(SystemExit):
        main(["compare", *WORDS, *words])
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not unrun
    assert not list(folder.iterdir())


def test_a_model_that_does_not_fit_is_refused_first(folder, unrun, capsys):
    """A Fourier network for fields without dims: nothing runs, no folder is made."""
    with pytest.raises(SystemExit):
        main(["compare", "--data=lorenz", "--model=fno", "--output=comparison"])
    said = capsys.readouterr().err
    assert "case: fifo is refused: FNO" in said
    assert not unrun
    assert not list(folder.iterdir())


def test_a_study_of_stored_data_cannot_be_compared(folder, capsys):
    """What is compared is how simulations reach the trainer."""
    with pytest.raises(SystemExit):
        main(["compare", "--data=some.zarr", "--model=fully_connected"])
    assert "compare simulates: expected a workflow" in capsys.readouterr().err


def test_each_policy_takes_the_arguments_that_it_has(folder):
    """Of a recipe of whatever form, and of the command line; the order of samples follows the seed."""
    arguments = {"solver": "a.B", "simulations": 5, "batch_size": 7}
    nested = {"class_path": "surrogate_flow.OnlineData", "init_args": arguments}
    overrides = Overrides.read(["--data.reservoir.capacity=9", "--data.solver.n=2"])
    for recipe in (nested, arguments):
        Path("w.yaml").write_text(yaml.safe_dump(recipe))
        cases = cases_of(["offline", "firo", "fifo"], "w.yaml", "d.zarr", overrides)
        seed, own = "${seed_everything}", "data.reservoir.init_args"
        study = {"data.simulations": None, "data.solver.n": "2"}
        assert cases == {
            "firo": {
                "data": "w.yaml",
                "data.reservoir": "surrogate_flow.reservoir.FIRO",
                f"{own}.capacity": 9,
                f"{own}.threshold": 1000,
                f"{own}.seed": seed,
                **study,
            },
            "fifo": {
                "data": "w.yaml",
                "data.reservoir": "surrogate_flow.reservoir.FIFO",
                f"{own}.capacity": 9,
                **study,
            },
            "offline": {"data": "d.zarr", "data.seed": seed, "data.batch_size": 7},
        }
        assert [*cases][-1] == "offline"
    with pytest.raises(RecipeError):
        cases_of(["lifo"], "w.yaml", "d.zarr", overrides)


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


def test_a_data_set_may_have_several_sizes(folder, forked, capsys, monkeypatch):
    """Generated once, each trains on its first simulations; the gain is drawn over their samples."""
    at = WORDS.index("--offline=4")
    words = [*WORDS[:at], "--offline", "1", "4", *WORDS[at + 1 :]]
    main(["compare", *words, "offline", "reservoir", "--seeds=1"])
    printed = capsys.readouterr().out
    assert "Data set: comparison/offline.zarr, 6 of 6 simulations" in printed
    got = [(row["variant"], int(row["unique_samples"])) for row in rows()]
    assert got[:2] == [("offline 1", 20), ("offline 4", 80)]
    assert [variant for variant, _ in got[2:]] == ["reservoir"]
    few, all_of_them = rows()[:2]
    assert [few["simulations"], all_of_them["simulations"]] == ["3", "6"]
    few, all_of_them = (float(row["solver_seconds"]) for row in (few, all_of_them))
    assert few == pytest.approx(all_of_them / 2)
    for size in (1, 4):
        assert f"relative_l2, change from offline {size}" in printed
    one, four = (float(row["wall_seconds"]) for row in rows()[:2])
    study = SweepFolder(Path("comparison"))
    walls = {str(row.point["case"]): row.wall_seconds for row in study.rows()}
    made = study.study.user_attrs["data set seconds"]
    assert one == pytest.approx(walls["offline 1"] + made / 4)
    assert four == pytest.approx(walls["offline 4"] + made)


def test_the_gain_is_of_errors_after_the_same_batches(tmp_path):
    """0.4 and 0.2 from 10 and 40 samples, each trained 8 and 2 times, against 0.1: 4 and 2."""
    table = finished(
        **{
            "offline 1": [(outcome(0.4, samples=80, unique_samples=10),)] * 2,
            "offline 4": [(outcome(0.2, samples=80, unique_samples=40),)],
            "reservoir": [(outcome(0.05),), (outcome(0.15),)],
        }
    )
    ((variant, error, different, often, gained),) = gains_of(table.rows)
    assert (variant, error) == ("reservoir", "relative L2")
    assert (different, often) == ([10, 40], [8, 2])
    assert gained == pytest.approx([4, 2])
    assert [axes.get_xlabel() for axes in table.plot().axes] == [
        "batches",
        "seconds in all",
        "different samples of the data set (each trained so often)",
    ]
    alone = finished(offline=[(outcome(0.2),)], firo=[(outcome(0.1),)])
    assert not [*gains_of(alone.rows)]


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


def test_ctrl_c_ends_the_run_under_way(folder, capsys):
    """It saves and ends, and so does the comparison; it is not taken for a whole one.

    Until then no other one may use its folder.
    """
    words = ["compare", *WORDS, "reservoir", "--batches=100000"]
    process = start(*words, cwd=folder, start_new_session=True)
    log = folder / "comparison/trials/0000/log.txt"
    try:
        wait_until(lambda: log.is_file() and "batch " in log.read_text(), 60)
        with pytest.raises(SystemExit):
            main(["compare", *WORDS, "reservoir", "--batches=100000"])
        said = capsys.readouterr().err
        assert f"comparison is run by process {process.pid} on" in said
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + signal.SIGINT
    assert "Type the same command again to go on." in said
    assert not list(folder.rglob("comparison.csv"))
    assert not list(folder.glob("comparison/.lock"))
    sweep = SweepFolder(folder / "comparison")
    assert sweep.outcome(0) is None
    assert sweep.outcome(0, early=True).batches < 100000
    assert [row.state for row in sweep.rows()] == [
        "interrupted",
        "waiting",
        "waiting",
    ]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_the_page_of_a_comparison_names_its_runs(folder):
    """By variant and seed, and of several comparisons by their folders, too."""
    cases = {"fifo": {"data": "w"}, "offline": {"data": "d.zarr"}}
    space = {"seed_everything": [0, 1]}
    recipe = SweepRecipe(model="m", cases=cases, space=space, share_simulations=False)
    for name in ("one", "two"):
        sweep = SweepFolder.create(Path(name), recipe)
        for number in range(4):
            sweep.study.tell(sweep.begin().number, 0.1)
            write_run(sweep.trial(number) / "w" / "run", without=["cases.nc"])
    for paths, before in ((["one"], [""]), (["one", "two"], ["one/", "two/"])):
        main(["report", *paths])
        page = Path("comparison.html").read_text()
        for place in before:
            for variant in ("fifo", "offline"):
                for seed in (0, 1):
                    assert f"<th>{place}{variant}/seed-{seed}</th>" in page
        assert ">0003<" not in page
