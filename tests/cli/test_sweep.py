"""Sweeps: each trial runs once and is not lost, whatever is killed; what a recipe may not say."""

import collections
import contextlib
import html
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import moments
import msgspec
import programs
import psutil
import pytest
import yaml
from batch import wait_until
from bokeh.models import Title
from optuna.storages.journal import JournalFileSymlinkLock
from optuna.trial import TrialState

from surrogate_flow.cli.app import main
from surrogate_flow.cli.sweep import checks, command, table
from surrogate_flow.cli.sweep.attempt import Attempt
from surrogate_flow.cli.sweep.checks import require_possible
from surrogate_flow.cli.sweep.controller import Controller
from surrogate_flow.cli.sweep.folder import SweepError, SweepFolder
from surrogate_flow.cli.sweep.follow import SweepFollower
from surrogate_flow.cli.sweep.page import _scaled, sweep_page
from surrogate_flow.cli.sweep.places import Here
from surrogate_flow.cli.sweep.recipe import Range, SweepRecipe, words_of
from surrogate_flow.data.online import OnlineData
from surrogate_flow.dataset import Archive
from surrogate_flow.ensemble.sharing import SharedStudy, Sharing
from surrogate_flow.fields import Direct
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.report.live.trials import Trials
from surrogate_flow.reservoir import FIRO
from surrogate_flow.solvers import Heat2D


class Moments(Here):
    """Runs trainings of a moment."""

    def __init__(self, pause=0.02):
        super().__init__()
        self.program = moments.program(pause)


def sweep(folder, **changed):
    """The folder of a sweep without an ensemble."""
    plain = {
        "data": "heat2d",
        "model": "fno",
        "space": {"model.lr": [0.1, 0.2, 0.3]},
        "share_simulations": False,
        "at_once": 4,
    }
    return SweepFolder.create(folder, SweepRecipe(**{**plain, **changed}))


def test_the_best_comes_first_and_what_fails_names_itself(tmp_path):
    """A failed trial leaves the others as they are."""
    space = {"model.lr": [0.3, -1.0, 0.1], "seed_everything": [0, 1]}
    folder = sweep(tmp_path / "s", space=space)
    Controller(folder, Moments()).run(bool)
    rows = folder.rows()
    assert [row.state for row in rows] == [*["complete"] * 4, *["failed"] * 2]
    assert [row.error for row in rows[:4]] == [0.1, 0.1, 0.3, 0.3]
    assert {row.why for row in rows[4:]} == {"a rate is positive"}
    first, second, failed = table.grouped(rows)
    assert (first.point, first.error, first.spread) == ({"model.lr": 0.1}, 0.1, 0.0)
    assert failed.point == {"model.lr": -1.0}
    assert second.errors == [0.3, 0.3]
    head, lines = table.cells(table.grouped(rows))
    assert head[:5] == ["trials", "error", "state", "lr", "batches"]
    assert head[5:] == ["training", "in all"]
    assert lines[0][1:6] == ["10 %", "complete", "0.1", "3", "1 s"]
    assert re.fullmatch(r"\d+ s", lines[0][6])
    assert table.headline(rows, 6) == "4 of 6 trials are complete; best: trial 4, 10 %"
    assert table.written(rows).splitlines()[1].split(",")[2:4] == ["0.1", "0"]
    page = sweep_page(folder, rows)
    for words in ("4 of 6 trials", "a rate is positive", "--model.lr 0.1"):
        assert words in page
    assert folder.keep_best(rows[0]).name == "best.ckpt"
    # Nothing runs a second time.
    before = moments.ledger(folder)
    Controller(folder, Moments()).run(bool)
    assert moments.ledger(folder) == before


def ran(folder, number, name, errors, *, ends=True, seconds=10, validated=4):
    """The folder of a run of a trial, with the errors of its validations."""
    run = folder.trial(number) / "w" / name
    (run / "checkpoints").mkdir(parents=True)
    lines = [f"{step},{error}" for step, error in errors.items()]
    (run / "metrics.csv").write_text("\n".join(["step,val_relative_l2", *lines, ""]))
    last = max(errors)
    rows = ["seconds,step,validation", "3,1,", f"{seconds + 3},{last},{errors[last]}"]
    (run / "telemetry.csv").write_text("\n".join([*rows, ""]))
    for kept in ("best", "last"):
        (run / "checkpoints" / f"{kept}.ckpt").write_text(f"{kept} of {name}")
    if ends:
        numbers = {"batches": max(errors), "samples": 1, "unique_samples": 1}
        numbers |= {"simulations": 1, "solver_seconds": 1.0, "samples_per_second": 1.0}
        numbers |= {"training_seconds": seconds, "validated": validated}
        numbers["errors"] = {"val_relative_l2": errors[max(errors)]}
        (run / "outcome.json").write_text(json.dumps(numbers))
    return run


class Ended:
    """A place where each trial has ended as soon as it begins."""

    at_once, limit = 1, "nothing"

    def runs(self, attempt):
        return False

    def status(self, attempt):
        return 0

    def start(self, attempt, words, log):
        return {}


