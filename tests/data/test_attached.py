"""Trainings that share a study: each gets every step, whenever it joins, exactly once."""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as L
from batch import wait_until
from distributed import LocalCluster
from troubled import STEPS, Fading, Wave

from surrogate_flow.data.archiving import planned
from surrogate_flow.data.attached import Attach, Attached
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.ensemble import sharing
from surrogate_flow.ensemble.events import Exhausted
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.sharing import ADDRESS_FILE, SharedStudy, Sharing
from surrogate_flow.ensemble.study import StudySettings, StudyTimeout
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import Reservoir
from surrogate_flow.sampling import Design, Sobol
from surrogate_flow.stream import Discard, Inlet
from surrogate_flow.surrogate.surrogate import Surrogate

HELD_OUT, SIMULATIONS = 2, 10
ALL = HELD_OUT + SIMULATIONS
CLUSTER = partial(
    LocalCluster,
    n_workers=2,
    threads_per_worker=1,
    processes=False,
    dashboard_address="127.0.0.1:0",
)


class Book(Discard):
    """Counts every step, and has room for so many."""

    def __init__(self, room=None):
        self.steps = collections.Counter()
        self.room = room
        self.exhausted = threading.Event()
        self.wakes = []

    def offer(self, simulation, first, steps, parameters, inputs=None):
        if self.room is not None and simulation >= HELD_OUT:
            steps = steps[: self.room]
            self.room -= len(steps)
        for k, step in enumerate(steps):
            expected = parameters[0] + first + k + 1 + np.arange(step.shape[-1]) / 10
            np.testing.assert_allclose(step[0], expected, rtol=1e-5)
            self.steps[simulation, first + k] += 1
        return len(steps)

    def make_room(self):
        self.room = None
        for wake in self.wakes:
            wake()

    def on_room(self, wake):
        self.wakes.append(wake)

    def __call__(self, event):
        assert isinstance(event, Exhausted)
        self.exhausted.set()


def whole(numbers=range(ALL)):
    """Every step of all simulations, once."""
    return {(n, k): 1 for n in numbers for k in range(STEPS)}


def design(rank=0, world=1):
    """What all agree on."""
    return Design(
        Wave.spec.parameters,
        Sobol(seed=3),
        held_out=HELD_OUT,
        simulations=SIMULATIONS,
        rank=rank,
        world=world,
    )


@contextlib.contextmanager
def study(folder, late="wait", solver=None, **faults):
    """A study that waits for trainings."""
    solver = solver or Wave()
    archive, _ = planned(
        folder / "simulations.zarr",
        solver,
        Sobol(seed=3),
        held_out=HELD_OUT,
        simulations=SIMULATIONS,
        workflow="wave",
    )
    try:
        with SharedStudy(
            solver,
            design(),
            cluster=CLUSTER,
            faults=Faults(retries=0, **faults),
            settings=StudySettings("wave", folder),
            archive=archive,
            late=late,
        ) as shared:
            yield shared
    finally:
        archive.release()


@contextlib.contextmanager
def training(folder, name, book, ranks=None):
    """One that takes part."""
    ranks = ranks or Ranks()
    mine = design(ranks.rank, ranks.world)
    attached = Attached(Attach(folder, name), mine, book, ranks)
    try:
        attached.start()
        yield attached
    finally:
        attached.close()


def ended(*parts):
    """Wait until each has every simulation."""

    def all_are():
        for _, attached in parts:
            attached.check()
        return all(book.exhausted.is_set() for book, _ in parts)

    wait_until(all_are)


def test_each_gets_every_step_once_whenever_it_joins(tmp_path):
    """One is there from the beginning, one joins in the middle, one at the end."""
    first, second, last = Book(room=40), Book(), Book()
    with study(tmp_path) as shared:
        with training(tmp_path, "first", first) as one:
            wait_until(lambda: not first.room)
            with training(tmp_path, "second", second) as two:
                wait_until(lambda: len(shared.members) == 2)
                first.make_room()
                ended((first, one), (second, two))
        wait_until(lambda: not shared.members)
        with training(tmp_path, "last", last) as three:
            ended((last, three))
            assert three.stats().done == ALL
            assert three.stream().steps == ALL * STEPS
        shared.check()
    for book in (first, second, last):
        assert book.steps == whole()
    assert not (tmp_path / ADDRESS_FILE).exists()
    assert not [*tmp_path.glob(".keys*")]


