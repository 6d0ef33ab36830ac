"""Solvers for tests: a tiny wave, and all the ways to get it wrong."""

import dataclasses
import faulthandler
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil
import xarray as xr
from distributed import get_worker

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers.solver import Ended, Solver

STEPS, CELLS = 5, 4


class Wave(Solver):
    """u(t, x) = phase + t + x / 10, so that every value tells where it comes from."""

    spec = FieldSpec(
        parameters=(Parameter("phase", 0.0, 1.0, "rad"),),
        variables=(Variable("u", "m"),),
        dims=("x",),
        shape=(CELLS,),
        times=tuple(float(k) for k in range(1, STEPS + 1)),
        time_units="s",
        coordinates=(Coordinate("x", "x", tuple(float(k) for k in range(CELLS)), "m"),),
    )

    def solve(self, parameters):
        for t in self.spec.times:
            yield self.step(parameters["phase"], t)

    def step(self, phase, t, name="u", cells=CELLS):
        u = phase + t + np.arange(cells) / 10
        return xr.Dataset({name: (("time", "x"), u[None])}, {"time": [t]})


class Leisurely(Wave):
    """A wave that takes its time."""

    def solve(self, parameters):
        for t in self.spec.times:
            yield self.step(parameters["phase"], t)
            time.sleep(0.3)


class Gated(Wave):
    """A wave whose later simulations wait until a file exists.

    Parameters
    ----------
    gate : str
    """

    free = 40  # simulations that do not wait

    def __init__(self, gate):
        self.gate = Path(gate)

    def start(self, run):
        while run.simulation >= self.free and not self.gate.exists():
            run.check()
            time.sleep(0.05)
        yield from super().start(run)