class Cancelled(Ended):
    """Jobs that a signal ends before they train, the first three times."""

    def status(self, attempt):
        return None

    def start(self, attempt, words, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("surrogate-flow: interrupted by SIGTERM.\n")
        if attempt.path.name == "attempt-3":
            ran(self.folder, 0, "1", {1: 0.1})
        return {"job": "7"}


def test_a_job_that_is_cancelled_as_it_begins_runs_again(tmp_path):
    """By its queue, or at the end of its node: that is no mistake of the trial."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1]})
    place = Cancelled()
    place.folder = folder
    Controller(folder, place).run(bool)
    assert [(row.state, row.attempts) for row in folder.rows()] == [("complete", 4)]


def test_the_error_of_a_trial_is_that_of_its_best_checkpoint(tmp_path):
    """In the table, for the search, and of best.ckpt: of the first line's best seed."""
    seeds = {"model.lr": [0.1, 0.2], "seed_everything": [0, 1]}
    folder = sweep(tmp_path / "s", space=seeds, at_once=1)
    # The least of all is the lucky one of two whose mean is greater.
    ran(folder, 0, "1", {20: 0.01, 40: 0.2})
    ran(folder, 1, "1", {20: 0.9, 40: 0.8})
    ran(folder, 2, "1", {20: 0.06, 40: 0.02, 60: 0.04}, ends=False)
    # Killed behind its last checkpoint: it does not get as far again.
    ran(folder, 2, "2", {40: 0.05, 60: 0.03, 80: 0.07})
    ran(folder, 3, "1", {20: 0.04, 40: float("nan")})
    Controller(folder, Ended()).run(bool)
    rows = folder.rows()
    assert [(row.number, row.error) for row in rows] == [
        *((0, 0.01), (2, 0.02), (3, 0.04), (1, 0.8)),
    ]
    assert [t.value for t in folder.study.trials] == [0.01, 0.8, 0.02, 0.04]
    best = table.leader(rows)
    assert best.number == 2
    assert "best: trial 2, 2 %" in table.headline(rows, 4)
    assert folder.keep_best(best).read_text() == "best of 1"
    page = sweep_page(folder, rows)
    assert "--model.lr 0.2 --seed_everything 0" in page
    # In both pages its curve stands out: of the trials 0, 2 and 1.
    widths = re.findall(r'"width",(\[[\d., ]+\])', html.unescape(page))
    assert widths == ["[1.5,3.0,1.5]"]
    live = Trials(bool)
    live.update(table.told(folder, rows), None)
    titles = [title.text for title in live.root.select({"type": Title})]
    assert "Errors: the best, trial 2, blue" in titles


def compared(path, batches, *, validated=None, **changed):
    """A sweep of trials that are complete after so many batches each, and the notes on them."""
    folder = sweep(path, **changed)
    counts = validated or [4] * len(batches)
    for number, (count, of) in enumerate(zip(batches, counts, strict=True)):
        ran(folder, number, "1", {count: 0.1}, validated=of)
        folder.study.tell(folder.begin().number, 0.1)
    return folder, table.unlike(folder, folder.rows())


def test_trainings_of_different_lengths_are_named(tmp_path, capfd):
    """The simulations were used up before; not where the space itself says how many batches."""
    folder, (note,) = compared(tmp_path / "s", [1204, 3000, 3000])
    assert "batches were trained in 1 of 3 complete trials" in note
    assert "1,204 of 3,000." in note
    for remedy in ("trainer.max_steps of at most 1,204", "data.simulations", "FIRO"):
        assert remedy in note
    assert "late: wait" not in note
    main(["sweep", "status", str(folder.path)])
    assert capfd.readouterr().out.count(f"Warning: {note}\n") == 1
    command._finish(folder)
    assert capfd.readouterr().out.count(f"Warning: {note}\n") == 1
    assert html.escape(note) in (folder.path / "report.html").read_text()
    missed = msgspec.json.encode(Sharing({}, {"trial 0": [(4, 6)]}))
    (folder.path / "sharing.json").write_bytes(missed)
    (note,) = table.unlike(folder, SweepFolder(folder.path).rows())
    assert "late: wait" in note
    assert compared(tmp_path / "same", [3000] * 3)[1] == []
    # By a batch or two whoever drains a reservoir differs from another.
    assert compared(tmp_path / "nearly", [2970, 3000, 3000])[1] == []
    for name in ("trainer.max_steps", "data.batch_size", "data.simulations"):
        space = {name: [1, 2], "seed_everything": [0, 1]}
        _, notes = compared(tmp_path / name, [10, 10, 20, 20], space=space)
        assert notes == []
        _, (note,) = compared(tmp_path / f"{name} 1", [10, 10, 19, 20], space=space)
        assert "1 of 4 complete trials than in others: 19 of 20." in note


def test_errors_over_different_held_out_simulations_are_named(tmp_path):
    """By their number, and by what a trial with its own ensemble may change."""
    counts = [10, 7, 10, None]
    space = {"model.lr": [0.1, 0.2], "seed_everything": [0, 1]}
    folder, (note,) = compared(tmp_path / "s", [9] * 4, validated=counts, space=space)
    said = "validated in 1 of 4 complete trials than in others: 7 of 10."
    assert said in note
    assert "failures.csv" in note
    head, lines = table.cells(table.grouped(folder.rows()))
    assert [line[head.index("held out")] for line in lines] == ["10 / 7", "10 / -"]
    written = [line.split(",") for line in table.written(folder.rows()).splitlines()]
    assert [line[-4] for line in written] == ["validated", "10", "7", "10", ""]
    for name, values in (
        ("data.solver.cells", [[8, 8], [9, 9]]),
        ("data.held_out", [4, 5]),
        ("data.held_out_sampler", ["Sobol", "Halton"]),
        ("data", ["heat2d", "burgers"]),
    ):
        changed = {"data": "" if name == "data" else "heat2d", "space": {name: values}}
        known = [4, 5] if name == "data.held_out" else None
        _, (note,) = compared(tmp_path / name, [9, 9], validated=known, **changed)
        assert f"Trials differ in {name}, " in note
        assert "no ranking" in note
        # The other is not complete.
        assert compared(tmp_path / f"{name} 1", [9], **changed)[1] == []
    for name in ("data.sampler", "model.solver", "data.reservoir"):
        space = {name: ["A", "B"]}
        assert compared(tmp_path / name, [9, 9], space=space)[1] == []
    # A data set that the sweep itself has made is of the same simulations.
    path = tmp_path / "of cases"
    cases = {"a": {"data": "heat2d", "data.solver.steps": 9}}
    cases["b"] = {"data": str(path / "offline.zarr")}
    more = {"data": "", "cases": cases, "space": {"seed_everything": [0]}}
    assert compared(path, [9, 9], **more)[1] == []
    ran(SweepFolder(path), 0, "2", {9: 0.1}, validated=3)
    (note,) = table.unlike(folder := SweepFolder(path), folder.rows())
    assert "3 of 4." in note


def test_the_seconds_of_a_trial_are_those_of_all_its_parts(tmp_path):
    """In the table, the file and the plot alike; without resuming those of the last."""
    for resume, seconds in ((True, 37.0), (False, 7.0)):
        folder = sweep(tmp_path / str(resume), resume=resume)
        folder.begin()
        ran(folder, 0, "1", {20: 0.5}, ends=False, seconds=30)
        ran(folder, 0, "2", {40: 0.4}, seconds=7)
        row = folder.rows()[0]
        assert row.seconds == seconds
        curve = folder.curve(0)
        assert curve == [(30.0, 0.5)] * resume + [(seconds, 0.4)]
        assert table.written([row]).splitlines()[1].split(",")[4] == f"{seconds:g}"


def test_who_lags_and_what_was_missed_is_in_the_table(tmp_path):
    """While the sweep runs, and what was missed afterwards, too; of all ranks of a trial."""
    full = {"trial 1/0": "9 of 9 bytes wait", "trial 1/1": "waits for its inlet"}
    missed = {"trial 1/0": [(4, 6)], "trial 1/1": [(7, 8)], "trial 11": [(0, 90)]}
    note = msgspec.json.encode(Sharing(full, missed))
    for late, lags in (
        ("wait", ("held up by trial 1", "holds up the simulations")),
        ("drop", ("", "misses steps")),
    ):
        folder = sweep(tmp_path / late, late=late)
        for _ in range(2):
            folder.begin()
        trained = [Attempt(folder.attempt(n, 0)).begin() for n in range(2)]
        assert all(trained)
        assert [row.words for row in folder.rows()] == [*["running"] * 2, "waiting"]
        (folder.path / "sharing.json").write_bytes(note)
        rows = folder.rows()
        assert tuple(row.lag for row in rows[:2]) == lags
        assert rows[1].why == "9 of 9 bytes wait; waits for its inlet"
        assert [row.missed for row in rows] == [0, 3, 0]
        head, lines = table.cells(table.grouped(rows))
        assert (head[2], head[-1]) == ("state", "missed")
        assert (lines[1][2], lines[1][-1]) == (f"running, {lags[1]}", "3")
        assert table.written(rows).splitlines()[2].split(",")[-3] == "3"
        # Of a sweep that was killed, nobody lags.
        os.utime(folder.path / "sharing.json", (0, 0))
        assert [(row.lag, row.missed) for row in folder.rows()[:2]] == [
            ("", 0),
            ("", 3),
        ]


def test_the_page_of_many_trials_can_be_drawn(tmp_path, caplog):
    """Of so many that the importance of each option means something; runs are linked."""
    folder = moments.many_trials(tmp_path / "s")
    run = folder.trial(2) / "w" / "a run"
    run.mkdir(parents=True)
    (run / "report.html").touch()
    page = sweep_page(folder, folder.rows())
    assert "importance" in page
    assert '<a href="trials/0002/w/a%20run/report.html">2</a>' in page
    assert "12 of 12 trials are complete; best: trial 0, 1 %" in page
    # As Bokeh logs what no browser could draw.
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_no_trial_is_lost_and_none_run_twice_whatever_is_killed(tmp_path):
    """Trials and the controller, at random; by the trials' own notes."""
    count, chance = 40, random.Random(3)
    folder = sweep(
        tmp_path / "s", space={"model.lr": [n / 100 for n in range(1, count + 1)]}
    )

    def control():
        folder = SweepFolder(tmp_path / "s")
        with folder.held():
            Controller(folder, Moments(0.15)).run(bool)

    killed = collections.Counter()
    while folder.left:
        # Forked: it has imported all that it needs.
        controller = get_context("fork").Process(target=control)
        controller.start()
        try:
            while controller.is_alive():
                time.sleep(chance.uniform(0.1, 0.6))
                if killed["trial"] < 10 and (running := alive(folder)):
                    os.kill(chance.choice(running), signal.SIGKILL)
                    killed["trial"] += 1
                if killed["controller"] < 3 and folder.begun > 8 * (
                    killed["controller"] + 1
                ):
                    controller.kill()
                    killed["controller"] += 1
        finally:
            controller.kill()
            controller.join()
    trials = folder.study.get_trials()
    assert [t.user_attrs.get("why") for t in trials] == [None] * count
    assert [t.state for t in trials] == [TrialState.COMPLETE] * count
    noted = moments.ledger(folder)
    assert len(noted) == count
    # One that has ended was never begun again; one that was killed was.
    assert {words.count("ends") for words in noted.values()} == {1}
    assert all(words[-1] == "ends" for words in noted.values())
    began = sum(words.count("begins") for words in noted.values())
    assert count < began <= count + killed["trial"]
    assert killed["trial"] == 10
    assert killed["controller"] == 3


def test_a_trial_of_which_the_values_were_not_noted_yet_gets_them(tmp_path):
    """The controller was killed as it asked for them."""
    space = {"model.lr": Range(0.1, 0.2), "seed_everything": [0, 1]}
    folder = sweep(tmp_path / "s", space=space, trials=3)
    folder.study.ask()
    folder.study.ask({"seed_everything": folder.distributions["seed_everything"]})
    assert folder.rows()[0].state == "interrupted"
    Controller(folder, Moments()).run(bool)
    rows = folder.rows()
    assert [row.state for row in rows] == ["complete"] * 3
    for row in rows:
        assert {*row.point} == {*space}
        assert row.error == row.point["model.lr"]


def alive(folder):
    """The processes of trials that train."""
    attempts = [
        Attempt(path) for path in (folder.path / "trials").glob("*/attempt-*[0-9]")
    ]
    return [each.handle["pid"] for each in attempts if each.trains]


def test_who_was_killed_is_said(tmp_path, caplog):
    """By which signal, where its controller has started it; and who ended in order is not."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1, 0.2]})
    folder.begin()
    gone = Attempt(folder.attempt(0, 0))
    # As the process of a controller that was killed, too.
    gone.path.parent.mkdir(parents=True)
    gone.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "17"}))
    os.utime(gone.path, (1e9, 1e9))
    sent = []

    def stopped():
        for number, by in ((0, signal.SIGKILL), (1, signal.SIGTERM)):
            attempt = Attempt(folder.attempt(number, 1 - number))
            if number not in sent and folder.validations(number) and attempt.trains:
                os.kill(attempt.handle["pid"], by)
                sent.append(number)
        return False

    caplog.set_level("INFO")
    Controller(folder, Moments(0.5)).run(stopped)
    assert sorted(sent) == [0, 1]
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text for text in warned if "was killed" in text] == [
        "Trial 0 was killed (job 17), goes on from the beginning",
        "Trial 0 was killed (signal 9), goes on from its last checkpoint",
    ]
    assert "Trial 1 goes on from its last checkpoint, attempt 2: " in caplog.text


def test_how_many_trials_run_at_once_is_said(tmp_path, caplog):
    """And how to have more."""
    caplog.set_level("INFO")
    place = Moments()
    place.at_once, place.limit = 1, "2 cores"
    folder = sweep(tmp_path / "s", at_once=None)
    controller = Controller(folder, place)
    controller.run(lambda: folder.left < 3)
    controller.run(bool)
    said = [r.getMessage() for r in caplog.records if "at a time" in r.getMessage()]
    assert said[0] == "3 trials, 1 at a time (2 cores; at_once: 2 for 2)"
    assert said[1].startswith("3 trials, ")
    assert "at_once" not in controller._plan(1)


class Killed(Moments):
    """Its controller is killed when a trial has started, before that is noted."""

    def start(self, attempt, words, log):
        super().start(attempt, words, log)
        if self.begun:
            wait_until(lambda: attempt.trains)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("begun", [True, False])
def test_a_trial_that_nobody_has_noted_is_found(begun, tmp_path):
    """By its own word, once it has begun; one that has not begins no more."""
    folder = sweep(tmp_path / "s", at_once=1)
    place = Killed(0.3)
    place.begun = begun

    def control():
        Controller(folder, place).run(bool)

    first = get_context("fork").Process(target=control)
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    Controller(SweepFolder(folder.path), Moments()).run(bool)
    assert folder.left == 0
    assert moments.ledger(folder) == {n: ["begins", "ends"] for n in range(3)}
    attempts = {path.name for path in folder.trial(0).glob("attempt-*")}
    assert attempts == {"attempt-0"} or not begun


def test_a_number_of_a_process_is_not_taken_for_a_trial(tmp_path):
    """After a reboot another process has it; the lock of the trial is gone."""
    path = tmp_path / "attempt-0"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert Attempt(path).begun
    assert not Here().runs(Attempt(path, {"pid": os.getpid()}))
    assert not Here().runs(Attempt(tmp_path / "attempt-1", {"pid": os.getpid()}))


def test_an_error_that_is_no_number_is_a_failure(tmp_path):
    """With that as its reason."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1, "nan"]})
    Controller(folder, Moments()).run(bool)
    good, bad = folder.rows()
    assert (good.state, good.error) == ("complete", 0.1)
    assert bad.state == "failed"
    assert bad.why == "its validation error is nan: the training has diverged"


def test_trials_have_gpus_of_their_own(tmp_path, monkeypatch, caplog):
    """As many as they ask for; those of a sweep that goes on are taken."""
    taken = Attempt(tmp_path / "taken" / "attempt-0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with taken.begin():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8,9")
        place = Here()
        show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        place.program = [sys.executable, "-S", "-c", show]
        assert place.runs(taken)

        def given(name, *words):
            attempt, log = Attempt(tmp_path / name / "attempt-0"), tmp_path / name
            place.start(attempt, words, log / "log.txt")
            wait_until(lambda: place.status(attempt) == 0)
            return (log / "log.txt").read_text().strip()

        assert given("pair", "--trainer.devices", "2") == "8,9"
        assert "Trials share GPUs" not in caplog.text
        # None of them has been seen to end.
        assert given("one") == "7"
        assert "Trials share GPUs: 3 are here" in caplog.text
        assert place.fits(["--trainer.devices", "[0, 1]"]) == 1


def test_a_trial_of_another_host_is_waited_for(tmp_path, caplog):
    """By the files of its run; it may have been a job."""
    attempt = Attempt(tmp_path / "0003" / "attempt-0")
    run = tmp_path / "0003" / "w" / "1"
    run.mkdir(parents=True)
    attempt.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "7"}))
    place = Here()
    assert place.runs(attempt)
    assert "Trial 0003 runs on elsewhere" in caplog.text
    (run / "config.yaml").write_text("{}")
    assert place.runs(attempt)
    place.end(attempt)
    for path in (run / "config.yaml", run, attempt.path):
        os.utime(path, (1e9, 1e9))
    assert not place.runs(attempt)


