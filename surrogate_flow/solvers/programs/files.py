"""Files that a program leaves one by one, each of which is a step, as they appear."""

from __future__ import annotations

import collections
import glob
import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import snapped
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.table import read_table
from surrogate_flow.files import leads_out
from surrogate_flow.solvers.programs.process import ProcessError, ProcessRun

__all__ = ["OutputFiles"]

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_AXES = "xyz"


class OutputFiles:
    """out_1.nc, out_2.nc, ... -> u(t_1), u(t_2), ...: a `Reader` of a `Program`.

    Files are read in the order of the last number in their names, each as a whole: when
    the next one is there, or the program has ended well. So it may write them slowly,
    but must close one before it begins the next.

    Parameters
    ----------
    pattern : str
        Of their names, such as ``out_*.nc``, in the folder where the program runs.
    format : str, optional
        ``netcdf``, ``npy`` (or ``.npz``), ``raw``, ``csv``, ``vtk`` (what meshio reads)
        or ``openfoam`` (a folder for each time); by default as the names end.
    names : mapping of str to str, optional
        Of variables, dims and columns: in the files, and in the spec.
    dtype : str
        Of the numbers of raw files, with their order of bytes, such as ``">f4"``.
    renamed : bool
        Whether the program writes each under another name and renames it: then it is
        read at once.
    remove : bool
        Whether a file is removed once its step has been taken, so that few are there.

    Raises
    ------
    ArgumentError
        If the pattern names one file at most, or files elsewhere, or the format is
        unknown.
    MissingPackageError
        If the package that reads it is not installed.

    Notes
    -----
    The k-th file is the k-th step of the spec; netCDF files with a coordinate ``time``
    and OpenFOAM's folders say which they are. Arrays are in C order, ``(*space)`` of
    one variable or ``(channel, *space)``. Tables have a column for each variable, and
    those that are called as the dims say where a row belongs; else rows are in C order.
    Components of a vector ``U`` are ``U_x``, ``U_y`` and ``U_z``.
    """

    def __init__(
        self,
        pattern: str,
        *,
        format: str = "",
        names: Mapping[str, str] | None = None,
        dtype: str = "float64",
        renamed: bool = False,
        remove: bool = False,
    ) -> None:
        if not {*pattern} & {*"*?["}:
            raise ArgumentError(
                "OutputFiles: pattern", "one of many files, such as out_*.nc", pattern
            )
        if leads_out(pattern):
            raise ArgumentError(
                "OutputFiles: pattern",
                "one of files in the folder where the program runs",
                repr(pattern),
            )
        suffix = Path(pattern).suffix.lower()
        form = format or _BY_SUFFIX.get(suffix, "")
        if form not in _READ:
            near = nearest(format, _READ) if format else f"Name it: {', '.join(_READ)}."
            got = repr(format or pattern)
            raise ArgumentError("OutputFiles: format", "a known one", got, near)
        if form in _PACKAGES:
            _imported(_PACKAGES[form])
        self.pattern, self.format, self.names = pattern, form, dict(names or {})
        try:
            self.dtype = np.dtype(dtype).str
        except TypeError as error:
            raise ArgumentError(
                "OutputFiles: dtype", "one of NumPy's, such as '<f4'", repr(dtype)
            ) from error
        self.renamed, self.remove = renamed, remove

    def read(self, run: ProcessRun, spec: FieldSpec) -> Iterator[xr.Dataset]:
        """Yield the steps as their files are complete.

        Raises
        ------
        ProcessError
            If a file cannot be read, is not of the spec, or has the number of another.
        """
        step, files = 0, _Files(self, run.folder, spec)
        while step < spec.steps:
            path = files.take(run, last=step == spec.steps - 1)
            try:
                dataset = self._dataset(path, spec)
            except (ProcessError, MissingPackageError):
                raise
            except Exception as error:  # of any type, by the libraries that read
                said = str(error).partition("\n")[0]
                raise ProcessError(
                    f"{path.name} cannot be read as {self.format} "
                    f"({type(error).__name__}: {said})."
                ) from error
            if "time" not in dataset.dims:  # then their order alone says which it is
                dataset = dataset.expand_dims(time=[spec.times[step]])
                if step == spec.steps - 1:
                    files.require_none(spec)
            step += dataset.sizes["time"]
            yield dataset
            if self.remove:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _dataset(self, path: Path, spec: FieldSpec) -> xr.Dataset:
        """Return the content of a file; without a time, if the file has none."""
        content = _READ[self.format](path, self)
        if isinstance(content, np.ndarray):
            return _of_array(path, content, spec)
        if isinstance(content, xr.Dataset):
            known = {*content.variables, *content.dims}
            names = {k: v for k, v in self.names.items() if k in known}
            dataset = content.rename(names)
        else:
            columns = {self.names.get(k, k): v for k, v in content.items()}
            dataset = _of_columns(path, columns, spec)
        wanted = [v.name for v in spec.variables]
        for name in wanted:
            if name not in dataset.variables:
                near = nearest(name, map(str, dataset.variables))
                raise ProcessError(
                    f"{path.name}: there is no variable {name!r}. {near}"
                )
        dataset = dataset[[*wanted, *(c for c in dataset.coords if c != "time")]]
        if "time" in dataset.dims:
            return dataset
        dataset = dataset.drop_vars("time", errors="ignore")
        if self.format == "openfoam":
            return dataset.expand_dims(time=[float(path.name)])
        return dataset


