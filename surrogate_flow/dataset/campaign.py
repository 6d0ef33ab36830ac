"""A campaign of simulations that have ended, one file each, as a data set."""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from surrogate_flow.dataset.campaign_file import CampaignFile
from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.dataset.writer import ArchiveError
from surrogate_flow.fields import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.files import NETCDF
from surrogate_flow.sampling.table import read_table

__all__ = ["Campaign", "found"]

logger = logging.getLogger(__name__)

# Raised by xarray and the libraries below it for a file that is damaged or none.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError)

# A column of such words has the numbers of files.
_NUMBERS = {"case", "file", "id", "index", "no", "nr", "number", "run", "sim"}
_NUMBERS |= {"simulation", "unnamed"}


def found(patterns: Sequence[str]) -> list[Path]:
    """Return the files that patterns, folders and paths name, each once.

    Raises
    ------
    ArchiveError
        If one names none.
    """
    files: list[Path] = []
    for pattern in patterns:
        folder = Path(pattern).is_dir() and Path(pattern).suffix != ".zarr"
        some = (
            [p for p in Path(pattern).iterdir() if p.suffix in NETCDF]
            if folder
            else [Path(name) for name in glob.glob(pattern, recursive=True)]
        )
        if not some:
            raise ArchiveError(
                f"There is no file {pattern!r} in {Path.cwd()}. Give files, a folder "
                "of netCDF files, or a pattern in quotes, such as 'campaign/*.nc'."
            )
        files += sorted(some)
    return _once(files)


def _once(files: Sequence[Path]) -> list[Path]:
    """Return each file under the first of its names: relative, absolute, a link."""
    return list({path.resolve(): path for path in reversed(files)}.values())[::-1]


