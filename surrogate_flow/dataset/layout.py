"""The folder of a data set and its arrays: names, dims, units, chunks."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float64
from zarr.codecs import ZstdCodec

from surrogate_flow.dataset.provenance import Provenance
from surrogate_flow.dataset.writer import (
    ABSENT,
    COMPLETE,
    FAILED,
    LENGTH,
    STATE,
    ArchiveError,
)
from surrogate_flow.fields.conventions import time_attributes
from surrogate_flow.fields.quantities import Coordinate, described, packing
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import LOCK, DirectoryLock

__all__ = [
    "ROW",
    "add_rows",
    "columns",
    "consolidate",
    "create_group",
    "lock_folder",
    "open_group",
]

logger = logging.getLogger(__name__)

ROW = "simulation"  # the dim of all simulations
HELD_OUT = "held_out"
_CHUNK = 4 << 20  # bytes of a chunk, uncompressed
_ROWS = 4096  # of a chunk of parameters
# All chunks of an array in one folder, so that one listing shows them.
_FLAT = {"name": "default", "separator": "."}


def open_group(path: Path) -> Any:
    """Return the Zarr group of a data set."""
    if not (path / "zarr.json").is_file():
        what = "there is nothing" if not path.exists() else "it has no zarr.json"
        raise ArchiveError(
            f"{path} is no data set of surrogate_flow: {what}. Give the path that "
            "'surrogate-flow generate --output' wrote, or another one to write to."
        )
    try:
        return zarr.open_group(path, mode="r+", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path} cannot be read as a Zarr group ({type(error).__name__}: {error}). "
            "Copy the data set again, or generate it in another place."
        ) from error


def create_group(path: Path, provenance: Provenance, parameters: Sequence[Any]) -> None:
    """Write a data set without fields in a temporary folder, then move it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part = temporary / path.name
        group = _arrays(part, provenance.spec, provenance.attributes())
        add_rows(group, provenance.spec, parameters, provenance.held_out)
        consolidate(part)
        os.rename(part, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock_folder(path: Path) -> DirectoryLock:
    """Keep other processes from adding to a data set, and remove half-written chunks.

    The workers of this process write without a lock.
    """
    lock = DirectoryLock(path)
    if lock.holder:
        raise ArchiveError(
            f"{path} is written by another run: {lock.holder}. Type this again when "
            "that has ended, or give another path."
        )
    if lock.acquired:
        for part in path.glob("*/*.partial"):
            part.unlink(missing_ok=True)
    else:
        logger.warning(
            "%s cannot be locked on its file system: start no second run there.", path
        )
    return lock


def _chunk_steps(spec: FieldSpec) -> int:
    """Return how many steps make a chunk: at most 4 MiB, all of about one length."""
    step = max(1, spec.step_bytes // len(spec.variables))
    most = max(1, _CHUNK // step)
    chunks = -(-spec.steps // most)
    return -(-spec.steps // chunks)


def _coordinates(spec: FieldSpec) -> list[Coordinate]:
    time = Coordinate("time", "time", spec.times, spec.time_units)
    return [time, *spec.coordinates]


def require_coordinates(path: Path, group: Any, spec: FieldSpec) -> None:
    """Refuse coordinates that another program has changed: fields may be as well."""
    for c in _coordinates(spec):
        got = group[c.name][:]
        if not np.array_equal(got, c.values):
            raise ArchiveError(
                f"{path}: coordinate {c.name!r} expected the {len(c.values)} values "
                f"with which it was written, {c.values[0]:g} to {c.values[-1]:g}, got "
                f"{len(got)}, {got[0]:g} to {got[-1]:g}. Another program has changed "
                "it, and maybe the fields: copy the data set or generate it again."
            )


def _arrays(folder: Path, spec: FieldSpec, noted: Mapping[str, Any]) -> Any:
    """Create all arrays, without rows, and return their group."""
    group: Any = zarr.open_group(folder, mode="w-", zarr_format=3)
    own = {ROW, HELD_OUT, STATE, LENGTH}
    named = [*spec.dims, *(p.name for p in spec.parameters)]
    named += [v.name for v in (*spec.variables, *spec.inputs)]
    named += [c.name for c in spec.coordinates]
    if odd := [n for n in named if "/" in n or n.startswith((".", "__"))]:
        raise ArchiveError(
            f"{odd[0]!r} cannot be the name of a Zarr array: rename it in the solver, "
            "without '/', and not beginning with '.' or '__'."
        )
    if taken := own.intersection(named):
        raise ArchiveError(
            f"A data set has arrays {sorted(own)} of its own, and so has the spec "
            f"{min(taken)!r}: rename it in the solver."
        )
    labels = [c.name for c in spec.coordinates if c.name != c.dim]
    names = [HELD_OUT, *(p.name for p in spec.parameters), *labels]
    group.attrs.update({**noted, "coordinates": " ".join(names)})
    create = partial(group.create_array, chunk_key_encoding=_FLAT)
    for variable in spec.variables:
        create(
            variable.name,
            shape=(0, spec.steps, *spec.shape_of(variable)),
            chunks=(1, _chunk_steps(spec), *spec.shape_of(variable)),
            dtype="float32",
            fill_value=np.nan,
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=(ROW, "time", *(variable.dims or spec.dims)),
            attributes=described(variable) | packing(variable),
        )
    for variable in spec.inputs:
        create(
            variable.name,
            shape=(0, *spec.shape),
            chunks=(1, *spec.shape),
            dtype="float32",
            fill_value=np.nan,
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=(ROW, *spec.dims),
            attributes=described(variable) | packing(variable),
        )
    create(
        STATE,
        shape=(0,),
        chunks=(1,),
        dtype="uint8",
        compressors=None,
        dimension_names=(ROW,),
        attributes={
            "flag_values": [ABSENT, COMPLETE, FAILED],
            "flag_meanings": "absent complete failed",
            "long_name": "whether all steps of the simulation are there",
        },
    )
    for c in _coordinates(spec):
        create(
            c.name,
            data=np.array(c.values),
            chunks=(len(c.values),),
            dimension_names=(c.dim,),
            attributes=time_attributes(c.units) if c.name == "time" else described(c),
        )
    held_out = {"long_name": "kept apart from training, for validation"}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        ROW: ("int64", {"long_name": "number of the simulation"}),
        HELD_OUT: ("bool", held_out),
    }
    for p in spec.parameters:
        bounds = {"valid_min": p.low, "valid_max": p.high}
        rows[p.name] = ("float64", {**described(p), **bounds})
    for name, (dtype, attributes) in rows.items():
        create(
            name,
            shape=(0,),
            chunks=(_ROWS,),
            dtype=dtype,
            dimension_names=(ROW,),
            attributes=attributes,
        )
    return group


def add_rows(
    group: Any,
    spec: FieldSpec,
    parameters: Sequence[Mapping[str, float]],
    held_out: int,
) -> None:
    """Grow all arrays, `STATE` last, so that an interrupted growth is repeated."""
    count = len(parameters)
    vectors = np.array([spec.vector(p) for p in parameters])
    values = {p.name: vectors[:, k] for k, p in enumerate(spec.parameters)}
    values |= {ROW: np.arange(count), HELD_OUT: np.arange(count) < held_out}
    for name, column in values.items():
        group[name].resize((count,))
        group[name][:] = column
    fields = (v.name for v in (*spec.variables, *spec.inputs))
    lengths = (LENGTH,) if LENGTH in group else ()
    for name in (*fields, *lengths, STATE):
        array = group[name]
        array.resize((count, *array.shape[1:]))


def columns(
    folder: Path, group: Any, names: Sequence[str], count: int
) -> list[Float64[np.ndarray, " simulation"]]:
    """Read the parameters of the first simulations."""
    # Zarr reads a missing chunk as zeros.
    for name in names:
        for k in range(-(-count // group[name].chunks[0])):
            if not (folder / name / f"c.{k}").is_file():
                raise FileNotFoundError(f"there is no {name}/c.{k}")
    return [group[name][:count] for name in names]


def consolidate(folder: Path) -> None:
    """Copy the metadata of all arrays into one file, which xarray opens faster."""
    with warnings.catch_warnings():
        # Not part of Zarr 3 yet; other readers ignore it.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        warnings.filterwarnings("ignore", f"Object at {LOCK} ")
        zarr.consolidate_metadata(folder)
