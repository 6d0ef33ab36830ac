"""Programs as solvers: what they write arrives, and nothing of them is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
import xarray as xr
from troubled import STEPS, Wave

from surrogate_flow.fields.errors import MissingFileError
from surrogate_flow.solvers.programs.process import ProcessError, ProcessSolver
from surrogate_flow.solvers.solver import Ended, Run, Stopped

# Writes the steps of a wave, with a child of its own, which would live for an hour.
PROGRAM = textwrap.dedent(
    r"""
    import os, subprocess, sys, time
    phase, fate = float(sys.argv[1]), sys.argv[2]
    child = subprocess.Popen(["sleep", "3600"])
    with open("pids", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename("pids", "pids.txt")
    for k in range(1, 6):
        if k == 4 and fate == "fails":
            sys.exit("negative density\nin cell 3")
        if k == 4 and fate == "says":
            sys.stdout.write("x" * 10_000_000 + "\nnegative density\nin cell 3\n")
            sys.exit(3)
        if k == 4 and fate == "missing":
            sys.exit(127)
        if k == 4 and fate == "dies":
            os.kill(os.getpid(), 9)
        if k == 4 and fate == "early":
            break
        if k == 4 and fate == "hangs":
            time.sleep(3600)
        with open("part", "w") as file:
            print(*(phase + k + i / 10 for i in range(4)), file=file)
        os.rename("part", f"step_{k}")
    """
)


class Program(ProcessSolver):
    """The wave, by another process."""

    spec = Wave.spec

    def __init__(self, fate="", timeout=None):
        super().__init__(timeout)
        self.fate = fate

    def command(self, run):
        return [sys.executable, "-c", PROGRAM, run.parameters["phase"], self.fate]

    def read(self, run):
        run.wait((run.folder / "pids.txt").exists)
        for time_ in self.spec.times:
            path = run.folder / f"step_{time_:.0f}"
            run.wait(path.exists)
            values = np.loadtxt(path)[None]
            yield xr.Dataset({"u": (("time", "x"), values)}, {"time": [time_]})


class Ending(Run):
    """A run that is stopped as soon as three steps are there."""

    def check(self):
        if (self.folder / "step_3").exists():
            raise Stopped("the study has ended")


def pids(folder):
    return [int(word) for word in (folder / "pids.txt").read_text().split()]


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_gone(folder):
    """Whether none of its processes lives, within some seconds."""
    deadline = time.monotonic() + 20
    while not all(map(gone, pids(folder))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return all(map(gone, pids(folder)))


def test_the_steps_of_a_program_arrive(tmp_path):
    """While it runs, and its child does not outlive it."""
    run = Run({"phase": 0.5}, folder=tmp_path)
    got = xr.concat(Program().start(run), "time")
    xr.testing.assert_allclose(got, xr.concat(Wave().solve({"phase": 0.5}), "time"))
    assert all_gone(tmp_path)
    alone = xr.concat(Program().solve({"phase": 0.5}), "time")
    xr.testing.assert_equal(alone, got)


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("fails", r"(?s)ended with exit code 1, .*negative density\nin cell 3"),
        (
            "says",
            r"(?s)code 3, .*stderr is empty, its stdout ends:.*density\nin cell 3",
        ),
        ("missing", "exit code 127, .*stderr and stdout are empty"),
        ("dies", "was ended by SIGKILL"),
        ("early", "ended before it wrote all steps"),
    ],
)
def test_a_program_that_fails_is_quoted(tmp_path, fate, said):
    """With how it ended and the end of what it printed; the steps before it have arrived."""
    steps = []
    kind = MissingFileError if fate == "missing" else ProcessError
    with pytest.raises(kind, match=said) as error:
        for step in Program(fate).start(Run({"phase": 0.5}, folder=tmp_path)):
            steps.append(step)
    assert str(error.value).startswith("Program: ")
    assert len(str(error.value)) < 5000
    assert len(steps) == 3
    assert all_gone(tmp_path)


@pytest.mark.parametrize("fate", ["early", "fails", "dies"])
def test_a_program_may_end_early_where_that_is_regular(tmp_path, fate):
    """With exit code 0 alone; a retry may begin where it has ended."""
    solver, steps = Program(fate), []
    solver.may_end_early = True
    with pytest.raises(Ended if fate == "early" else ProcessError):
        for step in solver.start(Run({"phase": 0.5}, folder=tmp_path)):
            steps.append(step)
    assert len(steps) == 3
    assert all_gone(tmp_path)


def test_a_program_that_hangs_is_ended_in_time(tmp_path):
    """By the timeout, with all that it has started."""
    solver = Program("hangs", timeout=2.0)
    with pytest.raises(ProcessError, match=r"took longer than 2 s \(timeout\)"):
        list(solver.start(Run({"phase": 0.5}, folder=tmp_path)))
    assert all_gone(tmp_path)


def test_a_program_ends_with_its_run(tmp_path):
    """Which is stopped, or whose generator is closed."""
    with pytest.raises(Stopped):
        list(Program("hangs").start(Ending({"phase": 0.5}, folder=tmp_path)))
    assert all_gone(tmp_path)
    (tmp_path / "pids.txt").unlink()
    steps = Program("hangs").start(Run({"phase": 0.5}, folder=tmp_path))
    next(steps)
    assert not any(map(gone, pids(tmp_path)))
    steps.close()
    assert all_gone(tmp_path)


def test_a_program_dies_with_its_worker(tmp_path):
    """Though that is killed, and can clean up nothing."""
    code = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]\n"
        "from test_process import Program, Run\n"
        "run = Run({'phase': 0.5}, folder=pathlib.Path(sys.argv[1]))\n"
        "list(Program('hangs').start(run))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *sys.path])
    try:
        while not (tmp_path / "step_3").exists():
            assert worker.poll() is None
            time.sleep(0.01)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert all_gone(tmp_path)


def test_a_program_that_is_not_there_is_named(tmp_path):
    """With where to look."""

    class Missing(Program):
        def command(self, run):
            return ["no-such-program"]

    with pytest.raises(
        MissingFileError, match=r"'no-such-program' cannot be started .*PATH"
    ):
        next(Missing().start(Run({"phase": 0.5}, folder=tmp_path)))
    assert STEPS == 5
    assert os.listdir(tmp_path) == []
