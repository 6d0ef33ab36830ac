"""The arrays of a data set: names, dims, units, chunks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float64
from zarr.codecs import ZstdCodec

from surrogate_flow.dataset.errors import ArchiveError
from surrogate_flow.dataset.writer import STATE
from surrogate_flow.fields.quantities import attributes
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import LOCK

__all__ = [
    "ROW",
    "add_rows",
    "chunk_steps",
    "columns",
    "consolidate",
    "write_layout",
]

ROW = "simulation"  # the dim of all simulations
HELD_OUT = "held_out"
_CHUNK = 4 << 20  # bytes of a chunk, uncompressed
_ROWS = 4096  # of a chunk of parameters
# One folder for the chunks of an array, so that one look shows which are there.
_FLAT = {"name": "default", "separator": "."}


def chunk_steps(spec: FieldSpec) -> int:
    """Return how many steps make a chunk: few megabytes, and all about as long."""
    step = max(1, spec.step_bytes // len(spec.variables))
    most = max(1, _CHUNK // step)
    chunks = -(-spec.steps // most)
    return -(-spec.steps // chunks)


def write_layout(
    folder: Path, spec: FieldSpec, described: Mapping[str, Any], steps: int
) -> None:
    """Write all that is known before a simulation runs, for no simulation yet.

    Raises
    ------
    ArchiveError
        If the spec uses a name that the data set needs itself.
    """
    group = zarr.open_group(folder, mode="w-", zarr_format=3)
    own = {ROW, HELD_OUT, STATE}
    named = [*spec.dims, *(p.name for p in spec.parameters)]
    named += [v.name for v in spec.variables] + [c.name for c in spec.coordinates]
    if odd := [n for n in named if "/" in n or n.startswith((".", "__"))]:
        raise ArchiveError(
            f"The name {odd[0]!r} of a quantity cannot be that of an array in Zarr: "
            "rename it in the solver, without '/', and not beginning with '.' or '__'."
        )
    if taken := own.intersection(named):
        raise ArchiveError(
            f"A data set has arrays {sorted(own)} of its own, and the spec has a "
            f"quantity of the name {min(taken)!r}: rename it in the solver."
        )
    labels = [c.name for c in spec.coordinates if c.name not in spec.dims]
    words = [HELD_OUT, *(p.name for p in spec.parameters), *labels]
    group.attrs.update({**described, "coordinates": " ".join(words)})
    for variable in spec.variables:
        _create(
            group,
            variable.name,
            (ROW, "time", *spec.dims),
            (0, spec.steps, *spec.shape),
            (1, steps, *spec.shape),
            attributes(variable.units, variable.long_name),
            fill_value=np.nan,
            compressors=ZstdCodec(level=1, checksum=True),
        )
    _create(
        group,
        STATE,
        (ROW,),
        (0,),
        (1,),
        {
            "flag_values": [0, 1, 2],
            "flag_meanings": "absent whole failed",
            "long_name": "whether all steps of the simulation are there",
        },
        dtype="uint8",
        compressors=None,
    )
    _values(group, "time", "time", spec.times, attributes(spec.time_units, "time"))
    for c in spec.coordinates:
        _values(group, c.name, c.dim, c.values, attributes(c.units, c.name))
    for p in spec.parameters:
        bounds = {"valid_min": p.low, "valid_max": p.high}
        _rows(group, p.name, "float64", {**attributes(p.units), **bounds})
    _rows(group, ROW, "int64", {"long_name": "number of the simulation"})
    words_of_held_out = {"long_name": "kept apart from training, for validation"}
    _rows(group, HELD_OUT, "bool", words_of_held_out)


def add_rows(
    group: Any,
    spec: FieldSpec,
    parameters: Sequence[Mapping[str, float]],
    held_out: int,
) -> None:
    """Make room for so many simulations in all; may be called again, and then more.

    The state grows last, and with it the data set: if this is cut off, nothing was.
    """
    count = len(parameters)
    vectors = np.array([spec.vector(p) for p in parameters])
    values = {p.name: vectors[:, k] for k, p in enumerate(spec.parameters)}
    values |= {ROW: np.arange(count), HELD_OUT: np.arange(count) < held_out}
    for name, column in values.items():
        group[name].resize((count,))
        group[name][:] = column
    for name in (*(v.name for v in spec.variables), STATE):
        array = group[name]
        array.resize((count, *array.shape[1:]))


def columns(
    folder: Path, group: Any, names: Sequence[str], count: int
) -> list[Float64[np.ndarray, " simulation"]]:
    """Read the parameters of the first simulations.

    Raises
    ------
    FileNotFoundError
        If a chunk is missing, which Zarr takes for one full of zeros.
    """
    for name in names:
        for k in range(-(-count // group[name].chunks[0])):
            if not (folder / name / f"c.{k}").is_file():
                raise FileNotFoundError(f"there is no {name}/c.{k}")
    return [group[name][:count] for name in names]


def consolidate(folder: Path) -> None:
    """Gather the descriptions of all arrays, as xarray likes to find them."""
    with warnings.catch_warnings():
        # It is no part of the format yet, and ignored by who does not know it.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        warnings.filterwarnings("ignore", f"Object at {LOCK} ")
        zarr.consolidate_metadata(folder)


def _values(
    group: Any, name: str, dim: str, values: Sequence[float], words: dict[str, Any]
) -> None:
    size = (len(values),)
    _create(group, name, (dim,), size, size, words, dtype="float64")[:] = values


def _rows(group: Any, name: str, dtype: str, words: dict[str, Any]) -> None:
    _create(group, name, (ROW,), (0,), (_ROWS,), words, dtype=dtype)


def _create(
    group: Any,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    words: dict[str, Any],
    *,
    dtype: str = "float32",
    fill_value: Any = 0,
    compressors: Any = "auto",
) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill_value,
        compressors=compressors,
        dimension_names=dims,
        attributes=words,
        chunk_key_encoding=_FLAT,
    )