def test_a_trial_that_lags_is_ended(tmp_path):
    """Behind the median of those before, at the same batch."""
    space = {"model.lr": [0.1, 9.0], "seed_everything": [0, 1, 2, 3]}
    folder = sweep(tmp_path / "s", space=space, prune=True, at_once=1)
    controller = Controller(folder, Moments(0.5))
    controller.report = 0.1
    controller.run(bool)
    states = {(row.point["model.lr"], row.state) for row in folder.rows()}
    assert (0.1, "complete") in states
    assert (9.0, "pruned") in states
    assert (0.1, "pruned") not in states


def test_watch_shows_a_sweep_by_its_folder_alone(tmp_path):
    """Of runs, what somebody looks at; also of one that goes on, or was killed."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.3, -1.0, 0.1, 0.2]}, trials=3)
    with folder.held():
        follower = SweepFollower(folder.path)
        assert follower.running
        assert follower.sweeps["s"]["headline"] == "0 of 3 trials are complete"
        assert not follower.runs
        Controller(folder, Moments()).run(bool)
        best = folder.rows()[0]
        (best.run / "telemetry.csv").write_text(
            "seconds,step,validation\n1,0,\n3,10,0.5\n4,20,0.5\n5,30,0.25\n"
        )
    follower = SweepFollower(folder.path)
    (told,) = follower.sweeps.values()
    assert told["headline"] == table.headline(folder.rows(), 3)
    assert told["trials"][0]["curve"] == [[0.0, 0.5], [2.0, 0.25]]
    assert (told["state"], follower.running) == ("ended", False)
    # The best is shown first.
    name, state = list(follower.runs.items())[-1]
    assert (name, state.name) == (str(best.run.resolve()), f"trial {best.number}")
    assert not state.series
    assert not follower.asked
    state.looked = time.monotonic()
    assert follower.asked
    follower.update()
    assert [moment["step"] for moment in state.series] == [0, 10, 20, 30]
    assert not follower.asked
    more = msgspec.structs.replace(folder.recipe, trials=4)
    with SweepFolder.create(folder.path, more).held():
        pass  # It is written.
    assert SweepFollower(folder.path).sweeps["s"]["state"] == "stopped"


def test_stop_ends_it_in_order_and_resume_goes_on(tmp_path):
    """From any process, by the folder; nobody else may run it meanwhile."""
    folder = sweep(tmp_path / "s", at_once=1)
    ends = threading.Thread(target=lambda: Controller(folder, Moments(0.5)).run(bool))
    with folder.held():
        ends.start()
        wait_until(lambda: folder.begun)
        other = SweepFolder(folder.path)
        assert "process" in other.holder
        with pytest.raises(SweepError, match="is run by process"), other.held():
            pass
        other.ask_to_stop()
        ends.join()
    assert folder.left == 3
    assert not folder.holder
    assert 0 not in moments.ended(folder)
    with folder.held():
        Controller(folder, Moments()).run(bool)
    assert folder.left == 0
    assert moments.ended(folder) == [0, 1, 2]


def test_stop_ends_trials_that_nobody_watches(tmp_path, capfd):
    """Their sweep was killed, and they go on by themselves."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1, 0.2]})

    def control():
        mine = SweepFolder(folder.path)
        with mine.held():
            Controller(mine, Moments(30.0)).run(bool)

    process = get_context("fork").Process(target=control)
    process.start()
    wait_until(lambda: len(moments.ledger(folder)) == 2)
    running = alive(folder)
    process.kill()
    process.join()
    try:
        main(["sweep", "stop", str(folder.path)])
        said = capfd.readouterr().out
        assert said.count("which nobody watches: ends, and saves first.") == 2
        wait_until(lambda: not alive(folder))
    finally:
        for number in filter(psutil.pid_exists, running):
            os.kill(number, signal.SIGKILL)
    assert [folder.outcome(n, early=True).ended_early for n in (0, 1)] == [True, True]
    assert folder.left == 2
    main(["sweep", "stop", str(folder.path)])
    assert "Nobody runs" in capfd.readouterr().out


