"""Stored runs as a solver: what has been simulated once is streamed again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.quantities import checked_seed
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import not_netcdf
from surrogate_flow.solvers.solver import Ended, Run, Solver
from surrogate_flow.solvers.stored.opening import Reading
from surrogate_flow.solvers.stored.run import steps_of
from surrogate_flow.solvers.stored.runs import UNREADABLE, StoredRuns, found, listed

__all__ = ["Replay"]

_BYTES = 2**22  # of steps that are read at once
_NAP = 0.1  # seconds between two looks whether the study has ended
# What errors say of options of commands, which are arguments here.
_OPTION = re.compile(r"--(parameters|inputs|variables|skip_damaged|may_end_early) ")


class Replay(Solver):
    """u(t_1), u(t_2), ... of runs that have ended, from their files.

    Files are netCDF, Zarr, or HDF5 as PDEBench and The Well have it, with a run each,
    or with a dim ``run`` (``sample``, ``simulation`` ...). A study runs each of them
    once, without a sampler: their parameters are known.

    Parameters
    ----------
    files : str or list of str
        Paths, folders and patterns, such as ``runs/*.nc``; where the workers see them.
    parameters : str or list of str, optional
        Names, or a CSV file with a row for each run; by default all numbers that differ
        between runs, of attributes and scalar variables.
    variables : list of str, optional
        Names; by default all with the time axis and the most dims.
    inputs : list of str, optional
        Fields without steps, such as a permeability; or variables, whose first step is
        then ``<variable>_initial``, and no step. Networks get them beside the
        parameters, of which there need be none.
    initial : list of str, optional
        Names of parameters that only make the initial state: networks that see a
        history do not see them.
    names : mapping of str to str, optional
        Of variables, dims, coordinates and attributes: in the files, and here. The dim
        of steps is called ``time`` here, that of runs ``run``.
    units : mapping of str to str, optional
        By names here, in place of those of the files.
    times : float or list of float, optional
        Of the steps, in place of those of the files; one number is the time between
        two steps, from 0.
    rate : float, optional
        Steps a second of each run; as fast as the files are read by default.
    seed : int
        Of the order of the runs, the first of which are held out.
    skip_damaged : bool
        Whether files that cannot be read, or differ from the others, are left out.
    masked : list of str, optional
        Fields that may be NaN where they are not defined, as over land.
    may_end_early : bool
        Whether a run may have fewer steps than others, the first ones: its simulation
        has ended early.

    Raises
    ------
    ArgumentError
        If the files are no runs of one grid with parameters that differ.
    """

    def __init__(
        self,
        files: str | list[str],
        *,
        parameters: str | list[str] = "",
        variables: str | list[str] = "",
        inputs: str | list[str] = "",
        initial: str | list[str] = "",
        names: dict[str, str] | None = None,
        units: dict[str, str] | None = None,
        times: float | list[float] | None = None,
        rate: float | None = None,
        seed: int = 0,
        skip_damaged: bool = False,
        masked: str | list[str] = "",
        may_end_early: bool = False,
    ) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise ArgumentError("Replay: rate", "steps a second, > 0", rate)
        self.files, self.parameters, self.variables = files, parameters, variables
        self.inputs, self.initial = inputs, initial
        self.names, self.units, self.times = names or {}, units or {}, times
        self.rate, self.skip_damaged = rate, skip_damaged
        self.seed = checked_seed(seed, self)
        self.may_end_early = may_end_early
        self.masked = masked
        given, holes = (listed(_joined(names)) for names in (inputs, masked))
        patterns = [files] if isinstance(files, str) else list(files)
        try:
            self._reading = Reading("", self.names, self.units, times, given, holes)
            stored = StoredRuns(
                found(patterns),
                reading=self._reading,
                parameters=_joined(parameters),
                variables=_joined(variables),
                initial=_joined(initial),
                skip_damaged=skip_damaged,
                may_end_early=may_end_early,
            )
        except ArgumentError as error:
            said = str(error).replace("--time DIM", "names: {DIM: time}")
            raise type(error)(_OPTION.sub(r"\1: ", f"Replay: {said}")) from error
        self._spec = stored.spec
        order = np.random.default_rng(seed).permutation(len(stored.runs))
        runs = [stored.runs[k] for k in order]
        self._places = [(run.path, run.index) for run in runs]
        self._points = np.array([[*stored.parameters_of(r).values()] for r in runs])

    @property
    def spec(self) -> FieldSpec:
        """What the files have in common."""
        return self._spec

    @property
    def stored_parameters(self) -> Mapping[str, Sequence[float]]:
        """Those of the runs, in the order of the simulations of a study."""
        names = (p.name for p in self.spec.parameters)
        columns = dict(zip(names, self._points.T.tolist(), strict=True))
        # Runs that differ in their inputs alone are told apart by their numbers.
        return columns or {"run": [*range(len(self._points))]}

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield the steps of the run that has these parameters."""
        return self.start(Run(parameters))

    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Yield the steps of a run, several together if they need not wait.

        Of runs with the same parameters it is the one of the simulation's number.

        Raises
        ------
        ArgumentError
            If no run has these parameters, or its file can be read no more.
        """
        path, index = self._places[self._row(run)]
        size = 1 if self.rate else max(1, _BYTES // self.spec.step_bytes)
        begin, first = time.monotonic(), run.first_step
        try:
            for number, steps in enumerate(
                steps_of((path, index), self._reading, self.spec, size, first)
            ):
                if self.rate:
                    _wait(begin + (number + 1) / self.rate, run)
                first += steps.sizes["time"]
                yield steps
        except UserError:
            raise
        except UNREADABLE as error:
            raise ArgumentError(f"Replay: {path} {not_netcdf(error)}") from error
        if self.may_end_early and first < self.spec.steps:
            raise Ended("its file has no more steps")

    def _row(self, run: Run) -> int:
        wanted = self.spec.vector(run.parameters)
        rows = np.flatnonzero((self._points == wanted).all(axis=1))
        if not len(rows):
            raise ArgumentError(
                f"Replay: none of the {len(self._points)} runs has the parameters "
                f"{dict(run.parameters)}: it has stored runs alone. Leave data.sampler "
                "and data.held_out_sampler out."
            )
        if run.simulation in rows:
            return run.simulation
        if run.simulation >= len(self._points) and len(rows) > 1:
            raise ArgumentError(
                f"Replay: expected one of the {len(self._points)} stored runs, got "
                f"simulation {run.simulation}."
            )
        return int(rows[0])


def _joined(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)


def _wait(until: float, run: Run) -> None:
    while (left := until - time.monotonic()) > 0:
        run.check()
        time.sleep(min(left, _NAP))
