"""One attempt at a simulation, on a worker: its steps, streamed and written."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from distributed import get_worker, warn
from jaxtyping import Float32

from surrogate_flow.ensemble.user_code import user_code
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.inputs import inputs_in, named_inputs, without_inputs
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.sampling import InputSampler
from surrogate_flow.solvers.grid import GridSolver
from surrogate_flow.solvers.solver import Ended, Run, Solver, Stopped, datasets_of
from surrogate_flow.stream import (
    Encoder,
    Endpoint,
    Outlet,
    SpecMismatch,
    StreamStopped,
)

if TYPE_CHECKING:
    from surrogate_flow.dataset import Writer

__all__ = ["Summary", "receipts", "run"]

Inputs = Float32[np.ndarray, " input *space"]

_WARNED: set[str] = set()


@dataclass(frozen=True)
class Summary:
    """The result of a task; the fields took another way.

    Attributes
    ----------
    steps : int
        Number of steps that this attempt computed.
    stopped : bool
        Whether the study ended before the simulation did.
    cast : str
        Which variables have come in another type than they are kept in.
    """

    steps: int
    stopped: bool = False
    cast: str = ""


def receipts(spec: FieldSpec) -> FieldSpec:
    """Return what is streamed of simulations that are archived only: a number a step.

    So the study sees the progress of each simulation, and no field moves.
    """
    return dataclasses.replace(
        spec,
        variables=(Variable("receipt"),),
        inputs=(),
        dims=(),
        shape=(),
        coordinates=(),
        cells=None,
    )


@dataclass(frozen=True)
class _Streamed(Run):
    """A run that its inlet can stop."""

    outlet: Outlet | None = None

    def check(self) -> None:
        assert self.outlet is not None, "run() sets it"
        try:
            self.outlet.check()
        except StreamStopped as error:
            raise Stopped(str(error)) from error

    def alive(self) -> None:
        assert self.outlet is not None, "run() sets it"
        try:
            self.outlet.alive()
        except StreamStopped as error:
            raise Stopped(str(error)) from error


def run(
    solver: Solver,
    endpoint: Endpoint,
    simulation: Simulation,
    attempt: int,
    *,
    cores: int = 1,
    writer: Writer | None = None,
    streams: bool = True,
    inputs: InputSampler | None = None,
) -> Summary:
    """Solve one simulation and stream its steps; runs on a worker.

    Parameters
    ----------
    solver : Solver
    endpoint : Endpoint
        Of the study's inlet.
    simulation : Simulation
    attempt : int
    cores : int
        That the solver may use.
    writer : Writer, optional
        Of a data set that it goes into, too.
    streams : bool
        Whether fields are streamed, or `receipts` for them.
    inputs : InputSampler, optional
        Draws the input fields; without it the solver's first dataset has them.

    Raises
    ------
    SpecMismatch
        If the solver yields what its spec does not promise.
    ArchiveError
        If the data set cannot be written.
    Exception
        Whatever the solver raises.
    """
    steps, spec = 0, solver.spec
    streamed = spec if streams else receipts(spec)
    vector = spec.vector(simulation.parameters)
    try:
        with (
            user_code(),
            Outlet(endpoint, streamed, simulation.number, attempt, vector) as outlet,
        ):
            if outlet.complete:
                return Summary(0)
            writing = writer and writer.begin(spec, simulation.number)
            if writing and writing.complete and not streams:
                # Its last receipts were lost with the process that wrote it.
                outlet.send(np.zeros((writing.steps, 1), dtype=np.float32))
                outlet.end("an earlier attempt has ended early")
                return Summary(0)
            # A data set needs all steps of this attempt: it lacks some of the last.
            wanted = 0 if writing else outlet.next_step

            def give(fields: Callable[[], Inputs]) -> Inputs:
                given = _required(simulation, fields)
                if writing:
                    writing.give(given)
                if streams:
                    outlet.give(given)
                return given

            drawn = {}
            if spec.inputs and inputs is not None:
                drawn = named_inputs(
                    spec, give(lambda: inputs.fields(simulation, spec))
                )
            streamed_run = _Streamed(
                simulation.parameters,
                simulation.number,
                attempt,
                first_step=wanted,
                cores=cores,
                inputs=drawn,
                outlet=outlet,
            )
            step, datasets = 0, _solution(solver, streamed_run)
            encoder = Encoder(spec, simulation.number, datasets)
            if spec.inputs and not drawn:
                datasets = _given_first(datasets, spec, give)
            try:
                for dataset in datasets:
                    if not steps and wanted and encoder.begins_at(dataset, wanted):
                        step = wanted
                        outlet.skip()
                    fields = encoder.convert(dataset, step)
                    if writing:
                        # Before it is sent: a complete simulation never runs again.
                        writing.write(fields)
                    if not streams:
                        fields = np.zeros((len(fields), 1), dtype=np.float32)
                    outlet.send(fields)
                    step += len(fields)
                    steps += len(fields)
            except Ended as error:
                if writing:
                    writing.end()
                outlet.end(str(error))
            if encoder.lost and encoder.lost not in _WARNED:
                _WARNED.add(encoder.lost)
                with warnings.catch_warnings(action="ignore"):
                    warn(encoder.lost)  # It is said where the study is, not here.
    except StreamStopped:
        return Summary(steps, stopped=True)
    return Summary(steps, cast=encoder.cast)


def _required(simulation: Simulation, fields: Callable[[], Inputs]) -> Inputs:
    """Return input fields; another attempt would give the same wrong ones."""
    try:
        return fields()
    except ArgumentError as error:
        raise SpecMismatch(f"Simulation {simulation.number}: {error}") from error


def _given_first(
    datasets: Iterator[xr.Dataset],
    spec: FieldSpec,
    give: Callable[[Callable[[], Inputs]], Inputs],
) -> Iterator[xr.Dataset]:
    """Give the input fields of the first dataset; yield all without them."""
    begun = False
    who = "the first dataset, whose inputs no data.inputs draws"
    for dataset in datasets:
        if not isinstance(dataset, xr.Dataset):
            yield dataset  # The encoder refuses it.
        if not begun:
            give(partial(inputs_in, spec, dataset, who))
            begun = True
        yield without_inputs(dataset, spec)


def _solution(solver: Solver, run: Run) -> Iterator[xr.Dataset]:
    """Yield what the solver yields.

    Closed early, it closes the solver's generator before it removes the folder.
    """
    with ExitStack() as resources:
        try:
            if type(solver).start not in (Solver.start, GridSolver.start):
                folder = tempfile.TemporaryDirectory(
                    prefix=f"simulation-{run.simulation}-", dir=_local_directory()
                )
                path = Path(resources.enter_context(folder))
                run = dataclasses.replace(run, folder=path)
            yield from datasets_of(solver, run)
        except Stopped as error:
            raise StreamStopped(str(error)) from error


def _local_directory() -> str | None:
    """Where this worker keeps its files; nannies remove it when a worker is killed."""
    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None
