"""A solver whose values tell where they come from, and which fails as it was told to."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.solvers.solver import Ended, Solver

STRIDE = 256  # more than any simulation has steps
SLOW = 0.7  # seconds that a slow step takes


class Trouble(NamedTuple):
    """What happens when a simulation comes to a step, the first `times` times."""

    kind: str
    simulation: int
    step: int
    times: int


def values(number, step, cells):
    """The field of one step: exact in single precision, and no two steps share it."""
    return number * STRIDE + step + np.arange(cells) % 4 / 4


class Faulty(Solver):
    """u(number, step, x) = 256 number + step + (x mod 4) / 4, and some troubles.

    Parameters
    ----------
    folder : str
        Each trouble that strikes leaves a file there, with the id of its process.
    troubles : tuple of Trouble
    steps, cells : int
    ends : mapping of int to int
        Simulations that end early, and after how many steps.
    pace : float
        Seconds that a step takes.
    """

    def __init__(self, folder, troubles=(), steps=12, cells=50, pace=0.0, ends=()):
        self.folder = folder
        self.troubles = troubles
        self.pace = pace
        self.ends = dict(ends)
        self._spec = FieldSpec(
            parameters=(Parameter("number", 0.0, 1e6),),
            variables=(Variable("u"),),
            dims=("x",),
            shape=(cells,),
            times=tuple(float(k) for k in range(steps)),
        )

    @property
    def spec(self):
        return self._spec

    def solve(self, parameters):
        number, (cells,) = round(parameters["number"]), self.spec.shape
        for step, t in enumerate(self.spec.times):
            time.sleep(self.pace)
            u = values(number, step, cells)
            for trouble in self.troubles:
                if trouble[1:3] == (number, step) and self._claim(trouble):
                    u = getattr(self, trouble.kind)(u)
            yield xr.Dataset({"u": (("time", "x"), u[None])}, {"time": [t]})
            if self.ends.get(number) == step + 1:
                raise Ended(f"steady at t={t}")

    def _claim(self, trouble):
        for k in range(trouble.times):
            name = f"{trouble.kind}-{trouble.simulation}-{trouble.step}-{k}"
            try:
                with (Path(self.folder) / name).open("x") as file:
                    file.write(str(os.getpid()))
                return True
            except FileExistsError:
                continue
        return False

    def raises(self, u):
        raise ArithmeticError("injected")

    def nan(self, u):
        return u * np.nan

    def slow(self, u):
        time.sleep(SLOW)
        return u

    def hangs(self, u):
        threading.Event().wait()

    def gil(self, u):
        # Unlike CDLL, PyDLL keeps the GIL during the call.
        ctypes.PyDLL(None).sleep(10_000)

    def kill(self, u):
        os.kill(os.getpid(), signal.SIGKILL)

    def term(self, u):
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    def stop(self, u):
        os.kill(os.getpid(), signal.SIGSTOP)
        return u
