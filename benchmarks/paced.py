"""A solver of a known pace, which costs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from surrogate_flow import FieldSpec, Parameter, Solver, Variable

__all__ = ["PAUSE", "STEPS", "Paced"]

STEPS, CELLS, PAUSE = 20, 10, 0.1


class Paced(Solver):
    """u = a, twenty steps, ten a second."""

    spec = FieldSpec(
        parameters=(Parameter("a", 0.0, 1.0),),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(CELLS,),
        times=tuple(float(k) for k in range(STEPS)),
    )

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield the steps one by one, each after a pause."""
        for t in self.spec.times:
            time.sleep(PAUSE)
            u = np.full((1, CELLS), parameters["a"], np.float32)
            yield xr.Dataset({"u": (("time", "x"), u)}, {"time": [t]})