class _Files:
    """The files of a run in the order of their numbers, each of which is taken once.

    The folder, which may have thousands, is listed only where those that are known do
    not tell which is whole. A listing may miss a file that is made meanwhile, and yet
    have the one after it; the next listing has all that were made before.
    """

    def __init__(self, reader: OutputFiles, folder: Path, spec: FieldSpec) -> None:
        self._reader, self._folder = reader, folder
        self._begin = spec.times[0] - 1e-6 * abs(spec.times[0])
        self._taken = set[str]()
        self._last: list[tuple[float, str]] = []
        self._left = collections.deque[tuple[float, str]]()
        # Up to this number none is missing among those that are left.
        self._sure = -math.inf

    def take(self, run: ProcessRun, *, last: bool) -> Path:
        """Wait for the next file until it is whole."""

        def whole() -> bool:
            # First: what it wrote just before its end counts.
            ended = run.succeeded
            if len(self._left) < 2 or self._left[0][0] > self._sure:
                self._list()
                if self._left and self._left[0][0] > self._sure:
                    self._list()
            # The last one of all waits, so that more than there may be are noticed.
            early = self._reader.renamed and not last
            return bool(self._left) and (ended or early or len(self._left) > 1)

        run.wait(whole)
        self._last = [self._left.popleft()]
        ((_, name),) = self._last
        self._taken.add(name)
        return self._folder / name

    def require_none(self, spec: FieldSpec) -> None:
        """Refuse more files than steps."""
        self._list()
        if self._left:
            raise ProcessError(
                f"Expected {spec.steps} files {self._reader.pattern}, one for each "
                f"step, got {Path(self._left[0][1]).name} as well. If the first is the "
                "initial state, add its time to the spec."
            )

    def _list(self) -> None:
        """Look for the files that are not taken."""
        self._sure = max((number for number, _ in self._left), default=self._sure)
        found = glob.glob(
            self._reader.pattern,
            root_dir=self._folder,
            recursive=True,
            include_hidden=True,
        )
        names = [name for name in found if name not in self._taken]
        if self._reader.format == "openfoam":
            # Other folders lie beside, and that of the initial state.
            times = [n for n in names if _NUMBER.fullmatch(Path(n).name)]
            names = [n for n in times if float(Path(n).name) >= self._begin]
        self._left = collections.deque(sorted((_number_of(Path(n)), n) for n in names))
        ordered = itertools.pairwise([*self._last, *self._left])
        for (number, one), (following, other) in ordered:
            if following <= number:
                raise ProcessError(
                    f"Expected files {self._reader.pattern} with numbers that ascend, "
                    f"got {Path(other).name} beside {Path(one).name}. Write each step "
                    "once, in order."
                )