def test_a_killed_process_does_not_keep_the_journal(tmp_path, monkeypatch):
    """Its lock is a file, which stays; whoever comes next removes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("surrogate_flow.cli.sweep.search._GRACE", 3)
    sweep(Path("s"))

    def die():
        JournalFileSymlinkLock.release = lambda lock: os._exit(9)
        SweepFolder(Path("s")).study.set_user_attr("dies", True)

    process = get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert os.path.lexists("s/journal.log.lock")
    assert SweepFolder(Path("s")).left == 3


def test_a_walltime_ends_it_in_order(tmp_path):
    """Trials here end with it; the next one goes on."""
    folder = sweep(tmp_path / "s")
    Controller(folder, Moments(30.0)).run(bool, ends=time.time() + 1.0)
    assert folder.left == 3
    assert not alive(folder)
    Controller(folder, Moments()).run(bool)
    assert folder.left == 0


def test_a_sweep_goes_on_from_any_folder(tmp_path, monkeypatch, capfd):
    """Its recipes are those of where it was begun, which trials run in."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(Here, "program", moments.program(0.02))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    Path("w.yaml").write_text("solver: {class_path: surrogate_flow.solvers.Heat2D}")
    Path("m.yaml").write_text("network: FullyConnected")
    slurm = {"class_path": "surrogate_flow.cluster.Slurm"}
    slurm["init_args"] = {"cores": 1, "memory": "1 GB"}
    Path("c.yaml").write_text(yaml.safe_dump(slurm))
    space = {"model.optimizer.init_args.lr": [1e-3], "model": ["./m.yaml"]}
    known = {"data": "w.yaml", "model": "", "space": space, "controller": "c.yaml"}
    with sweep(Path("sweeps/s"), **known).held():
        pass
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in ("../mine/sweeps/s", str(tmp_path / "mine" / "sweeps" / "s")):
        for action, said in (
            ("status", "have ended; run by nobody"),
            ("stop", "Nobody runs"),
            ("resume", "The best is trial 0: "),
        ):
            monkeypatch.chdir(tmp_path / "elsewhere")
            main(["sweep", action, folder])
            printed = capfd.readouterr().out
            assert said in printed
    assert f"To train it again, in {tmp_path / 'mine'}: surrogate-flow fit" in printed
    folder = SweepFolder(tmp_path / "mine" / "sweeps" / "s")
    assert [row.state for row in folder.rows()] == ["complete"]
    assert (folder.path / "report.html").is_file()
    assert not [*(tmp_path / "elsewhere").iterdir()]
    # Moved, with all that it names.
    (tmp_path / "mine").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    main(["sweep", "resume", "sweeps/s"])
    assert SweepFolder(Path("sweeps/s")).working_folder == tmp_path / "moved"