class Campaign:
    """u[simulation, time, *space] from one file a simulation, steps along its time.

    Parameters
    ----------
    files : sequence of Path
        Whatever xarray opens.
    parameters : str
        A CSV file with a row for each file, or names, separated by commas; by default
        all numbers that differ between files, of their attributes and scalar variables.
    variables : str
        Names, separated by commas; by default all with the time axis and the dims of
        the one with most of them.
    time : str
        The dim of the steps; ``time`` by default, or what is marked as the time axis.
    held_out : sequence of Path or int, optional
        Kept apart from training: these files, or so many, drawn with `seed`; by default
        a fifth, 30 at most.
    seed : int
        Of the order of the files.
    skip_damaged : bool
        Whether a file that cannot be read, or differs from the others, is left out.

    Attributes
    ----------
    spec : FieldSpec
    files : list of Path
        In the order of their rows, the held-out ones first.
    held_out : int
    left_out : dict of Path to str
        Files that are not imported, and why.

    Raises
    ------
    ArchiveError
        If nothing can be made of them; it names file and difference.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        parameters: str = "",
        variables: str = "",
        time: str = "",
        held_out: Sequence[Path] | int | None = None,
        seed: int = 0,
        skip_damaged: bool = False,
    ) -> None:
        self.skip_damaged = skip_damaged
        self.left_out: dict[Path, str] = {}
        read = []
        for path in _once(files):
            with self._taken(path), _opened(path) as dataset:
                read.append(CampaignFile.of(path, dataset, time))
        _require_two(read)
        table = parameters if parameters.lower().endswith((".csv", ".tsv")) else ""
        names = [] if table else _split(parameters)
        if table:
            read = _with_rows(read, Path(table))
        usual = Counter(file.kind for file in read).most_common(1)[0][0]
        first = next(file for file in read if file.kind == usual)
        self.variables = _split(variables) or _usual_variables(first)
        self.parameters = names or _varying(read)
        same = []
        for file in read:
            with self._taken(file.path):
                _require_same(file, first, self.variables, self.parameters)
                same.append(file)
        _require_two(same)
        self.spec = _spec(same[0], self.variables, self.parameters, same)
        given = held_out if isinstance(held_out, Sequence) else ()
        kept = {path.resolve() for path in given}
        if others := kept - {path.resolve() for path in files}:
            raise ArchiveError(
                "held_out", "some of the files that are imported", min(others)
            )
        order = [same[k] for k in np.random.default_rng(seed).permutation(len(same))]
        order.sort(key=lambda file: file.path.resolve() not in kept)
        count = held_out if isinstance(held_out, int) else None
        if count is None:
            apart = sum(file.path.resolve() in kept for file in same)
            count = apart if kept else min(30, max(1, len(same) // 5))
        if not 1 <= count < len(same):
            raise ArchiveError(
                "held_out", f"1 to {len(same) - 1} of the {len(same)} files", count
            )
        self.held_out = count
        self.files = [file.path for file in order]
        self._times = {file.path: file.time for file in order}
        self.rows = [
            Simulation(
                number,
                "validation" if number < count else "training",
                {name: file.quantities[name][0] for name in self.parameters},
            )
            for number, file in enumerate(order)
        ]

    def write(
        self, path: Path, follow: Callable[[list[Path]], Iterator[Path]] = iter
    ) -> Archive:
        """Write the fields that a data set does not have yet; return it.

        Parameters
        ----------
        path : Path
            Of the data set.
        follow : callable
            Wraps the files, such as in a progress bar.
        """
        solver = {
            "class_path": "files",
            "init_args": {"files": [*map(str, self.files)]},
        }
        provenance = Provenance(self.spec, solver, {}, self.held_out, path.stem)
        archive = Archive.prepare(path, provenance, self.rows)
        try:
            archive.drop_incomplete()
            if changed := archive.read_from([*map(_stamp, self.files)]):
                logger.warning(
                    "%s has changed since it was imported%s: written again.",
                    self.files[changed[0]],
                    f", as have {len(changed) - 1} more" * (len(changed) > 1),
                )
            for number, file in enumerate(follow(self.files)):
                with self._taken(file, partial(archive.fail, number)):
                    self._write(archive, number, file)
        finally:
            archive.release()
        return archive

    def _write(self, archive: Archive, number: int, path: Path) -> None:
        writing = archive.writer.begin(self.spec, number)
        encoder, size = Encoder(self.spec, str(path)), archive.chunk_steps
        if writing.complete:
            return
        with _opened(path) as dataset:
            fields = dataset[self.variables].reset_coords(drop=True)
            # Coordinates are those of the first file, within rounding.
            fields = fields.drop_vars(list(fields.coords)).rename(
                {self._times[path]: "time"}
            )
            fields = fields.assign_coords(time=list(self.spec.times))
            for step in range(0, self.spec.steps, size):
                part = fields.isel(time=slice(step, step + size))
                writing.write(encoder.convert(part.load(), step))

    @contextmanager
    def _taken(self, path: Path, failed: Callable[[], object] = bool) -> Iterator[None]:
        """Name a file that is damaged or differs, or leave it out."""
        try:
            yield
        except (SpecMismatch, ArchiveError, *_UNREADABLE) as error:
            # What a solver would mend is not for files.
            why = str(error).partition(" Usual cause:")[0].strip()
            engine = "dependencies may not be installed" in why
            if not isinstance(error, SpecMismatch | ArchiveError):
                said = f"{type(error).__name__}: {(why.splitlines() or [''])[0]}"
                said = "netCDF 4 needs: pip install h5netcdf" if engine else said
                why = f"{path} cannot be read ({said})."
            if engine or not self.skip_damaged:
                remedy = "" if engine else " Mend it, or add --skip_damaged true."
                raise ArchiveError(why + remedy) from error
            self.left_out[path] = why
            failed()


def _require_two(files: Sequence[CampaignFile]) -> None:
    if len(files) < 2:
        raise ArchiveError(
            f"A data set needs two files or more, one held out, got {len(files)}."
        )


def _stamp(path: Path) -> str:
    """Return what changes with a file, or a folder of Zarr's."""
    stats = [part.stat() for part in (path, *path.rglob("*"))]
    return f"{sum(s.st_size for s in stats)} {max(s.st_mtime_ns for s in stats)}"


def _opened(path: Path) -> Any:
    # Times stay numbers, whatever their units.
    return xr.open_dataset(path, decode_times=False)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _usual_variables(file: CampaignFile) -> list[str]:
    dims = {name: frozenset(sizes) for name, (sizes, _) in file.variables.items()}
    count = max(map(len, dims.values()), default=0)
    names = [name for name, has in dims.items() if len(has) == count]
    if not names:
        raise ArchiveError(
            f"{file.path}: expected variables along the time axis, got none. Name the "
            "dim of the steps: --time DIM."
        )
    if len({dims[name] for name in names}) > 1:
        grids = {dims[n]: f"{n} ({', '.join(file.variables[n][0])})" for n in names}
        raise ArchiveError(
            f"{file.path}: expected variables on one grid, got "
            f"{', '.join(grids.values())}. Name those of one: --variables NAME,NAME."
        )
    return names


def _varying(files: Sequence[CampaignFile]) -> list[str]:
    """Return the names of the numbers that differ between files."""
    values: dict[str, set[float]] = {}
    for file in files:
        for name, (value, _) in file.quantities.items():
            values.setdefault(name, set()).add(value)
    names = [name for name, different in values.items() if len(different) > 1]
    if not names:
        raise ArchiveError(
            "No attribute and no scalar variable of the files is a number that differs "
            "between them, as a parameter does. Give a table: --parameters FILE.csv, "
            "with the column 'file' and one for each parameter."
        )
    return names