def test_simulations_that_end_early_do_so_in_all(tmp_path):
    """By the stream and from the disk: each has the steps that there are, and is done."""
    first, last = Book(), Book()
    with study(tmp_path, solver=Fading()) as shared:
        with training(tmp_path, "first", first) as one:
            ended((first, one))
        wait_until(lambda: not shared.members)
        with training(tmp_path, "last", last) as two:
            ended((last, two))
            stats = two.stats()
        shared.check()
    lengths = {n: Fading.length(design().at(n).parameters["phase"]) for n in range(ALL)}
    short = sum(length < STEPS for length in lengths.values())
    assert 0 < short < ALL
    for book in (first, last):
        assert book.steps == {(n, k): 1 for n in lengths for k in range(lengths[n])}
    assert (stats.done, sum(stats.early.values())) == (ALL, short)
    assert not (tmp_path / "failures.csv").exists()


class Fails(Wave):
    """A wave that breaks off in some simulations, at first."""

    mended = False

    def solve(self, parameters):
        for k, step in enumerate(super().solve(parameters)):
            if k == 3 and parameters["phase"] > 0.6 and not self.mended:
                raise ArithmeticError("nan")
            yield step


class Waits(Wave):
    """A wave whose simulations begin when the test says so."""

    begins = threading.Event()

    def solve(self, parameters):
        self.begins.wait(100)
        yield from super().solve(parameters)


@pytest.mark.parametrize("late", ["drop", "spool"])
def test_one_that_lags_holds_up_nobody(tmp_path, late, monkeypatch):
    """It does without the rest, which is counted, or reads that later."""
    size = Wave.spec.step_bytes
    small = partial(Inlet, budget=4 * size, coalesce_bytes=size)
    monkeypatch.setattr("surrogate_flow.data.attached.Inlet", small)
    slow, fast = Book(room=12), Book()
    Waits.begins.clear()
    with (
        study(tmp_path, late, Waits()) as shared,
        training(tmp_path, "slow", slow) as one,
        training(tmp_path, "fast", fast) as two,
    ):
        wait_until(lambda: len(shared.members) == 2)
        # As if its backlog were a simulation.
        shared._members["slow"].relay._backlog.limit = STEPS * size
        Waits.begins.set()
        ended((fast, two))
        lost = shared.sharing().missed
        slow.make_room()
        ended((slow, one))
        assert fast.steps == whole()
        assert "fast" not in lost
        if late == "spool":
            assert slow.steps == whole()
        else:
            assert set(slow.steps.values()) == {1}
            assert set(whole(range(HELD_OUT))) <= set(slow.steps)
            missed = shared.sharing().missed["slow"]
            assert one.stats().failed == len(IntSet(missed)) > 0
    # Afterwards, too, and in a process that goes on with it.
    known = Sharing.read(tmp_path)
    assert (len(known.missed), known.full) == (late == "drop", {})
    with study(tmp_path, late, Waits()) as again, training(tmp_path, "slow", Book()):
        wait_until(lambda: again.members)
        assert again.sharing().missed == known.missed


class Hangs(Wave):
    """A wave whose first simulation takes until the test ends."""

    ended = threading.Event()

    def solve(self, parameters):
        if parameters["phase"] == next(iter(design())).parameters["phase"]:
            self.ended.wait()
        yield from super().solve(parameters)


def test_a_held_out_simulation_that_hangs_is_said_though_a_training_is_full(
    tmp_path, monkeypatch
):
    """It takes nothing else before it is there."""
    size = Wave.spec.step_bytes
    small = partial(Inlet, budget=4 * size, coalesce_bytes=size)
    monkeypatch.setattr("surrogate_flow.data.attached.Inlet", small)
    monkeypatch.setattr("surrogate_flow.stream.relay._BACKLOG", size)
    try:
        with (
            study(tmp_path, solver=Hangs(), patience=3.0) as shared,
            training(tmp_path, "one", Book(room=0)),
        ):
            wait_until(lambda: shared.members and shared._fanout.waiting())
            with pytest.raises(StudyTimeout, match="patience"):
                wait_until(shared.check)
            Hangs.ended.set()
    finally:
        Hangs.ended.set()


def test_what_fails_for_good_is_left_in_all(tmp_path, monkeypatch):
    """Those after a resume too. The others are whole; the ends of all come."""
    books = [Book(), Book()]
    with study(tmp_path, solver=Fails()) as shared, contextlib.ExitStack() as stack:
        parts = [
            (book, stack.enter_context(training(tmp_path, f"{n}", book)))
            for n, book in enumerate(books)
        ]
        ended(*parts)
        broken = {s.number for s in design() if s.parameters["phase"] > 0.6}
        assert 0 < len(broken) < ALL
        for book, attached in parts:
            good = whole(n for n in range(ALL) if n not in broken)
            assert good.items() <= book.steps.items()
            assert set(book.steps.values()) == {1}
            assert attached.stats().failed == len(broken)
        assert shared.exhausted
        worked = shared.worked
        assert worked > 0
    monkeypatch.setattr(Fails, "mended", True)
    later = Book()
    with (
        study(tmp_path, solver=Fails()) as shared,
        training(tmp_path, "later", later) as three,
    ):
        ended((later, three))
        assert three.stats().failed == shared.stats().failed == len(broken)
        assert three.stream().worked == shared.worked == pytest.approx(worked)
    assert later.steps == good


