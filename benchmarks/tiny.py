"""A solver that costs nothing, so that everything around it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import xarray as xr

from surrogate_flow import FieldSpec, Parameter, Solver, Variable

__all__ = ["CELLS", "STEPS", "Tiny"]

STEPS, CELLS = 2, 10


class Tiny(Solver):
    """u = a, two steps of ten numbers."""

    spec = FieldSpec(
        parameters=(Parameter("a", 0.0, 1.0),),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(CELLS,),
        times=tuple(float(k) for k in range(STEPS)),
    )

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield both steps, one by one."""
        for t in self.spec.times:
            u = np.full((1, CELLS), parameters["a"], np.float32)
            yield xr.Dataset({"u": (("time", "x"), u)}, {"time": [t]})
