"""One simulation: a number, its parameters, and the task that runs it on a worker."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Encoder, Endpoint, Outlet, SpecMismatch, StreamStopped

if TYPE_CHECKING:
    from surrogate_flow.dataset import Writer

__all__ = ["Summary", "receipts", "run"]


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


def receipts(spec: FieldSpec) -> FieldSpec:
    """Return what is streamed of simulations that are archived only: a number a step.

    So the study sees how each simulation gets on, as ever, and no field moves.
    """
    return dataclasses.replace(
        spec,
        variables=(Variable("receipt"),),
        dims=(),
        shape=(),
        coordinates=(),
        cells=None,
    )


def run(
    solver: Solver,
    endpoint: Endpoint,
    simulation: Simulation,
    attempt: int,
    *,
    writer: Writer | None = None,
    streams: bool = True,
) -> Summary:
    """Solve one simulation and stream its steps; runs on a worker.

    Parameters
    ----------
    solver : Solver
    endpoint : Endpoint
        Of the study's inlet.
    simulation : Simulation
    attempt : int
    writer : Writer, optional
        Of a data set that it goes into, too.
    streams : bool
        Whether fields are streamed, or `receipts` for them.

    Raises
    ------
    SpecMismatch
        If the solver yields what its spec does not promise.
    ArchiveError
        If the data set cannot be written.
    Exception
        Whatever the solver raises.
    """
    start = time.perf_counter()
    steps, solving = 0, 0.0

    def summary(stopped: bool = False) -> Summary:
        seconds = time.perf_counter() - start
        return Summary(steps, seconds, solving, socket.gethostname(), stopped)

    spec = solver.spec
    streamed = spec if streams else receipts(spec)
    crossing = Encoder(spec, simulation.number)
    try:
        with Outlet(
            endpoint,
            streamed,
            simulation.number,
            attempt,
            spec.vector(simulation.parameters),
        ) as outlet:
            if outlet.complete:
                return summary()
            writing = writer and writer.begin(spec, simulation.number)
            if writing and writing.complete and not streams:
                # Its last receipts were lost with the process that wrote it.
                outlet.send(np.zeros((spec.steps, 1), dtype=np.float32))
                return summary()
            mark = time.perf_counter()
            for dataset in _solution(solver, simulation):
                solving += time.perf_counter() - mark
                fields = crossing.convert(dataset, steps)
                if writing:
                    # Before the step is sent: a whole simulation does not run again.
                    writing.write(fields)
                if not streams:
                    fields = np.zeros((len(fields), 1), dtype=np.float32)
                outlet.send(fields)
                steps += len(fields)
                mark = time.perf_counter()
    except StreamStopped:
        return summary(stopped=True)
    return summary()


def _solution(solver: Solver, simulation: Simulation) -> Iterator[xr.Dataset]:
    """Yield what the solver yields, without an end of the worker's process."""
    try:
        datasets = solver.solve(simulation.parameters)
        if isinstance(datasets, xr.Dataset) or not isinstance(datasets, Iterable):
            raise SpecMismatch(
                f"Simulation {simulation.number}: expected solve to yield datasets, "
                f"step by step; solve returned {type(datasets).__name__}. Usual cause: "
                "a function without yield. Write yield in place of return."
            )
        yield from datasets
    except SystemExit as error:
        raise RuntimeError(f"the solver called sys.exit({error.code!r})") from error