def test_a_damaged_simulation_runs_again_or_fails_those_that_read_it(tmp_path, caplog):
    """Never has one training fewer than another, in silence."""
    first, again, new = Book(), Book(), Book()
    with study(tmp_path), training(tmp_path, "first", first) as one:
        ended((first, one))
        plain = one.ledger.to_plain()
    chunk = tmp_path / "simulations.zarr" / "u" / "c.1.0.0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    chunk.write_bytes(damaged)
    named = pytest.raises(EnsembleError, match=r"c\.1\.0\.0 is damaged.*sweep resume")
    with study(tmp_path), training(tmp_path, "new", Book()) as two, named:
        wait_until(two.check)
    chunk.unlink()
    with study(tmp_path) as shared, contextlib.ExitStack() as stack:
        # As one that goes on from its checkpoint.
        attached = Attached(Attach(tmp_path, "first"), design(), again, Ranks())
        stack.callback(attached.close)
        attached.ledger.restore(plain)
        attached.start()
        two = stack.enter_context(training(tmp_path, "new", new))
        ended((new, two), (again, attached))
        assert shared.study.stats().done == 1
    assert "gets no more steps" not in caplog.text
    assert new.steps == whole()
    assert not again.steps


def test_a_study_that_was_killed_goes_on_and_so_does_a_training(tmp_path):
    """Complete simulations do not run again; a new process of a training gets all."""
    first, again = Book(room=20), Book()
    with study(tmp_path), training(tmp_path, "one", first):
        wait_until(lambda: not first.room)
    with study(tmp_path) as shared, training(tmp_path, "one", again) as one:
        ended((again, one))
        assert shared.study.stats().done < ALL == shared.stats().done
    assert again.steps == whole()


@pytest.mark.parametrize("known", [False, True])
def test_a_training_that_is_killed_holds_up_nobody(
    known, tmp_path, monkeypatch, caplog
):
    """Nobody waits for it when it has been silent for a while, or is known to be gone."""
    silent = 1000.0 if known else 1.5
    monkeypatch.setattr("surrogate_flow.ensemble.sharing._SILENT", silent)
    dead, alive = Book(room=3), Book()
    with (
        study(tmp_path) as shared,
        training(tmp_path, "dead", dead) as one,
        training(tmp_path, "alive", alive) as two,
    ):
        wait_until(lambda: len(shared.members) == 2)
        # Its thread ends without a word, as it would by SIGKILL.
        one._closing.set()
        if known:
            shared.take_out("dead")
        ended((alive, two))
        assert "dead" not in shared.members
    said = "dead gets no more steps: no heartbeat" in caplog.text
    assert said is not known
    assert alive.steps == whole()


def test_a_training_that_leaves_is_not_waited_for(tmp_path, monkeypatch):
    """Also where its thread has ended before all the rest of it has."""
    monkeypatch.setattr("surrogate_flow.ensemble.sharing._SILENT", 1000.0)
    with study(tmp_path) as shared, training(tmp_path, "one", Book(room=3)) as one:
        wait_until(lambda: shared.members)
        stop = one.inlet.stop_outlets

        def later(reason):
            one._thread.join()
            stop(reason)

        monkeypatch.setattr(one.inlet, "stop_outlets", later)
        one.leave()
        wait_until(lambda: not shared.members)


def test_a_training_that_has_ended_leaves_before_its_report(tmp_path, monkeypatch):
    """Which may take long, while others wait for room."""
    monkeypatch.chdir(tmp_path)
    left = []

    class Reports(L.Callback):
        def on_fit_end(self, *_):
            left.append(wait_until(lambda: not shared.members))

    data = OnlineData(
        Wave(),
        sampler=Sobol(seed=3),
        simulations=SIMULATIONS,
        held_out=HELD_OUT,
        batch_size=4,
        reservoir=Reservoir(capacity=10, threshold=5),
        attach=Attach(tmp_path, "one"),
    )
    options = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar"), False
    )
    options |= {"enable_model_summary": False, "accelerator": "cpu"}
    with study(tmp_path) as shared:
        trainer = L.Trainer(max_steps=2, callbacks=[Reports()], **options)
        trainer.fit(Surrogate(Wave.spec, partial(FullyConnected, widths=[8])), data)
        assert trainer.global_step == 2
    assert left == [True]