def _with_rows(files: Sequence[CampaignFile], path: Path) -> list[CampaignFile]:
    """Return the files with the numbers of their rows of a table."""
    table = read_table(path)
    named = [
        column
        for column in table.columns
        if {*re.findall("[a-z]+", str(column).lower())} <= _NUMBERS
    ]
    # A parameter may be 1, 2, 3, too: digits are those of a column that says so.
    keys: list[tuple[Callable[[Path], Any], Sequence[Any]]] = [
        (lambda p: p.name, table.columns),
        (lambda p: p.stem, table.columns),
        (str, table.columns),
        (lambda p: int((re.findall(r"\d+$", p.stem) or [-1])[0]), named),
    ]
    for key, columns in keys:
        wanted = [key(file.path) for file in files]
        if len({*wanted}) < len(wanted):
            continue
        fitting = [
            c for c in columns if table[c].is_unique and {*wanted} <= {*table[c]}
        ]
        if len(fitting) > 1:
            raise ArchiveError(
                f"{path}: expected one column that says which row is of which file, "
                f"got {', '.join(map(str, fitting))}. Take the others out."
            )
        if fitting:
            numbers = table.set_index(fitting[0]).select_dtypes("number")
            rows = numbers.loc[wanted].to_dict("records")
            return [
                replace(file, quantities={str(n): (v, "") for n, v in row.items()})
                for file, row in zip(files, rows, strict=True)
            ]
    raise ArchiveError(
        f"{path}: expected a column with the name of each file, such as "
        f"{files[0].path.name}, or one 'run' with its number, each once, got "
        f"{', '.join(map(str, table.columns))}."
    )


def _require_same(
    file: CampaignFile,
    first: CampaignFile,
    variables: Sequence[str],
    parameters: Sequence[str],
) -> None:
    """Refuse a file that is no simulation of the same fields as the first."""

    def differs(what: str, expected: object, got: object) -> ArchiveError:
        return ArchiveError(f"{file.path}: {what}", f"{expected} as {first.path}", got)

    for name in variables:
        if name not in file.variables:
            near = nearest(name, file.variables)
            raise ArchiveError(f"{file.path}: there is no variable {name!r}. {near}")
        if file.variables[name] != first.variables[name]:
            mine, theirs = (
                f"{f.variables[name][0]} {f.variables[name][1]}".strip()
                for f in (file, first)
            )
            raise differs(f"{name}", theirs, mine)
    dims = {"time", *first.variables[variables[0]][0]}
    for name, (dim, values, units) in first.coordinates.items():
        if dim in dims:
            other = file.coordinates.get(name, ("", np.empty(0), ""))
            if len(other[1]) != len(values):
                raise differs(f"{name}", f"{len(values)} positions", len(other[1]))
            apart = np.abs(other[1] - values) > 1e-6 * (np.ptp(values) or 1.0)
            if apart.any():
                k = int(apart.argmax())
                raise differs(f"{name}[{k}]", f"{values[k]:.9g}", f"{other[1][k]:.9g}")
            if other[2].partition(" since ")[0] != units.partition(" since ")[0]:
                raise differs(f"units of {name}", repr(units), repr(other[2]))
    for name in parameters:
        value = file.quantities.get(name, (np.nan, ""))[0]
        if not np.isfinite(value):
            near = nearest(name, file.quantities) if file is first else ""
            raise ArchiveError(
                f"{file.path}: no number {name!r} among its attributes and scalar "
                f"variables, or in its row. {near}".rstrip()
            )


def _spec(
    first: CampaignFile,
    variables: Sequence[str],
    parameters: Sequence[str],
    files: Sequence[CampaignFile],
) -> FieldSpec:
    sizes = first.variables[variables[0]][0]
    values = {n: [f.quantities[n][0] for f in files] for n in parameters}
    if constant := [n for n, v in values.items() if min(v) == max(v)]:
        raise ArchiveError(
            f"{constant[0]} is {values[constant[0]][0]:g} in all files: a parameter "
            "differs between simulations. Leave it out of --parameters."
        )
    _, times, time_units = first.coordinates["time"]
    return FieldSpec(
        parameters=tuple(
            Parameter(n, min(v), max(v), first.quantities[n][1])
            for n, v in values.items()
        ),
        variables=tuple(Variable(n, first.variables[n][1]) for n in variables),
        dims=tuple(sizes),
        shape=tuple(sizes.values()),
        times=tuple(times.tolist()),
        time_units=time_units,
        coordinates=tuple(
            Coordinate(name, dim, tuple(positions.tolist()), units)
            for name, (dim, positions, units) in first.coordinates.items()
            if dim in sizes
        ),
        cells=first.cells[1] if first.cells and [first.cells[0]] == [*sizes] else None,
    )
