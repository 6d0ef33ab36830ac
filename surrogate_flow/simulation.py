"""One simulation: a number, its parameters, and the task that runs it on a worker."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Crossing, Endpoint, Outlet, StreamStopped

__all__ = ["Simulation", "Summary", "run"]


@dataclass(frozen=True)
class Simulation:
    """One point in the space of parameters, to be solved.

    Attributes
    ----------
    number : int
        Its identity within the study.
    part : str
        What it is for: ``"validation"``, ``"test"`` or ``"training"``.
    parameters : mapping of str to float
    """

    number: int
    part: str
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class Summary:
    """What a task says of itself when it ends; the fields went another way.

    Attributes
    ----------
    steps : int
        That this attempt computed.
    seconds : float
        Wall time of the task.
    solver_seconds : float
        Of these, spent in the solver; the rest is conversion, sending and waiting for
        room.
    host : str
        Where it ran.
    stopped : bool
        The study ended before the simulation did.
    """

    steps: int
    seconds: float
    solver_seconds: float
    host: str
    stopped: bool = False


def run(
    solver: Solver, endpoint: Endpoint, simulation: Simulation, attempt: int
) -> Summary:
    """Solve one simulation and stream its steps; runs on a worker.

    Raises
    ------
    RefusedStep
        If the solver yields what its spec does not promise.
    Exception
        Whatever the solver raises.
    """
    start = time.perf_counter()
    steps, solving = 0, 0.0

    def summary(stopped: bool = False) -> Summary:
        seconds = time.perf_counter() - start
        return Summary(steps, seconds, solving, socket.gethostname(), stopped)

    spec = solver.spec
    crossing = Crossing(spec, simulation.number)
    try:
        with Outlet(
            endpoint,
            spec,
            simulation.number,
            attempt,
            spec.vector(simulation.parameters),
        ) as outlet:
            if outlet.complete:
                return summary()
            mark = time.perf_counter()
            for dataset in solver.solve(simulation.parameters):
                solving += time.perf_counter() - mark
                fields = crossing.convert(dataset, steps)
                outlet.send(fields)
                steps += len(fields)
                mark = time.perf_counter()
    except StreamStopped:
        return summary(stopped=True)
    return summary()
