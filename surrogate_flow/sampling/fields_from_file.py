"""Input fields that are given: those of a file, one a simulation."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.fields.inputs import arrays_in
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.sampling.inputs import InputSampler

__all__ = ["FieldsFromFile"]


class FieldsFromFile(InputSampler):
    """The fields of a file, one a simulation; held-out simulations have the first ones.

    Parameters
    ----------
    path : Path
        Where all workers reach it. ``.npy``: an array ``(simulation, *space)`` of a
        single input, or ``(simulation, input, *space)``. netCDF or ``.zarr``: a
        variable for each input, of a first dim of any name and those of the grid.

    Raises
    ------
    MissingFileError, ArgumentError
        If there is no such file, or it has other fields.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path).absolute()
        if not self.path.exists():
            raise MissingFileError(f"FieldsFromFile: no file {str(self.path)!r}.")

    @cached_property
    def _file(self) -> Any:
        try:
            if self.path.suffix == ".npy":
                return np.load(self.path, mmap_mode="r")
            if self.path.suffix == ".zarr":
                return xr.open_zarr(self.path, decode_times=False)
            return xr.open_dataset(self.path, decode_times=False)
        except Exception as error:
            # Of any type, by the damage.
            raise ArgumentError(
                f"FieldsFromFile: {self.path}",
                "a file of numpy (.npy), netCDF (.nc) or Zarr (.zarr)",
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_file"}

    @property
    def count(self) -> int:  # type: ignore[override]  # of the file
        """How many simulations have fields in the file."""
        if isinstance(self._file, np.ndarray):
            return len(self._file) if self._file.ndim else 0
        dims = [v.dims for v in self._file.data_vars.values() if v.ndim]
        along = {dim for _, *inside in dims for dim in inside}
        # Of a field: bounds of cells begin with a dim of the grid.
        first = {first for first, *_ in dims} - along
        return min((self._file.sizes[dim] for dim in first), default=0)

    def require(self, spec: FieldSpec) -> None:
        """Refuse a file of other fields."""
        if not self.count:
            raise ArgumentError(
                f"FieldsFromFile: {self.path}", "one simulation or more", "none"
            )
        self.fields(Simulation(0, "training", {}), spec)

    def draw(
        self, number: int, spec: FieldSpec, random: np.random.Generator
    ) -> Float[np.ndarray, " input *space"]:
        """Read the fields of a simulation."""
        if number >= self.count:
            raise ArgumentError(
                f"FieldsFromFile: {self.path}",
                f"fields for simulation {number}",
                f"those of {self.count} simulations",
            )
        if isinstance(self._file, np.ndarray):
            row = np.asarray(self._file[number])
            return row[None] if row.ndim == len(spec.dims) else row
        names = [v.name for v in spec.inputs]
        if missing := [n for n in names if n not in self._file]:
            raise ArgumentError(
                f"FieldsFromFile: {self.path}",
                f"the variable {missing[0]!r}",
                sorted(map(str, self._file.data_vars)) or "none",
            )
        first = {self._file[name].dims[0]: number for name in names}
        dataset = self._file[names].isel(first)
        fields = arrays_in(spec, dataset, f"FieldsFromFile: {self.path}")
        return np.stack([fields[name] for name in names])