class Hoarder(Wave):
    """A wave whose worker holds much memory after it, until a file exists.

    Parameters
    ----------
    file : str
    megabytes : int
        That the process holds then.
    """

    held: ClassVar = []

    def __init__(self, file, megabytes):
        self.file = file
        self.megabytes = megabytes

    def solve(self, parameters):
        yield from super().solve(parameters)
        if not self.held and not Path(self.file).exists():
            missing = self.megabytes * 10**6 - psutil.Process().memory_info().rss
            self.held.append(np.ones(missing // 8))
            threading.Thread(target=self.let_go, daemon=True).start()

    def let_go(self):
        while not Path(self.file).exists():
            time.sleep(0.05)
        self.held.clear()


class Troubled(Wave):
    """A wave that fails in one way, for phases above a limit.

    Parameters
    ----------
    fault : str
        Which way.
    above : float
        Phases that fail.
    """

    def __init__(self, fault: str, above: float = 0.5) -> None:
        self.fault = fault
        self.above = above

    def solve(self, parameters):
        if parameters["phase"] <= self.above:
            yield from super().solve(parameters)
            return
        phase = parameters["phase"]
        yield from getattr(self, self.fault)(phase)

    def raises(self, phase):
        yield self.step(phase, 1.0)
        raise ArithmeticError("negative density in cell 3")

    def nan(self, phase):
        yield self.step(phase, 1.0)
        yield self.step(phase, 2.0) * np.nan

    def shape(self, phase):
        yield self.step(phase, 1.0, cells=CELLS + 1)

    def variable(self, phase):
        yield self.step(phase, 1.0, name="U")

    def order(self, phase):
        yield self.step(phase, 2.0)

    def nothing(self, phase):
        yield from ()

    def half(self, phase):
        yield self.step(phase, 1.0)
        yield self.step(phase, 2.0)

    def exits(self, phase):
        yield self.step(phase, 1.0)
        sys.exit("CFL number 3.2 in cell 7")

    def array(self, phase):
        yield self.step(phase, 1.0)["u"].values

    def dies(self, phase):
        yield self.step(phase, 1.0)
        os._exit(1)

    def crashes(self, phase):
        yield self.step(phase, 1.0)
        faulthandler._sigsegv()

    def here(self, phase):
        if get_worker().name == 0:
            raise OSError("libsolver.so.7: cannot open shared object file")
        yield from super().solve({"phase": phase})

    def hangs(self, phase):
        yield self.step(phase, 1.0)
        threading.Event().wait()


class FailsLate(Wave):
    """A wave that raises at its last but one step for large phases, fast or slow."""

    def __init__(self, pace):
        self.pace = pace

    def solve(self, parameters):
        for k, t in enumerate(self.spec.times):
            if k == STEPS - 2:
                time.sleep(self.pace)
                if parameters["phase"] > 0.7:
                    raise ArithmeticError("always here")
            yield self.step(parameters["phase"], t)


class Returning(Wave):
    """A wave whose author has left out the word yield.

    Parameters
    ----------
    what : bool
        Whether there is something in its place.
    """

    def __init__(self, what: bool) -> None:
        self.what = what

    def solve(self, parameters):
        return self.step(parameters["phase"], 1.0) if self.what else None


class OddFail(Wave):
    """A wave that fails for training simulations with an odd number, behind 3 held-out ones."""

    def __init__(self) -> None:
        phases = Uniform(0).ask(0, 497, self.spec.parameters)[:, 0].tolist()
        self.failing = {phase for n, phase in enumerate(phases, 3) if n % 2}

    def solve(self, parameters):
        if parameters["phase"] in self.failing:
            raise ArithmeticError("odd")
        yield from super().solve(parameters)


class Heavy(Wave):
    """A wave of 100 KB a step and 60 steps; those of small phases take their time."""

    spec = dataclasses.replace(
        Wave.spec,
        shape=(25_000,),
        times=tuple(float(k) for k in range(1, 61)),
        coordinates=(),
    )

    def solve(self, parameters):
        phase = parameters["phase"]
        for t in self.spec.times:
            time.sleep(0.02 if phase < 0.5 else 0.0)
            yield self.step(phase, t, cells=25_000)


class Threads(Wave):
    """A wave that tells how many threads OpenMP may use."""

    def solve(self, parameters):
        for t in self.spec.times:
            u = np.full(CELLS, float(os.environ["OMP_NUM_THREADS"]))
            yield xr.Dataset({"u": (("time", "x"), u[None])}, {"time": [t]})


class Parallel(Wave):
    """A wave of the sum of all ranks, 1 + ... + n, of an MPI program that it starts.

    Parameters
    ----------
    ranks : int
        n.
    """

    # MPICH by its C interface: where mpi4py is, Lightning starts MPI in the trainer.
    program = """if True:
        import ctypes, sys
        from pathlib import Path
        mpi = ctypes.CDLL(str(Path(sys.prefix, "lib", "libmpi.so.12")))
        world, integer, add = 0x44000000, 0x4C000405, 0x58000003
        rank, total = ctypes.c_int(), ctypes.c_int()
        mpi.MPI_Init(None, None)
        mpi.MPI_Comm_rank(world, ctypes.byref(rank))
        mine = ctypes.c_int(rank.value + 1)
        mpi.MPI_Allreduce(
            ctypes.byref(mine), ctypes.byref(total), 1, integer, add, world
        )
        mpi.MPI_Finalize()
        rank.value or print(total.value)
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def solve(self, parameters):
        mpirun = Path(sys.executable).with_name("mpirun")
        words = [mpirun, "-launcher", "fork", "-n", str(self.ranks)]
        for t in self.spec.times:
            done = subprocess.run(
                [*words, sys.executable, "-c", self.program],
                capture_output=True,
                text=True,
                check=True,
            )
            u = np.full(CELLS, float(done.stdout))
            yield xr.Dataset({"u": (("time", "x"), u[None])}, {"time": [t]})


class Booked(Leisurely):
    """A leisurely wave that notes its phase in a file when a simulation begins."""

    def __init__(self, path: str) -> None:
        self.path = path

    def solve(self, parameters):
        with open(self.path, "a") as file:
            file.write(f"{parameters['phase']!r}\n")
        yield from super().solve(parameters)


class Noted(Wave):
    """A wave that notes its phase in a file when it begins, and takes a moment."""

    def __init__(self, path: str) -> None:
        self.path = path

    def solve(self, parameters):
        with open(self.path, "a") as file:
            file.write(f"{parameters['phase']!r}\n")
        for step in super().solve(parameters):
            time.sleep(0.02)
            yield step


class Fading(Wave):
    """A wave that has ended after 1, 2, ... or all of its steps, by its phase."""

    @staticmethod
    def length(phase):
        return min(1 + int(phase * STEPS), STEPS)

    def solve(self, parameters):
        phase = parameters["phase"]
        yield from list(super().solve(parameters))[: self.length(phase)]
        raise Ended(f"faded at {phase:.3f}")
