"""Each so many-th step of a solver: what is kept, sent and gone on from."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from troubled import Wave

from surrogate_flow.cli.app import main
from surrogate_flow.data.online import OnlineData
from surrogate_flow.dataset import Archive
from surrogate_flow.ensemble.attempt import run
from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import Variable
from surrogate_flow.reservoir import FIFO
from surrogate_flow.solvers import Ended, Heat2D, Run
from surrogate_flow.solvers.solver import Recorded
from surrogate_flow.stream import Discard, Inlet
from surrogate_flow.testing import check_solver

STEPS = 25


class Long(Wave):
    """A wave of 25 steps, `size` at once; it begins where it is asked to if it `resumes`."""

    def __init__(self, first=1, size=1, resumes=False, ends=STEPS, fails=None):
        self.size, self.resumes, self.ends, self.fails = size, resumes, ends, fails
        self.spec = replace(
            Wave.spec, times=tuple(float(first + k) for k in range(STEPS))
        )
        self.begun, self.made = [], 0

    def start(self, run):
        self.begun.append(run.first_step)
        first = run.first_step if self.resumes else 0
        for k in range(first, self.ends, self.size):
            if self.fails is not None and k >= self.fails and not run.attempt:
                raise ArithmeticError("no convergence")
            times = [*self.spec.times, 99.0][k : min(k + self.size, self.ends)]
            steps = [self.step(run.parameters["phase"], t) for t in times]
            self.made += len(times)
            yield xr.concat(steps, "time")
        if self.ends < STEPS:
            raise Ended("steady")

    def solve(self, parameters):
        return self.start(Run(parameters))


class Alive(Run):
    """Counts the signs of life."""

    def alive(self):
        self.parameters["signs"] += 1


@pytest.mark.parametrize("size", [1, 2, 7, 25])
@pytest.mark.parametrize(
    ("first", "every", "kept"),
    [
        (1, 10, [10, 20]),
        (0, 10, [0, 10, 20]),
        (1, 1, range(1, 26)),
        (1, 25, [25]),
        (0, 8, [0, 8, 16, 24]),
        (1, 7, [7, 14, 21]),
    ],
)
def test_the_tenth_and_twentieth_step_are_kept(first, every, kept, size):
    """The initial state is kept, too, and not counted; nothing runs behind the last one."""
    long = Long(first, size)
    solver = Recorded(long, every)
    assert solver.spec == replace(Wave.spec, times=tuple(map(float, kept)))
    got = xr.concat(solver.start(Run({"phase": 0.5})), "time")
    expected = xr.concat([long.step(0.5, float(t)) for t in kept], "time")
    xr.testing.assert_equal(got, expected)
    whole = kept[-1] == long.spec.times[-1]
    assert STEPS - size < long.made + size if whole else long.made < kept[-1] + size + 1


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_a_retry_begins_behind_the_last_step_that_was_kept(first, resumes):
    """One that can begin there, and one that cannot."""
    solver = Recorded(Long(first, 2, resumes), 10)
    whole = xr.concat(solver.start(Run({"phase": 0.5})), "time")
    for k in range(1, solver.spec.steps):
        got = xr.concat(solver.start(Run({"phase": 0.5}, first_step=k)), "time")
        xr.testing.assert_equal(got, whole.isel(time=slice(k * resumes, None)))
    assert solver.solver.begun == [0, *([1, 11] if first == 0 else [10])]
    check_solver(Recorded(Long(first, 2, resumes), 5))
    check_solver(Recorded(Heat2D(cells=(6, 6), steps=12), 4))


class Kept(Discard):
    """What arrives: (simulation, step) -> how often, and the values."""

    def __init__(self):
        self.seen, self.values, self.early = Counter(), {}, {}

    def open(self, simulation):
        return len([key for key in self.seen if key[0] == simulation])

    def offer(self, simulation, first, steps, parameters, inputs=None):
        for k, step in enumerate(steps, first):
            self.seen[simulation, k] += 1
            self.values[simulation, k] = step.copy(), inputs
        return len(steps)

    def close(self, simulation, complete, early=""):
        self.early[simulation] = early


def test_steps_that_are_not_kept_are_not_sent():
    """A first attempt fails between two that are, a retry goes on; another one ends early."""
    sink = Kept()
    solver = Recorded(Long(resumes=True, fails=17), 5)
    with Inlet(solver.spec, sink) as inlet:
        points = [Simulation(n, "training", {"phase": n / 10}) for n in range(2)]
        with pytest.raises(ArithmeticError):
            run(solver, inlet.endpoint, points[0], 0)
        assert sink.seen == {(0, k): 1 for k in range(3)}
        run(solver, inlet.endpoint, points[0], 1)
        assert solver.solver.begun == [0, 15]
        assert inlet.stats().bytes == 5 * solver.spec.step_bytes
        run(Recorded(Long(ends=13), 5), inlet.endpoint, points[1], 0)
    steps = {(0, k) for k in range(5)} | {(1, k) for k in range(2)}
    assert sink.seen == dict.fromkeys(steps, 1)
    assert sink.early == {0: "", 1: "steady"}
    for (number, k), (step, _) in sink.values.items():
        expected = number / 10 + 5 * (k + 1) + np.arange(4) / 10
        np.testing.assert_allclose(step[0], expected, rtol=1e-6)


class Given(Long):
    """A wave that makes an input field of its own, with the first dataset."""

    def start(self, run):
        self.spec = replace(self.spec, inputs=(Variable("depth"),))
        for number, step in enumerate(super().start(run)):
            depth = np.arange(4.0) + run.parameters["phase"]
            yield step if number else step.assign(depth=("x", depth))


def test_inputs_come_with_the_first_step_that_is_kept():
    given = Given()
    given.spec = replace(given.spec, inputs=(Variable("depth"),))
    solver, sink = Recorded(given, 10), Kept()
    with Inlet(solver.spec, sink) as inlet:
        run(solver, inlet.endpoint, Simulation(0, "training", {"phase": 0.5}), 0)
    assert [*sink.seen] == [(0, 0), (0, 1)]
    for _, inputs in sink.values.values():
        np.testing.assert_array_equal(inputs, [np.arange(4) + 0.5])


def test_steps_between_are_signs_of_life():
    run = Alive({"phase": 0.5, "signs": 0})
    solver = Recorded(Long(), 10)
    assert len(list(solver.start(run))) == 2
    assert run.parameters["signs"] == 18


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(UserError, match=r"data\.every.*1 to 25 steps.*26"):
        Recorded(Long(), 26)
    with pytest.raises(UserError, match=r"every.*at least 1"):
        OnlineData(Long(), every=0)
    more = Long(ends=25)
    more.spec = replace(more.spec, times=more.spec.times[:24])
    with pytest.raises(SpecMismatch, match="expected 24 steps in all"):
        list(Recorded(more, 24).start(Run({"phase": 0.5})))


def test_a_study_of_each_second_step(tmp_path, monkeypatch, capsys):
    """Trained, held out and in the data set; plan and check say it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "waves.zarr"
    data = OnlineData(
        Wave(),
        every=2,
        simulations=6,
        held_out=2,
        batch_size=4,
        reservoir=FIFO(capacity=40),
        archive=path,
    )
    assert data.spec.times == (2.0, 4.0)
    assert data.workflow == "wave"
    data.setup("fit")
    try:
        for batch in (*data.val_dataloader(), *data.train_dataloader()):
            time = 2 * (batch.step[:, None] + 1)
            truth = batch.parameters[:, :1] + time + np.arange(4) / 10
            np.testing.assert_allclose(batch.target[:, 0, 0], truth, rtol=1e-5)
    finally:
        data.close()
    archive = Archive(path)
    assert (archive.spec, len(archive.complete())) == (data.spec, 8)
    recipe = "solver: surrogate_flow.solvers.Lorenz\nevery: 10\nsimulations: 25\n"
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.setattr("sys.argv", ["surrogate-flow"])
    main(["check", "mine.yaml"])
    assert "one of 10 steps is kept" in capsys.readouterr().out
    main(["plan", "--data", "mine.yaml", "--model", "fully_connected"])
    assert "one of 10 steps: the solver makes" in capsys.readouterr().out
