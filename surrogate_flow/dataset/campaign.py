"""A campaign of simulations that have ended, one file each, as a data set."""

from __future__ import annotations

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float32

from surrogate_flow.dataset.campaign_file import CampaignFile, Unfit, cells_of
from surrogate_flow.dataset.campaign_table import of_the_run, with_rows
from surrogate_flow.dataset.dataset import Archive
from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.dataset.writer import ArchiveError
from surrogate_flow.fields import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Positions
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.files import NETCDF, not_netcdf

__all__ = ["Campaign", "found"]

logger = logging.getLogger(__name__)

# Raised by xarray and the libraries below it for a file that is damaged or none.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError)

_NAMED = 10  # of the files that are damaged

#: Items, and what is done with them -> the items.
Follow = Callable[[Sequence[Any], str], Iterable[Any]]


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
    follow : callable
        Wraps files and what is done with them, such as in a progress bar.

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
        follow: Follow = lambda items, what: items,
    ) -> None:
        self.skip_damaged = skip_damaged
        self.left_out: dict[Path, str] = {}
        self._follow = follow
        read = []
        for path in follow(_once(files), "read"):
            with self._noted(path), _opened(path) as dataset:
                read.append(CampaignFile.of(path, dataset, time))
        self._require_two(read)
        table = parameters if parameters.lower().endswith((".csv", ".tsv")) else ""
        names = [] if table else _split(parameters)
        if table:
            read = with_rows(read, Path(table))
        usual = Counter(file.kind for file in read).most_common(1)[0][0]
        first = next(file for file in read if file.kind == usual)
        self.variables = _split(variables) or _usual_variables(first)
        #: What differs between files and is no number, or only some have.
        self.differing = _differing(read)
        self.parameters = names or _varying(read, self.differing)
        taken = {*self.variables, *self.parameters, *first.coordinates}
        #: Variables that are not imported.
        self.not_taken = sorted(first.names - taken)
        grid = _grid(first, self.variables)
        positions, same = Positions(grid), []
        for file in read:
            with self._noted(file.path):
                file.require_same(first, grid, positions, self.parameters)
                more = {*file.on(grid)} - {*first.variables}
                if more and not variables:
                    raise Unfit(
                        f"{file.path}: variable {min(more)!r} is not in {first.path}. "
                        f"To leave it out: --variables {','.join(self.variables)}."
                    )
                same.append(file)
        self._require_two(same)
        self.spec = replace(grid, parameters=_bounds(self.parameters, same))
        self._require_none_left_out()
        self.spec = self._kept(first)
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
        self._order = order
        self.files = [file.path for file in order]
        self.rows = [
            Simulation(
                number,
                "validation" if number < count else "training",
                {name: file.quantities[name][0] for name in self.parameters},
            )
            for number, file in enumerate(order)
        ]

    def _kept(self, first: CampaignFile) -> FieldSpec:
        """Return the spec with an offset for what single precision would lose."""
        encoder = Encoder(self.spec, str(first.path))
        with suppress(SpecMismatch):  # Said of it where it is written.
            for _ in self._steps(encoder, first, 1):
                pass
        variables = tuple(encoder.kept(v) for v in self.spec.variables)
        for v in {*variables} - {*self.spec.variables}:
            logger.warning(
                "%s is kept as (%s - %.6g) / %.0e: single precision holds little of "
                "its variation.",
                *(v.name, v.name, v.offset, v.scale),
            )
        return replace(self.spec, variables=variables)

    def write(self, path: Path) -> Archive:
        """Write the fields that a data set at `path` does not have yet; return it."""
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
            lost: set[str] = set()
            for number, file in enumerate(self._follow(self._order, "write")):
                writing = archive.writer.begin(self.spec, number)
                if writing.complete:
                    continue
                encoder = Encoder(self.spec, str(file.path))
                with self._noted(file.path):
                    for steps in self._steps(encoder, file, archive.chunk_steps):
                        writing.write(steps)
                if not writing.complete:
                    archive.fail(number)
                if encoder.lost and encoder.lost not in lost:
                    lost.add(encoder.lost)
                    logger.warning("%s: %s", file.path, encoder.lost)
            self._require_none_left_out()
        finally:
            archive.release()
        return archive

    def _steps(
        self, encoder: Encoder, file: CampaignFile, size: int
    ) -> Iterator[Float32[np.ndarray, "time channel *space"]]:
        """Yield the steps of a file, `size` at a time."""
        along = {c.name for c in self.spec.coordinates}
        with _opened(file.path) as dataset:
            fields = dataset[[*self.variables, *sorted(along & {*dataset.variables})]]
            fields = fields.set_coords(along & {*fields.variables})
            fields = fields.drop_vars({*fields.coords} - {*self.spec.dims} - along)
            fields = fields.rename({file.time: "time"})
            for step in range(0, self.spec.steps, size):
                part = fields.isel(time=file.order[step : step + size])
                times = self.spec.times[step : step + size]
                yield encoder.convert(part.load().assign_coords(time=list(times)), step)

    @contextmanager
    def _noted(self, path: Path) -> Iterator[None]:
        """Note a file that is damaged or differs, and why, among those left out."""
        try:
            yield
        except (Unfit, SpecMismatch) as error:
            # What a solver would mend is not for files.
            why, _, _ = str(error).partition(" Usual cause")
            self.left_out[path] = why
        except ArchiveError:
            raise
        except _UNREADABLE as error:
            self.left_out[path] = f"{path} {not_netcdf(error)}"

    def _require_two(self, files: Sequence[CampaignFile]) -> None:
        if len(files) < 2:
            self._require_none_left_out()
            raise ArchiveError(
                f"A data set needs two files or more, one held out, got {len(files)}. "
                "Of a file with many simulations write one each, such as "
                "dataset.isel(sample=0).to_netcdf('run_0.nc')."
            )

    def _require_none_left_out(self) -> None:
        """Name all files at once that are damaged, or differ."""
        if self.left_out and not self.skip_damaged:
            (_, why), *others = self.left_out.items()
            more = len(others) - _NAMED
            names = [str(path) for path, _ in others[:_NAMED]]
            also = f" Not taken either: {', '.join(names)}" * bool(names)
            also += f", and {more} more" * (more > 0) + "." * bool(names)
            raise ArchiveError(f"{why}{also} Correct them, or add --skip_damaged true.")


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