def test_two_ranks_share_a_stream(tmp_path):
    """Each has its simulations, by number."""
    books = [Book(), Book()]
    with study(tmp_path), contextlib.ExitStack() as stack:
        parts = [
            (
                book,
                stack.enter_context(
                    training(tmp_path, "1", book, SimpleNamespace(rank=rank, world=2))
                ),
            )
            for rank, book in enumerate(books)
        ]
        ended(*parts)
    for rank, book in enumerate(books):
        assert book.steps == whole(range(rank, ALL, 2))


def test_a_study_that_does_not_answer_ends_a_training_in_order(tmp_path, monkeypatch):
    """By the signal that has it write a checkpoint, once."""
    monkeypatch.setattr("surrogate_flow.data.attached._SILENT", 1.0)
    sent = []
    monkeypatch.setattr("os.kill", lambda process, number: sent.append(number))
    book = Book(room=20)
    with study(tmp_path) as shared, training(tmp_path, "one", book) as one:
        wait_until(lambda: not book.room)
        shared._closing.set()
        wait_until(lambda: one.check() or sent)
        one.check()
    assert sent == [15]


@pytest.mark.parametrize("killed", [False, True])
def test_without_a_study_a_training_ends_in_order(
    tmp_path, monkeypatch, caplog, killed
):
    """As one whose study is gone: who resumes the sweep starts it again."""
    if killed:
        with study(tmp_path):
            left = (tmp_path / ADDRESS_FILE).read_bytes()
        (tmp_path / ADDRESS_FILE).write_bytes(left)
        monkeypatch.setattr("surrogate_flow.data.attached._ANSWER", 1.0)
    monkeypatch.setattr("surrogate_flow.data.attached._SILENT", 1.0)
    sent = []
    monkeypatch.setattr("os.kill", lambda process, number: sent.append(number))
    with pytest.raises(KeyboardInterrupt) as raised:
        Attached(Attach(tmp_path, "late"), design(), Book(), Ranks())
    assert sent == [*raised.value.args] == [signal.SIGTERM]
    assert f"sweep resume {tmp_path}" in caplog.text


@pytest.mark.parametrize("killed", [False, True])
def test_a_training_waits_for_a_study_that_goes_on(
    tmp_path, monkeypatch, caplog, killed
):
    """One that begins between two processes of a study takes part in the second."""
    monkeypatch.setattr("surrogate_flow.data.attached._ANSWER", 1.0)
    monkeypatch.setattr("surrogate_flow.data.attached._SILENT", 200.0)
    if killed:
        with study(tmp_path):
            left = (tmp_path / ADDRESS_FILE).read_bytes()
        (tmp_path / ADDRESS_FILE).write_bytes(left)
    book = Book()

    def take_part():
        with training(tmp_path, "one", book) as one:
            ended((book, one))

    with ThreadPoolExecutor() as threads:
        done = threads.submit(take_part)
        wait_until(lambda: "No study answers" in caplog.text)
        with study(tmp_path):
            done.result(200)
    assert book.steps == whole()


def hold(folder, silent):
    """A study, in a process of its own, until that is killed."""
    sharing._SILENT = silent
    with study(folder):
        threading.Event().wait()


def test_a_study_may_be_stopped_for_a_while_and_if_it_is_killed_a_training_ends(
    tmp_path, monkeypatch
):
    """In order, too, though Dask's client gives up before."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=hold, args=(tmp_path, 3.0))
    process.start()
    try:
        wait_until((tmp_path / ADDRESS_FILE).exists, 100)
        book = Book(room=20)
        with training(tmp_path, "one", book) as one:
            wait_until(lambda: one.check() or not book.room)
            wait_until(lambda: one._status and one._status.streamed)
            before = IntSet(one._status.streamed)
            os.kill(process.pid, signal.SIGSTOP)
            wait_until(lambda: time.monotonic() - one._last > 5.0)
            os.kill(process.pid, signal.SIGCONT)
            wait_until(lambda: one.check() or time.monotonic() - one._last < 1.0)
            now = one._status
            # Some may have ended before the stop was felt.
            assert not len(before - IntSet(now.streamed) - IntSet(now.on_disk))
            one.client._timeout = 1.0
            process.kill()
            process.join()
            wait_until(lambda: one.check() or one.client.status == "closed")
            sent = []
            monkeypatch.setattr("os.kill", lambda pid, number: sent.append(number))
            monkeypatch.setattr("surrogate_flow.data.attached._SILENT", 5.0)
            wait_until(lambda: one.check() or sent)
            one.check()
        assert sent == [signal.SIGTERM]
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"deterministic": True}, "data.deterministic"),
        ({"archive": "own.zarr"}, "data.archive"),
        ({"simulations": None}, "simulations: null"),
    ],
)
def test_what_others_cannot_share_is_refused(option, named):
    """Before anything runs."""
    attach = Attach(Path(), "one")
    with pytest.raises(ArgumentError, match=named):
        OnlineData(Wave(), attach=attach, **option)