def test_a_line_of_the_journal_that_is_cut_off_loses_no_trial(tmp_path, caplog):
    """As by a power cut: what has ended has, and what the line noted is done again."""
    folder = sweep(tmp_path / "s")
    with folder.held():
        folder.study.tell(folder.begin().number, 0.1)
        folder.study.tell(folder.begin().number, 0.2)
    journal = folder.path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert [row.state for row in SweepFolder(folder.path).rows()].count("complete") == 1
    for cut in (True, False):
        caplog.clear()
        again = SweepFolder(folder.path)
        with again.held():
            again.study.set_user_attr("a", 1)
        assert ("was cut off" in caplog.text) == cut
        assert [t.state.name for t in again.study.trials] == ["COMPLETE", "RUNNING"]


def test_who_looks_at_a_sweep_changes_nothing(tmp_path, capfd, caplog):
    """No lock, and no file where that is not allowed."""
    folder = sweep(tmp_path / "s")
    with folder.held():
        folder.study.tell(folder.begin().number, 0.1)
    files = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    reader = SweepFolder(folder.path)
    assert (reader.holder, reader.begun, len(reader.rows())) == ("", 1, 3)
    assert files == {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    with folder.held():
        assert reader.holder.startswith(f"process {os.getpid()} on ")
    (folder.path / "report.html.part").mkdir()
    main(["sweep", "status", str(folder.path)])
    said = capfd.readouterr().out
    assert "1 of 3 trials have ended; run by nobody" in said
    # The superuser may write anywhere, but not in the place of a folder.
    assert "report.html was not written" in caplog.text


def test_a_trial_that_nobody_runs_is_interrupted(tmp_path, monkeypatch, capfd):
    """Running while the sweep does; and a word that is misspelt is none of a recipe."""
    folder = sweep(tmp_path / "sweeps" / "two")
    folder.begin()
    with folder.held():
        assert folder.rows()[0].state == "running"
    assert [row.state for row in folder.rows()] == ["interrupted", *["waiting"] * 2]
    # Its sweep was killed, and it trains all the same.
    attempt = Attempt(folder.attempt(0, 0)).begin()
    assert folder.rows()[0].state == "running"
    attempt.close()
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["stauts", "sweeps/two"], "Did you mean 'status'"),
        (["status", "two.yaml"], "Did you mean sweeps/two?"),
    ):
        with pytest.raises(SystemExit):
            main(["sweep", *words])
        assert said in " ".join(capfd.readouterr().err.split())


def test_numbers_stand_where_they_are_along_an_axis():
    """Not one after another; those of powers of ten by their logarithm; words in order."""
    heights, marks = _scaled([1.0, 9.0, 2.0])
    assert heights == [0.0, 1.0, 0.125]
    assert marks == {"1": 0.0, "2": 0.125, "9": 1.0}
    assert _scaled([1e-4, 1e-2, 1e-3])[0] == pytest.approx([0, 1, 0.5])
    assert _scaled([4.0, 4.01, 9.0])[1] == {"4": 0.0, "9": 1.0}
    assert _scaled([3, 3]) == ([0.0, 0.0], {"3": 0.0})
    assert _scaled(["b", "a"]) == ([1.0, 0.0], {"a": 0.0, "b": 1.0})


def test_trials_that_may_train_fewer_batches_than_the_first_are_warned_of(monkeypatch):
    """Where samples are repeated while simulations run, but not within as many batches."""
    said = mock.Mock()
    monkeypatch.setattr(checks.logger, "warning", said)
    data = OnlineData(Heat2D(cells=(4, 4), steps=10), simulations=6, batch_size=8)

    def warned(of=data, **changed):
        said.reset_mock()
        recipe = SweepRecipe(**{**GOOD, **changed})
        words = recipe.words(recipe.corners()[0])
        checks.warn_of_repetition(recipe, of, Direct(), words)
        return [call.args[1] for call in said.call_args_list]

    assert warned() == ["7"]
    assert warned(options={"trainer.max_steps": 8}) == ["7"]
    assert warned(options={"trainer.max_steps": 7}) == []
    assert warned(space={"data.reservoir": ["FIFO", "Reservoir"]}) == []
    assert warned(trials=1) == []
    once = OnlineData(
        Heat2D(), simulations=6, reservoir=FIRO(capacity=60, threshold=10)
    )
    assert warned(once) == []


def test_a_sweep_that_never_began_gives_its_folder_to_the_next(tmp_path, monkeypatch):
    """Such as one whose cluster was refused: with what is mended it runs, as it was typed."""
    path, workflow = tmp_path / "s", {**programs.WORKFLOW, "simulations": 4}
    (tmp_path / "tiny.yaml").write_text(json.dumps(workflow))
    recipe = {**GOOD, "data": "tiny.yaml", "share_simulations": True}
    # Seen when it is opened.
    cluster = {"cores": 1, "memory": "1 GB", "walltime": "00:10:00"}
    cluster = {"class_path": "surrogate_flow.cluster.Slurm", "init_args": cluster}
    recipe["options"] = {"data.cluster": cluster}
    monkeypatch.chdir(tmp_path)
    first = SweepFolder.create(path, SweepRecipe(**recipe))
    with (
        pytest.raises(UserError, match="n_workers"),
        first.held(),
    ):
        Controller(first, Moments()).run(bool)
    assert (path / "simulations.zarr").is_dir()
    del recipe["options"]
    (path / "controller.json").write_text('{"job": "17"}')
    with pytest.raises(SweepError, match="of another sweep"):
        SweepFolder.create(path, SweepRecipe(**recipe, seed=1))
    (path / "controller.json").unlink()
    again = SweepFolder.create(path, SweepRecipe(**recipe, seed=1))
    assert SweepFolder(path).recipe == again.recipe
    assert not (path / "simulations.zarr").exists()
    with again.held():
        again.begin()
    with pytest.raises(SweepError, match="of another sweep: its seed is 1, expected 0"):
        SweepFolder.create(path, SweepRecipe(**recipe))