def _number_of(path: Path) -> float:
    """Return the last number of a name, without that of its ending."""
    name = path.name if path.suffix[1:].isdigit() else path.stem
    numbers = _NUMBER.findall(name)
    if not numbers:
        raise ProcessError(
            f"Expected a number in the name of each file, got {path.name}."
        )
    return float(numbers[-1])


def _of_array(path: Path, array: np.ndarray, spec: FieldSpec) -> xr.Dataset:
    if array.ndim == 1 and array.size == math.prod(spec.step_shape):
        array = array.reshape(spec.step_shape)
    if len(spec.variables) == 1 and array.shape == spec.shape:
        array = array[None]
    if array.shape != spec.step_shape:
        raise ProcessError(
            f"{path.name}: expected an array of the shape {spec.step_shape} (variable, "
            f"{', '.join(spec.dims)}), got {array.shape}."
        )
    return xr.Dataset(
        {
            v.name: (spec.dims, values)
            for v, values in zip(spec.variables, array, strict=True)
        }
    )


def _of_columns(
    path: Path, columns: Mapping[str, np.ndarray], spec: FieldSpec
) -> xr.Dataset:
    """Return columns, each with a row for each point, on the grid."""
    names = [v.name for v in spec.variables if v.name in columns]
    points = math.prod(spec.shape)
    # One number is a field that is the same everywhere.
    wanted = {
        n: np.broadcast_to(c, points) if c.ndim == 0 else c
        for n, c in ((n, columns[n]) for n in names)
    }
    for name, column in wanted.items():
        if column.shape not in ((points,), spec.shape):
            got = " x ".join(map(str, column.shape))
            raise ProcessError(
                f"{path.name}: {name}: expected {points} points, "
                f"{' x '.join(map(str, spec.shape)) or 'one'}, got {got}."
            )
    places = {dim: columns[dim] for dim in spec.dims if dim in columns}
    if len(spec.dims) > 1 and all(u.shape == spec.shape for u in wanted.values()):
        return xr.Dataset(
            {name: (spec.dims, u) for name, u in wanted.items()},
            {dim: (dim, axis) for dim, axis in places.items()},
        )
    if len(places) == len(spec.dims) > 0:
        places = {dim: snapped(spec, dim, x) for dim, x in places.items()}
        frame = pd.DataFrame({**places, **wanted})
        placed: xr.Dataset = frame.set_index([*spec.dims]).sort_index().to_xarray()
        for dim, size in zip(spec.dims, spec.shape, strict=True):
            if placed.sizes[dim] != size:
                raise ProcessError(
                    f"{path.name}: expected {size} positions along {dim!r}, got "
                    f"{placed.sizes[dim]}. If they differ by rounding alone, write "
                    f"the positions into the spec, as a coordinate {dim!r}."
                )
        return placed
    lines = {
        c.name: (c.dim, columns[c.name])
        for c in spec.coordinates
        if len(spec.dims) == 1 and c.name in columns
    }
    if places:
        raise ProcessError(
            f"{path.name}: expected columns of all dims, {', '.join(spec.dims)}, or of "
            f"none, got {', '.join(places)}."
        )
    fields = {n: (spec.dims, np.reshape(c, spec.shape)) for n, c in wanted.items()}
    return xr.Dataset(fields, lines)


def _netcdf(path: Path, _: OutputFiles) -> xr.Dataset:
    return xr.load_dataset(path, decode_times=False)


def _npy(path: Path, _: OutputFiles) -> Any:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        return {name: loaded[name] for name in loaded.files}


