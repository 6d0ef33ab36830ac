"""Many runs in files: what their files share, as a spec, and what differs."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from surrogate_flow.fields import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Positions
from surrogate_flow.files import NETCDF, not_netcdf
from surrogate_flow.solvers.stored.opening import Reading, Unfit
from surrogate_flow.solvers.stored.run import (
    INITIAL,
    StoredRun,
    cells_of,
    runs_of,
    steps_of,
)
from surrogate_flow.solvers.stored.table import of_the_run, with_rows

__all__ = ["UNREADABLE", "Follow", "StoredRuns", "found", "listed"]

logger = logging.getLogger(__name__)

#: Raised by xarray and the libraries below it for a file that is damaged or none.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError)

_NAMED = 10  # of the files that are damaged

#: Items, and what is done with them -> the items.
Follow = Callable[[Sequence[Any], str], Iterable[Any]]


def found(patterns: Sequence[str]) -> list[Path]:
    """Return the files that patterns, folders and paths name, each once.

    Raises
    ------
    ArgumentError
        If one names none.
    """
    files: list[Path] = []
    for pattern in patterns:
        folder = Path(pattern).is_dir() and Path(pattern).suffix != ".zarr"
        inside = [*Path(pattern).iterdir()] if folder else []
        some = (
            [p for p in inside if p.suffix in NETCDF]
            or [p for p in inside if p.suffix == ".zarr"]
            if folder
            else [Path(name) for name in glob.glob(pattern, recursive=True)]
        )
        if not some:
            raise ArgumentError(
                f"There is no file {pattern!r} in {Path.cwd()}. Give files, a folder "
                "of netCDF files, or a pattern in quotes, such as 'campaign/*.nc'."
            )
        files += sorted(some)
    return _once(files)


def _once(files: Sequence[Path]) -> list[Path]:
    """Return each file under the first of its names: relative, absolute, a link."""
    return list({path.resolve(): path for path in reversed(files)}.values())[::-1]


class StoredRuns:
    """u[run, time, *space] of files that have the same variables, positions and times.

    Parameters
    ----------
    files : sequence of Path
        Whatever xarray opens, with a run each, or with a dim of runs.
    reading : Reading
        What the files call things.
    parameters : str
        A CSV file with a row for each run, or names, separated by commas; by default
        all numbers that differ between runs, of attributes and scalar variables.
    variables : str
        Names, separated by commas; by default all with the time axis and the dims of
        the one with most of them.
    initial : str
        Names of parameters that only make the initial state, separated by commas.
    skip_damaged : bool
        Whether a file that cannot be read, or differs from the others, is left out.
    may_end_early : bool
        Whether a run may have fewer steps than others, the first ones.
    follow : callable
        Wraps files and what is done with them, such as in a progress bar.

    Attributes
    ----------
    spec : FieldSpec
    runs : list of StoredRun
        Those that can be read, in the order of the files.
    parameters : list of str
        Names.
    differing : list of str
        What differs between runs and is no number, or only some have.
    not_taken : list of str
        Variables that are left out.
    left_out : dict of Path to str
        Files that are left out, and why.

    Raises
    ------
    ArgumentError
        If nothing can be made of them; it names file and difference.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        parameters: str = "",
        variables: str = "",
        initial: str = "",
        skip_damaged: bool = False,
        may_end_early: bool = False,
        follow: Follow = lambda items, what: items,
    ) -> None:
        self.reading = reading
        self.skip_damaged = skip_damaged
        self.left_out: dict[Path, str] = {}
        read: list[StoredRun] = []
        for path in follow(_once(files), "read"):
            with self.noted(path):
                read += runs_of(path, reading)
        self._require_two(read)
        table = parameters if parameters.lower().endswith((".csv", ".tsv")) else ""
        names = [] if table else listed(parameters)
        if table:
            read = with_rows(read, Path(table))
        kinds = [run.kind(lengths=not may_end_early) for run in read]
        usual = Counter(kinds).most_common(1)[0][0]
        alike = [run for run, kind in zip(read, kinds, strict=True) if kind == usual]
        # The first, of the longest.
        first = max(alike, key=lambda run: run.steps)
        _require_known(reading.units, first)
        taken = listed(variables) or _usual_variables(first)
        self.differing = _differing(read)
        self.parameters = names or _varying(read)
        if not (self.parameters or reading.inputs):
            texts = ", ".join(self.differing)
            also = f"; what differs is text: {texts}" * bool(self.differing)
            state = f" Or take the initial state: --inputs {','.join(taken)}."
            raise ArgumentError(
                "No attribute and no scalar variable of the runs is a number that "
                f"differs between them, as a parameter does{also}. Give a table: "
                "--parameters FILE.csv, with the column 'file' and one for each "
                f"parameter.{state}"
            )
        others = first.names - {*taken, *self.parameters, *first.coordinates}
        others -= {*reading.inputs}
        self.not_taken = sorted(others)
        grid = _grid(first, taken, reading)
        positions = Positions(grid)
        self.runs: list[StoredRun] = []
        for run in read:
            with self.noted(run.path):
                run.require_same(first, grid, positions, self.parameters, may_end_early)
                more = {*run.on(grid)} - {*first.variables}
                if more and not variables:
                    raise Unfit(
                        f"{run}: variable {min(more)!r} is not in {first}. "
                        f"To leave it out: --variables {','.join(taken)}."
                    )
                self.runs.append(run)
        self._require_two(self.runs)
        bounds = _bounds(self.parameters, self.runs, reading.units)
        for name in listed(initial):
            if name not in self.parameters:
                near = nearest(name, self.parameters)
                raise ArgumentError(f"initial: there is no parameter {name!r}. {near}")
        bounds = [replace(p, initial=p.name in listed(initial)) for p in bounds]
        self.spec = replace(grid, parameters=tuple(bounds))
        self.require_none_left_out()
        self.spec = self._kept(first)

    def parameters_of(self, run: StoredRun) -> dict[str, float]:
        """Return the parameters of a run."""
        return {name: run.quantities[name][0] for name in self.parameters}

    def holes(self) -> list[str]:
        """Return the variables with NaN in the first step of the first run."""
        first, spec = self.runs[0], replace(self.spec, inputs=())
        place = first.path, first.index
        steps = next(iter(steps_of(place, self.reading, spec, 1)))
        return [v.name for v in spec.variables if steps[v.name].isnull().any()]

    def _kept(self, first: StoredRun) -> FieldSpec:
        """Return the spec with an offset for what single precision would lose."""
        encoder = Encoder(self.spec, str(first))
        with suppress(SpecMismatch):  # Said of it where it is read.
            place, spec = (first.path, first.index), replace(self.spec, inputs=())
            for step, steps in enumerate(steps_of(place, self.reading, spec, 1)):
                encoder.convert(steps, step)
        variables = tuple(encoder.kept(v) for v in self.spec.variables)
        for v in {*variables} - {*self.spec.variables}:
            logger.warning(
                "%s is kept as (%s - %.6g) / %.0e: single precision holds little of "
                "its variation.",
                *(v.name, v.name, v.offset, v.scale),
            )
        return replace(self.spec, variables=variables)

    @contextmanager
    def noted(self, path: Path) -> Iterator[None]:
        """Note a file that is damaged or differs, and why, among those left out."""
        try:
            yield
        except (Unfit, SpecMismatch) as error:
            # What a solver would mend is not for files.
            why, _, _ = str(error).partition(" Usual cause")
            self.left_out[path] = why
        except UserError:
            raise
        except UNREADABLE as error:
            self.left_out[path] = f"{path} {not_netcdf(error)}"

    def _require_two(self, runs: Sequence[StoredRun]) -> None:
        if len(runs) < 2:
            if not runs and self.left_out:
                # The mistake is one of the recipe: no file could mend it.
                raise ArgumentError(next(iter(self.left_out.values())))
            self.require_none_left_out()
            raise ArgumentError(
                f"Expected two files or more, one held out, got {len(runs)}; or one "
                "with a dim 'run' or 'sample' of many simulations."
            )

    def require_none_left_out(self) -> None:
        """Name all files at once that are damaged, or differ."""
        if self.left_out and not self.skip_damaged:
            (_, why), *others = self.left_out.items()
            more = len(others) - _NAMED
            names = [str(path) for path, _ in others[:_NAMED]]
            also = f" Not taken either: {', '.join(names)}" * bool(names)
            also += f", and {more} more" * (more > 0) + "." * bool(names)
            raise ArgumentError(
                f"{why}{also} Correct them, or add --skip_damaged true."
            )