def test_a_folder_is_of_one_sweep(tmp_path):
    """Of the same options; and what its recipes name does not change meanwhile."""
    model = tmp_path / "model.yaml"
    model.write_text("network: fno")
    first = sweep(tmp_path / "s", model=str(model))
    with first.held():
        pass
    with sweep(tmp_path / "s", model=str(model), trials=2).held():
        first.begin()
    with pytest.raises(SweepError, match="of another sweep: its space"):
        sweep(tmp_path / "s", model=str(model), space={"model.n": [1.0]})
    # A text stays one, though it looks like a number.
    text = {"a": "1e-4", "b": 1e-5, "c": "2", "d": "null"}
    with sweep(tmp_path / "t", options=text).held():
        assert SweepFolder(tmp_path / "t").recipe.options == text
    sweep(tmp_path / "t", options=text)
    with pytest.raises(SweepError, match=r"its options.a is None, expected 1"):
        sweep(tmp_path / "s", model=str(model), options={"a": 1})
    model.write_text("network: unet")
    with (
        pytest.raises(SweepError, match=r"model.yaml has changed since"),
        sweep(tmp_path / "s", model=str(model)).held(),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(SweepError, match="got other files"):
        sweep(tmp_path / "mine")
    with pytest.raises(SweepError, match="folder of a sweep"):
        SweepFolder(tmp_path / "mine")


def test_a_grid_may_grow_and_shrink(tmp_path):
    """Trials that have ended stay as they are, and run no second time; what failed does if asked to."""
    path = tmp_path / "s"
    cases = {"a": {"model.lr": 0.1}, "b": {"model.lr": -1.0}, "c": {"model.lr": 0.3}}
    seeds = {"seed_everything": [0, 1]}

    def run(*names, space=seeds, repeat=False):
        folder = sweep(path, cases={k: cases[k] for k in names}, space=space)
        with folder.held():
            if repeat:
                folder.repeat_failed()
            Controller(folder, Moments()).run(bool)
        return [
            (r.state, r.point["case"], r.point["seed_everything"])
            for r in folder.rows()
        ]

    assert run("a", space={"seed_everything": [0]}) == [("complete", "a", 0)]
    first = moments.ledger(SweepFolder(path))
    failed = [("failed", "b", 0), ("failed", "b", 1)]
    assert run("b", "a") == [("complete", "a", 0), ("complete", "a", 1), *failed]
    assert SweepFolder(path).begun == 4
    assert run("b") == failed
    assert [row.number for row in SweepFolder(path).rows()] == [1, 2]
    assert run("b", repeat=True) == failed
    assert [row.number for row in SweepFolder(path).rows()] == [4, 5]
    assert moments.ledger(SweepFolder(path))[0] == first[0] == ["begins", "ends"]
    changed = (
        r"the case a has changed .*began. model.lr was 0.1, now 7; x was None, now 1"
    )
    other = sweep(path, cases={"a": {"model.lr": 7, "x": 1}}, space=seeds)
    with pytest.raises(SweepError, match=changed), other.held():
        pass
    waiting = sweep(path, cases={"c": cases["c"]}, space=seeds)
    assert [(r.number, r.state) for r in waiting.rows()] == [
        (6, "waiting"),
        (7, "waiting"),
    ]


def test_fewer_trials_than_have_ended_are_no_more(tmp_path):
    """Also of a random search, which has a next one for ever."""
    path, space = tmp_path / "s", {"model.lr": Range(0.1, 0.3)}
    for trials in (3, 2):
        folder = sweep(path, space=space, trials=trials)
        Controller(folder, Moments()).run(bool)
    assert [row.state for row in SweepFolder(path).rows()] == ["complete"] * 3
    assert SweepFolder(path).left == 0


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_that_goes_on_draws_other_values(tmp_path, search):
    """Each process has a sampler of its own."""
    space = {"model.lr": Range(0.1, 0.3)}
    for trials in (1, 2, 3):
        folder = sweep(tmp_path / "s", space=space, trials=trials, search=search)
        Controller(folder, Moments()).run(bool)
    rates = [row.point["model.lr"] for row in SweepFolder(tmp_path / "s").rows()]
    assert len({*rates}) == 3


class Bothered(Moments):
    """Trials end while the sweep waits for them, or is not to go on."""

    def end(self, attempt):
        wait_until(lambda: not self.runs(attempt))


@pytest.mark.parametrize("error", [None, "the study is over"])
def test_what_ends_while_a_sweep_ends_is_complete(tmp_path, error):
    """It needs nobody to go on; also where an error ends the sweep."""
    folder = sweep(tmp_path / "s", at_once=3)

    def stop():
        if error and len(moments.ledger(folder)) == 3:
            raise SweepError(error)
        return len(moments.ledger(folder)) == 3

    raised = pytest.raises(SweepError, match=error) if error else nullcontext()
    with raised:
        Controller(folder, Bothered()).run(stop)
    assert [row.state for row in folder.rows()] == ["complete"] * 3
    assert folder.left == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data.archive": "mine.zarr"}, "data.archive: does not go with"),
        ({"data.deterministic": True}, "data.deterministic"),
        ({"data.simulations": None}, "data.simulations: null"),
    ],
)
def test_what_trials_cannot_share_is_refused_before_anything_runs(
    tmp_path, monkeypatch, options, said
):
    """Not by each trial, once the ensemble is there."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    recipe = SweepRecipe(
        data="heat2d",
        model="fully_connected",
        space={"seed_everything": [0]},
        options=options,
    )
    with pytest.raises(RecipeError, match=said):
        checks.require_possible(SweepFolder(tmp_path / "s", recipe))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("search", ["grid", "random", "tpe"])
def test_what_has_failed_begins_again(search, tmp_path, monkeypatch, capfd):
    """With the same values, in the folder of another trial; what is complete stays."""
    space = {"model.lr": [0.1, -1.0]} if search == "grid" else {"model.lr": [-1.0]}
    space |= {"seed_everything": [0, 1]}
    folder = sweep(tmp_path / "s", search=search, trials=3, at_once=1, space=space)
    place = Moments()
    monkeypatch.setattr(command, "place_of", lambda folder: place)
    monkeypatch.setattr(checks, "require_possible", lambda folder: None)
    monkeypatch.setattr(sys, "argv", sys.argv)

    def resume(*words):
        with contextlib.suppress(SystemExit):  # where every trial has failed
            main(["sweep", "resume", str(folder.path), *words])
        rows = SweepFolder(folder.path).rows()
        said = [(row.number, row.point, row.state) for row in rows]
        failed = [each for each in said if each[2] == "failed"]
        return [each for each in said if each not in failed], failed

    complete, failed = resume()
    again = f"surrogate-flow sweep resume {folder.path} --failed"
    assert again in " ".join(capfd.readouterr().out.split())
    assert len(complete) + len(failed) == 3
    assert len(failed) > 0
    # Not by itself.
    assert resume() == (complete, failed)
    # Twice, as the cause may be there still.
    for _ in range(2):
        kept, before = resume("--failed")
        assert kept == complete
        assert [point for _, point, _ in before] == [point for _, point, _ in failed]
        assert not {n for n, *_ in before} & {n for n, *_ in failed}
        failed = before
    assert {r.attempts for r in SweepFolder(folder.path).rows()} == {1}
    place.program = [w.replace("if lr < 0", "if False") for w in place.program]
    ended, failed = resume("--failed")
    assert not failed
    assert len(ended) == 3
    assert SweepFolder(folder.path).left == 0
    assert again not in " ".join(capfd.readouterr().out.split()[-40:])


def test_seconds_are_those_of_a_whole_run(tmp_path, capsys):
    """Of a trial that is killed and may not resume, those since it began again; of another version of the package, a warning."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1]}, resume=False)
    with folder.held():
        folder.study.set_user_attr("versions", ["0.0.1"])
        stops = threading.Event()
        first = threading.Thread(
            target=lambda: Controller(folder, Moments(0.5)).run(stops.is_set)
        )
        first.start()
        wait_until(lambda: folder.checkpoint(0))
        stops.set()
        first.join()
        begun = time.monotonic()
        Controller(folder, Moments()).run(bool)
        took = time.monotonic() - begun
    (row,) = folder.rows()
    assert 0 < row.wall_seconds <= took
    assert row.state == "complete"
    assert len(folder.runs(0)) == 2
    assert table.written([row]).splitlines()[1].split(",")[5] == str(row.wall_seconds)
    assert len(folder.study.user_attrs["versions"]) == 2


