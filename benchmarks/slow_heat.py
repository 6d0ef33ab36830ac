"""The heat equation at the pace of a slower solver."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import xarray as xr

from surrogate_flow import FieldSpec, Solver
from surrogate_flow.solvers import Heat2D

__all__ = ["SlowHeat2D"]


class SlowHeat2D(Solver):
    """The steps of `Heat2D`, one every `pause` seconds.

    Solvers that iterate on the same equation are two orders of magnitude slower than
    one that transforms; where simulations are the bottleneck, that is what decides.

    Parameters
    ----------
    pause : float
        Seconds from one step to the next. Two simulations at a time with 0.02 s bring
        100 samples a second.
    cells : tuple of int
        As `Heat2D`.
    """

    def __init__(
        self, pause: float = 0.02, cells: tuple[int, int] = (100, 100)
    ) -> None:
        self.pause = pause
        self.cells = cells
        self._heat = Heat2D(cells)

    @property
    def spec(self) -> FieldSpec:
        """That of `Heat2D`."""
        return self._heat.spec

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield the steps of `Heat2D`, each after a pause."""
        for step in self._heat.solve(parameters):
            time.sleep(self.pause)
            yield step