def _raw(path: Path, reader: OutputFiles) -> np.ndarray:
    size = path.stat().st_size
    dtype = np.dtype(reader.dtype)
    if size % dtype.itemsize:
        raise ValueError(f"{size} bytes are no whole numbers of {dtype}")
    return np.fromfile(path, dtype)


def _csv(path: Path, _: OutputFiles) -> Any:
    with path.open(encoding="utf-8-sig") as file:
        head = file.readline()
    if all(map(_is_number, _cells(head))):
        text = path.read_text("utf-8-sig")
        rows = [_cells(line) for line in text.splitlines() if line.strip()]
        # One number a line is a list of them.
        return (
            np.array(rows, float).squeeze(1)
            if len(rows[0]) == 1
            else np.array(rows, float)
        )
    table = read_table(path)
    return {str(name): table[name].to_numpy() for name in table.columns}


def _cells(line: str) -> list[str]:
    return re.split(r"[,;\s]+", line.strip(" \t\n,;"))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _vtk(path: Path, _: OutputFiles) -> dict[str, np.ndarray]:
    mesh = _imported("meshio").read(path)
    columns = dict(zip(_AXES, mesh.points.T, strict=False))
    if mesh.point_data:
        named = mesh.point_data
    else:
        named = {n: np.concatenate(parts) for n, parts in mesh.cell_data.items()}
        centres = np.concatenate([mesh.points[b.data].mean(1) for b in mesh.cells])
        columns = dict(zip(_AXES, centres.T, strict=True))
    # Pandas takes no other order of bytes than this machine has; VTK has another.
    made = columns | _components(named)
    return {n: v.astype(v.dtype.newbyteorder("=")) for n, v in made.items()}


def _openfoam(path: Path, _: OutputFiles) -> dict[str, np.ndarray]:
    columns, opened = dict[str, np.ndarray](), _imported("foamlib").FoamFieldFile
    for entry in sorted(path.iterdir()):
        if not entry.is_file():
            continue
        file, name = opened(entry), entry.name.removesuffix(".gz")
        values = np.asarray(file.internal_field)
        if values.ndim == 0 or (values.ndim == 1 and "Scalar" not in file.class_):
            # A uniform field: one number, or one for each component.
            parts = _components({name: values[None]})
            columns |= {n: np.asarray(v).reshape(()) for n, v in parts.items()}
        else:
            columns |= _components({name: values})
    return columns


def _components(named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return scalars by their names, and vectors by those of their components."""
    columns: dict[str, np.ndarray] = {}
    for name, values in named.items():
        if values.ndim == 2 and values.shape[1] <= len(_AXES):
            for axis, column in zip(_AXES, values.T, strict=False):
                columns[f"{name}_{axis}"] = column
        elif values.ndim == 1:
            columns[name] = values
    return columns


def _imported(package: str) -> Any:
    """Import a package of the extra ``files``."""
    try:
        return __import__(package)
    except ImportError as error:
        raise MissingPackageError(
            f"OutputFiles: {package} is not installed, which reads these files. Type "
            f"pip install {package}, also where the workers run."
        ) from error


_READ: dict[str, Callable[[Path, OutputFiles], Any]] = {
    "netcdf": _netcdf,
    "npy": _npy,
    "raw": _raw,
    "csv": _csv,
    "vtk": _vtk,
    "openfoam": _openfoam,
}
_PACKAGES = {"vtk": "meshio", "openfoam": "foamlib"}
_BY_SUFFIX = {
    **dict.fromkeys((".nc", ".nc4", ".cdf", ".h5", ".hdf5"), "netcdf"),
    **dict.fromkeys((".npy", ".npz"), "npy"),
    **dict.fromkeys((".raw", ".bin", ".dat"), "raw"),
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    **dict.fromkeys((".vtk", ".vtu", ".vtp", ".msh"), "vtk"),
}
