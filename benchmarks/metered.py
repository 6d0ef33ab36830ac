"""The heat equation, and what it takes of a processor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import xarray as xr

from surrogate_flow import FieldSpec, Solver
from surrogate_flow.solvers import Heat2D

__all__ = ["MeteredHeat2D", "metered"]


class MeteredHeat2D(Solver):
    """`Heat2D` that notes the processor seconds of each simulation in a file.

    Processes that compete for a core do not add to them, and what is done with a step
    between two of them does not count.

    Parameters
    ----------
    log : str
        The file, to which each simulation appends a line; made if it is not there.
    cells : int
        Along x and y.
    steps : int
    conductivity_slope : float
        As `Heat2D`.
    """

    def __init__(
        self, log: str, cells: int, steps: int, conductivity_slope: float = 0.004
    ) -> None:
        self.log = log
        self.cells, self.steps = cells, steps
        self.conductivity_slope = conductivity_slope
        self._heat = Heat2D(
            (cells, cells), steps=steps, conductivity_slope=conductivity_slope
        )

    @property
    def spec(self) -> FieldSpec:
        """That of `Heat2D`."""
        return self._heat.spec

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield the steps of `Heat2D`."""
        spent, steps = 0.0, self._heat.solve(parameters)
        while True:
            before = time.thread_time()
            step = next(steps, None)
            spent += time.thread_time() - before
            if step is None:
                break
            yield step
        # Short enough to be written at once, whoever else writes.
        with open(self.log, "a") as log:
            log.write(json.dumps([spent, *parameters.values()]) + "\n")


def metered(log: Path) -> tuple[float, int, int]:
    """Return the seconds of a log, its simulations, and how many of them differ."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    different = {tuple(parameters) for _, *parameters in lines}
    return sum(spent for spent, *_ in lines), len(lines), len(different)