def test_a_trial_that_does_not_end_is_killed_and_named(tmp_path, caplog):
    """Deaf to SIGTERM: killed, with its child."""
    folder = sweep(tmp_path / "s", space={"model.lr": [0.1]})
    deaf = (
        "import signal, subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    place, log = Here(), folder.log(0)
    place.program = [sys.executable, "-S", "-c", deaf]
    controller = Controller(folder, place)
    controller.end = 1.0
    controller.run(lambda: log.is_file() and bool(log.read_text()))
    assert "Trial 0000 did not end, and is killed" in caplog.text
    wait_until(lambda: not psutil.pid_exists(int(log.read_text())))


def test_ranges_are_searched_within(tmp_path):
    """Whole numbers stay whole; the search goes on in another process."""
    space = {"model.lr": Range(1e-4, 1e-2, log=True), "model.n": Range(2, 8, step=2)}
    folder = sweep(tmp_path / "s", space=space, trials=6)
    Controller(folder, Moments()).run(bool)
    points = [row.point for row in folder.rows()]
    assert len(points) == 6
    assert all(1e-4 <= p["model.lr"] <= 1e-2 for p in points)
    assert {p["model.n"] for p in points} <= {2, 4, 6, 8}
    assert len({p["model.lr"] for p in points}) == 6


GOOD = {"data": "heat2d", "model": "fno", "space": {"seed_everything": [0, 1]}}
WRONG = {
    "unknown key": ({"spaces": {}}, "unknown key 'spaces'.*'space'"),
    "empty space": ({"space": {}}, "space: expected options"),
    "no values": ({"space": {"model.lr": []}}, "model.lr: expected values"),
    "a range upside down": (
        {"space": {"model.lr": {"low": 2, "high": 1}}},
        "low < high",
    ),
    "the logarithm of zero": (
        {"space": {"model.lr": {"low": 0, "high": 1, "log": True}}},
        "0 < low",
    ),
    "a range in a grid": (
        {"space": {"model.lr": {"low": 1, "high": 2}}, "search": "grid"},
        "a grid needs a list",
    ),
    "a word of a range": (
        {"space": {"model.lr": {"low": 1, "hihg": 2}}},
        "unknown key 'hihg'.*'high'",
    ),
    "no data": ({"data": ""}, "data: expected it as a recipe, .*got none"),
    "both": ({"space": {"model": ["fno"]}}, "model: .*got several"),
    "an option twice": (
        {"options": {"seed_everything": 1}},
        "seed_everything is in options and in space",
    ),
    "another solver": (
        {"space": {"data.solver.cells": [[8, 8], [9, 9]]}},
        "changes the simulations.*share_simulations: false",
    ),
    "another solver, by way of another option": (
        {
            "options": {
                "data.solver.time_step": "${trainer.detect}",
                "trainer.detect": "${seed_everything}",
            }
        },
        r"options.data.solver.time_step: .* changes the simulations",
    ),
    "other data, by way of an option": (
        {"data": "heat-${seed_everything}"},
        r"data: heat-\$.* changes the simulations",
    ),
    "a grid without end": (
        {"space": {f"model.{k}": [*range(10)] for k in range(8)}, "trials": 5},
        "at most, got 100,000,000. Set search: random",
    ),
    "an empty case": ({"cases": {"small": {}}}, "cases.small: expected options"),
    "a case of the simulations": (
        {"cases": {"fine": {"data.solver.cells": [9, 9]}}},
        "cases.fine.data.solver.cells changes the simulations",
    ),
    "an option in a case and in the space": (
        {"cases": {"one": {"seed_everything": 1}}},
        "seed_everything is in cases.one and in space",
    ),
    "data in a case alone": (
        {"cases": {"one": {"data": "heat2d"}}, "share_simulations": False},
        "data: expected .* got several",
    ),
    "a model in one of two cases": (
        {"model": "", "cases": {"a": {"model": "fno"}, "b": {"trainer.devices": 1}}},
        "model: .*in each case, got none",
    ),
    "a value of no option": (
        {"options": {"data.seed": "${seed_everythin}"}, "share_simulations": False},
        "options.data.seed: no option 'seed_everythin'.*'seed_everything'",
    ),
    "no trial": ({"trials": 0}, "trials: expected at least 1"),
    "a step of a logarithm": (
        {"space": {"model.lr": {"low": 1, "high": 8, "log": True, "step": 1}}},
        "model.lr: expected log or step",
    ),
    "half a step of whole numbers": (
        {"space": {"model.n": {"low": 1, "high": 8, "step": 0.5}}},
        "model.n: expected a whole step.*low: 1.0",
    ),
    "a step backwards": (
        {"space": {"model.n": {"low": 1, "high": 8, "step": -1}}},
        "model.n: expected 0 < step",
    ),
    "a text in a range": (
        {"space": {"model.lr": {"low": "x", "high": 1}}},
        "space.model.lr.low: expected `int",
    ),
    "a value alone": ({"space": {"model.lr": 0.1}}, "model.lr: expected a list"),
    "a value twice": ({"space": {"model.lr": [0, 1, 0]}}, "model.lr: 0 is there twice"),
    "seeds that Lightning refuses": (
        {"space": {"seed_everything": [0, 2**32]}},
        "seed_everything: expected whole numbers from 0 to 4294967295, got 4294967296",
    ),
    "half a seed": (
        {"space": {"seed_everything": {"low": 0, "high": 2.5}}},
        "seed_everything: expected whole numbers .*, got 2.5",
    ),
    "a seed that is none": ({"space": {"seed_everything": [True]}}, "got True"),
    "a seed below zero": ({"seed": -1}, "seed: expected at least 0"),
    "a folder of one's own": (
        {"options": {"trainer.default_root_dir": "here"}},
        "default_root_dir: the sweep sets it",
    ),
    **{
        f"no error with {name}: {value}": (
            {"options": {f"trainer.{name}": value}},
            f"options.trainer.{name}: trials are compared by the error of their",
        )
        for name, value in (
            ("limit_val_batches", 0),
            ("limit_train_batches", 0.0),
            ("max_steps", 0),
            ("max_epochs", "0"),
            ("fast_dev_run", True),
            ("fast_dev_run", 2),
            ("enable_checkpointing", False),
        )
    },
    "no error with one of the values": (
        {"space": {"trainer.max_steps": [100, 0]}},
        "space.trainer.max_steps: trials are compared",
    ),
    "several models": (
        {"model": ["fno", "unet"]},
        r"model: expected `str`, got `array`. Several .* space: {model: \[\.\.\.\]}\.",
    ),
    "a workflow": ({"solver": "Heat2D"}, "recipe of a sweep, got that of a workflow"),
    "an unknown policy": ({"late": "never"}, "late: .*Valid names: wait, drop, spool."),
    "an unknown search": ({"search": "bayes"}, "search: .*names: grid, random, tpe."),
    "a text for a number": ({"trials": "many"}, "trials: expected `int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_recipe_may_not_say(name, tmp_path):
    """One line, with what would be right."""
    changed, words = WRONG[name]
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({**GOOD, **changed}))
    with pytest.raises(RecipeError, match=words) as caught:
        SweepRecipe.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("[1]", "got list"),
        ("space: {1: [3]}", "option .* got 1"),
    ],
)
def test_what_is_no_recipe(text, words, tmp_path):
    """One line with what was found; a folder and a file that is missing, too."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    for file, said in {
        path: words,
        tmp_path: "a folder",
        tmp_path / "no": "No file",
    }.items():
        with pytest.raises(RecipeError, match=said):
            SweepRecipe.read(file)


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    """As the recipes of fit have it, and as our own advice writes them."""
    path = tmp_path / "s.yaml"
    space = "{a: {low: 1e-4, high: 1e-2, log: true}, b: [1e-3, 2]}"
    path.write_text(f"data: heat2d\nmodel: fno\nspace: {space}\n")
    found = SweepRecipe.read(path).space
    assert found == {"a": Range(1e-4, 1e-2, log=True), "b": [1e-3, 2]}


def test_a_recipe_is_changed_on_the_command_line(tmp_path, monkeypatch):
    """Its keys, and options of fit for all trials; as fit takes what its recipes say."""
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps({**GOOD, "options": {"trainer.max_steps": 9}}))
    made = []
    monkeypatch.setattr(checks, "require_possible", made.append)
    monkeypatch.setattr(command, "_run", lambda folder, _: made.append(folder))
    words = ["--trials", "1", "--model=unet", "--trainer.max_steps", "7"]
    command.run([*words, str(path), "--folder", str(tmp_path / "f")])
    recipe = made[-1].recipe
    assert (recipe.trials, recipe.model) == (1, "unet")
    assert recipe.options == {"trainer.max_steps": 7}
    for words, said in {
        ("--trails", "3"): "unknown option '--trails'.*'--trials'",
        ("--prune",): "expected a value after --prune",
        ("--trials", "many"): "trials: expected",
    }.items():
        with pytest.raises(RecipeError, match=said):
            command.run([str(path), *words])


def test_words_of_a_command_line():
    """Values as a shell would give them."""
    words = words_of({"model": "fno", "a": [1, 2], "b": True, "c": None, "d": 1e-3})
    assert words == [
        *("--model", "fno", "--a", "[1, 2]", "--b", "true", "--c", "null"),
        *("--d", "0.001"),
    ]


def test_seeds_are_not_built_one_by_one():
    """All other values are, and one seed."""
    space = {"seed_everything": ["7", *range(200)], "model.lr": [0.1, 0.2]}
    recipe = SweepRecipe(data="heat2d", model="fno", space=space)
    recipe.require_sense()
    assert recipe.corners() == [
        {"seed_everything": "7", "model.lr": lr} for lr in (0.1, 0.2)
    ]


def test_a_case_has_options_that_belong_together():
    """One after the other within a seed, each with its own; a seed is the value of another option."""
    recipe = SweepRecipe(
        data="heat2d",
        space={"seed_everything": [0, 1]},
        cases={
            "small": {"model": "fno", "model.network.width": 8},
            "large": {"model": "unet", "data.seed": "${seed_everything}"},
        },
        options={"model.seed": [1, "${data}"]},
        share_simulations=False,
    )
    recipe.require_sense()
    points = recipe.grid()
    assert [(p["seed_everything"], p["case"]) for p in points] == [
        *((0, "small"), (0, "large"), (1, "small"), (1, "large")),
    ]
    assert recipe.count == 4
    assert {point["case"] for point in recipe.corners()} == {"small", "large"}
    words = recipe.words(points[3])
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--data": "heat2d",
        "--model": "unet",
        "--model.seed": '[1, "heat2d"]',
        "--data.seed": "1",
        "--seed_everything": "1",
    }


def test_trials_share_one_ensemble_and_what_a_signal_ends_goes_on(
    tmp_path, monkeypatch, capfd
):
    """From its checkpoint to its last batch; all end with a table and a page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    own = SimpleNamespace(**{**vars(subprocess), "Popen": programs.popen})
    monkeypatch.setattr("surrogate_flow.cli.sweep.places.subprocess", own)
    monkeypatch.setattr(os, "environ", programs.environment())
    # No trial can end before both were killed: it waits for samples.
    gate = tmp_path / "gate"
    workflow = {
        "solver": {"class_path": "troubled.Gated", "init_args": {"gate": str(gate)}},
        "simulations": 200,
        "held_out": 4,
        "batch_size": 4,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIFO",
            "init_args": {"capacity": 200},
        },
    }
    Path("w.yaml").write_text(yaml.safe_dump(workflow))
    recipe = {
        "data": "w.yaml",
        "model": "fully_connected",
        "options": {"trainer.max_steps": 150, "trainer.val_check_interval": 20},
        "space": {"model.optimizer.init_args.lr": [1e-3, 1e-2]},
        "at_once": 2,
    }
    Path("s.yaml").write_text(yaml.safe_dump(recipe))
    killed = []

    def kill():
        folder = tmp_path / "sweeps" / "s"
        wait_until(lambda: (folder / "journal.log").exists(), 60)
        sweep = SweepFolder(folder)
        for number, by in ((1, signal.SIGKILL), (0, signal.SIGTERM)):
            wait_until(lambda number=number: sweep.checkpoint(number), 100)
            os.kill(Attempt(sweep.attempt(number, 0)).handle["pid"], by)
            killed.append(number)
        gate.touch()

    taken_out, take_out = set(), SharedStudy.take_out

    def noted(study, name):
        taken_out.add(name)
        take_out(study, name)

    monkeypatch.setattr(SharedStudy, "take_out", noted)
    killer = threading.Thread(target=kill)
    killer.start()
    main(["sweep", "s.yaml"])
    killer.join()
    assert killed == [1, 0]
    folder = SweepFolder(Path("sweeps/s"))
    rows = folder.rows()
    assert [(row.state, row.steps) for row in rows] == [("complete", 150)] * 2
    said = capfd.readouterr().out
    assert [len(folder.runs(number)) for number in (0, 1)] == [2, 2]
    assert "2 trials, 2 at a time" in said
    # An end that was asked for is none by force.
    assert re.search(r"INFO +Trial 0 goes on from batch [1-9]\d*, attempt 2: ", said)
    killed = r"WARNING +Trial 1 was killed \(signal 9\), goes on from batch [1-9]"
    assert re.search(killed, said)
    assert "gets no more steps" not in said
    assert taken_out == {"trial 0", "trial 1"}
    assert f"The best is trial {rows[0].number}: sweeps/s/best.ckpt" in said
    for name in ("report.html", "trials.csv", "best.ckpt"):
        assert (folder.path / name).is_file()
    archive = Archive(folder.path / "simulations.zarr")
    # Once in all, whoever trained on it.
    complete = len(archive.complete())
    assert 0 < complete <= 204
    assert archive.solver_seconds > 0
    cost = table.cost(folder)
    assert cost.startswith(f"One ensemble, {complete} simulations: ")
    assert "; with one for each of 2 trials, " in cost
    assert cost in " ".join(said.split())
    assert cost in (folder.path / "report.html").read_text()
    for number in (0, 1):
        log = folder.log(number).read_text()
        assert "Traceback" not in log
    # Looked at by another process, and with nothing left to do.
    main(["sweep", "status", "sweeps/s"])
    assert "2 of 2 trials have ended; run by nobody" in capfd.readouterr().out


RECIPES = sorted((Path(__file__).parents[2] / "workflows" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("name", [*(path.stem for path in RECIPES), 0, 1])
def test_every_value_of_a_shipped_recipe_is_taken(name, tmp_path, monkeypatch):
    """Of those in workflows/sweeps, and of the two in docs/sweeps.md."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    path = {recipe.stem: recipe for recipe in RECIPES}.get(name)
    if path is None:
        page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text("utf-8")
        block = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[name]
        path = tmp_path / "docs.yaml"
        path.write_text(yaml.safe_dump({"data": "heat2d"} | yaml.safe_load(block)))
    require_possible(SweepFolder.create(tmp_path / "s", SweepRecipe.read(path)))