def listed(names: str) -> list[str]:
    """Return names that commas separate."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _require_known(units: Mapping[str, str], run: StoredRun) -> None:
    known = sorted({*run.variables, *run.inputs, *run.coordinates, *run.quantities})
    for name in units:
        if name not in known:
            near = nearest(name, known)
            raise ArgumentError(f"{run}: units: there is no {name!r}. {near}")


def _usual_variables(run: StoredRun) -> list[str]:
    dims = {name: frozenset(sizes) for name, (sizes, _) in run.variables.items()}
    count = max(map(len, dims.values()), default=0)
    names = [name for name, has in dims.items() if len(has) == count]
    if not names:
        raise ArgumentError(
            f"{run}: expected variables along the time axis, got none. Name the "
            "dim of the steps: --time DIM."
        )
    if len({dims[name] for name in names}) > 1:
        grids = {dims[n]: f"{n} ({', '.join(run.variables[n][0])})" for n in names}
        raise ArgumentError(
            f"{run}: expected variables on one grid, got "
            f"{', '.join(grids.values())}. Name those of one: --variables NAME,NAME."
        )
    return names


def _varying(runs: Sequence[StoredRun]) -> list[str]:
    """Return the names of the numbers that differ between runs."""
    values: dict[str, set[float]] = {}
    for run in runs:
        for name, (value, _) in run.quantities.items():
            values.setdefault(name, set()).add(value)
    return [n for n, seen in values.items() if len(seen) > 1 and not of_the_run(n)]


def _differing(runs: Sequence[StoredRun]) -> list[str]:
    """Return what differs between runs and is no number in all, or says its run."""
    words: dict[str, list[str]] = {}
    held = Counter(name for run in runs for name in run.quantities)
    for run in runs:
        for name, text in run.texts.items():
            words.setdefault(name, []).append(text)
    return [
        *(n for n, has in words.items() if n not in held and {*has} != {has[0]}),
        *(
            name
            for name, count in held.items()
            if name not in words
            and (count < len(runs) or (of_the_run(name) and _differs(name, runs)))
        ),
    ]


def _differs(name: str, runs: Sequence[StoredRun]) -> bool:
    return len({run.quantities[name][0] for run in runs}) > 1


def _bounds(
    names: Sequence[str], runs: Sequence[StoredRun], given: Mapping[str, str]
) -> list[Parameter]:
    """Return the parameters, between their extremes, in the units that are given."""
    bounds = []
    for name in names:
        values, units = zip(*(run.quantities[name] for run in runs), strict=True)
        others = ",".join(n for n in names if n != name)
        remedy = f"Leave it out: --parameters {others or 'NAME'}."
        if min(values) == max(values):
            raise ArgumentError(
                f"{name} is {values[0]:g} in all runs: a parameter differs between "
                f"simulations. {remedy}"
            )
        try:
            own = given.get(name, units[0])
            bounds.append(Parameter(name, min(values), max(values), own))
        except ArgumentError as error:
            what, _, _ = str(error).partition(" Take the distance")
            raise ArgumentError(f"{what} {remedy}") from error
    return bounds


def _grid(first: StoredRun, variables: Sequence[str], reading: Reading) -> FieldSpec:
    """Return what a run has, without parameters."""
    for name in variables:
        if name not in first.variables:
            near = nearest(name, first.variables)
            raise ArgumentError(f"{first}: there is no variable {name!r}. {near}")
    sizes = first.variables[variables[0]][0]
    _, times, time_units = first.coordinates["time"]
    inputs = [
        replace(_input(first, name, sizes), masked=name in reading.masked)
        for name in reading.inputs
    ]
    for name in reading.masked:
        if name not in (known := [*variables, *reading.inputs]):
            near = nearest(name, known)
            raise ArgumentError(f"{first}: masked: there is no {name!r}. {near}")
    for name, count in Counter(v.name for v in inputs).items():
        if count > 1:
            raise ArgumentError("inputs", "each field once", f"{name!r} twice")
    if any(name in first.variables for name in reading.inputs):
        times = times[1:]  # The first is given.
    with reading.opened(first.path, first.index) as dataset:
        _, dim, every = cells_of(dataset)
        cells = tuple(tuple(cell[cell >= 0].tolist()) for cell in every)
    return FieldSpec(
        parameters=(),
        variables=tuple(
            Variable(
                n,
                first.variables[n][1],
                first.long_names[n],
                masked=n in reading.masked,
            )
            for n in variables
        ),
        dims=tuple(sizes),
        shape=tuple(sizes.values()),
        times=tuple(times.tolist()),
        time_units=time_units,
        coordinates=tuple(
            Coordinate(
                *(name, dim, tuple(positions.tolist()), units, first.long_names[name])
            )
            for name, (dim, positions, units) in first.coordinates.items()
            if dim in sizes
        ),
        cells=cells if [dim] == [*sizes] else None,
        inputs=tuple(inputs),
    )


def _input(first: StoredRun, name: str, sizes: Mapping[str, int]) -> Variable:
    """Return an input field: a field without steps, or the first step of a variable."""
    known = {**first.variables, **first.inputs}
    if name not in known:
        near = nearest(name, sorted({*known, *first.names}))
        raise ArgumentError(f"{first}: there is no field {name!r}. {near}")
    own, units = known[name]
    if own != sizes:
        raise ArgumentError(f"{first}: input {name!r}", f"the grid {dict(sizes)}", own)
    long_name = first.long_names[name]
    if name in first.inputs:
        return Variable(name, units, long_name)
    return Variable(name + INITIAL, units, f"initial {long_name}" if long_name else "")