def _varying(files: Sequence[CampaignFile], differing: Sequence[str]) -> list[str]:
    """Return the names of the numbers that differ between files."""
    values: dict[str, set[float]] = {}
    for file in files:
        for name, (value, _) in file.quantities.items():
            values.setdefault(name, set()).add(value)
    names = [n for n, differ in values.items() if len(differ) > 1 and not of_the_run(n)]
    if not names:
        texts = f"; what differs is text: {', '.join(differing)}" * bool(differing)
        raise ArchiveError(
            "No attribute and no scalar variable of the files is a number that differs "
            f"between them, as a parameter does{texts}. Give a table: --parameters "
            "FILE.csv, with the column 'file' and one for each parameter."
        )
    return names


def _differing(files: Sequence[CampaignFile]) -> list[str]:
    """Return what differs between files and is no number in all, or says its run."""
    words: dict[str, list[str]] = {}
    held = Counter(name for file in files for name in file.quantities)
    for file in files:
        for name, text in file.texts.items():
            words.setdefault(name, []).append(text)
    return [
        *(n for n, has in words.items() if n not in held and {*has} != {has[0]}),
        *(
            name
            for name, count in held.items()
            if name not in words
            and (count < len(files) or (of_the_run(name) and _differs(name, files)))
        ),
    ]


def _differs(name: str, files: Sequence[CampaignFile]) -> bool:
    return len({file.quantities[name][0] for file in files}) > 1


def _bounds(
    names: Sequence[str], files: Sequence[CampaignFile]
) -> tuple[Parameter, ...]:
    """Return the parameters, between their extremes."""
    bounds = []
    for name in names:
        values, units = zip(*(file.quantities[name] for file in files), strict=True)
        others = ",".join(n for n in names if n != name)
        remedy = f"Leave it out: --parameters {others or 'NAME'}."
        if min(values) == max(values):
            raise ArchiveError(
                f"{name} is {values[0]:g} in all files: a parameter differs between "
                f"simulations. {remedy}"
            )
        try:
            bounds.append(Parameter(name, min(values), max(values), units[0]))
        except ArgumentError as error:
            what, _, _ = str(error).partition(" Take the distance")
            raise ArchiveError(f"{what} {remedy}") from error
    return tuple(bounds)


def _grid(first: CampaignFile, variables: Sequence[str]) -> FieldSpec:
    """Return what a file has, without parameters."""
    for name in variables:
        if name not in first.variables:
            near = nearest(name, first.variables)
            raise ArchiveError(f"{first.path}: there is no variable {name!r}. {near}")
    sizes = first.variables[variables[0]][0]
    _, times, time_units = first.coordinates["time"]
    with _opened(first.path) as dataset:
        _, dim, every = cells_of(dataset)
        cells = tuple(tuple(cell[cell >= 0].tolist()) for cell in every)
    return FieldSpec(
        parameters=(),
        variables=tuple(
            Variable(n, first.variables[n][1], first.long_names[n]) for n in variables
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
    )
