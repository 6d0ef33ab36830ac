"""Predictions in files: netCDF, or Zarr part by part, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import zarr
from dask.utils import format_bytes
from zarr.codecs import ZstdCodec

from surrogate_flow.dataset.layout import consolidate
from surrogate_flow.fields.conventions import about, for_files, to_netcdf
from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.quantities import described
from surrogate_flow.files import NETCDF
from surrogate_flow.surrogate.inputs import SAMPLE
from surrogate_flow.surrogate.prediction import Prediction

__all__ = ["ZARR", "require_place", "require_writable", "write"]

ZARR = ".zarr"
_NETCDF = ("", ".nc3", ".netcdf", *NETCDF)


def require_writable(path: Path) -> None:
    """Refuse a path before anything is predicted for it.

    Raises
    ------
    ArgumentError
        If it is a folder, in none, of another format, or a Zarr store that exists.
    """
    what = f"--output {path}"
    if path.suffix == ZARR and path.exists():
        # Also from Python, where it is no option.
        raise ArgumentError(
            f"{path}", "a new name", "one that exists", "Remove it, or name another."
        )
    require_place(path, "field.nc")
    if path.suffix not in (ZARR, *_NETCDF):
        raise ArgumentError(
            what,
            "the name of a netCDF file, or of a Zarr store",
            repr(path.suffix),
            f"Name it {path.with_suffix('.nc')}, and convert it with xarray.",
        )


def require_place(path: Path, name: str) -> None:
    """Refuse a file that is a folder, with a name in it, or is in none."""
    what = f"--output {path}"
    if path.is_dir():
        raise ArgumentError(
            f"{what}: expected a file's name, got a folder. Name the file in it, such "
            f"as {path / name}."
        )
    if not path.parent.is_dir():
        raise ArgumentError(f"{what}: there is no folder {path.parent}. Make it first.")


def write(prediction: Prediction, path: Path, network: str) -> None:
    """Write a prediction: netCDF in one piece, Zarr (``.zarr``) part by part.

    Raises
    ------
    UserError
        If a file cannot be written there, or netCDF would not fit into memory.
    """
    require_writable(path)
    several = f" for {prediction.count} samples" if prediction.several else ""
    noted = about(f"Prediction of a surrogate{several}", network)
    fields = None if path.suffix == ZARR else prediction.dataset()
    # Libraries of netCDF raise RuntimeError, too; with Zarr, the network may.
    failures = (OSError,) if fields is None else (OSError, RuntimeError)
    try:
        if fields is None:
            _write_zarr(prediction, path, noted)
        else:
            to_netcdf(fields, path, **noted)
    except failures as error:
        # Libraries of netCDF tell no reason; what was written is removed again.
        free, size = shutil.disk_usage(path.resolve().parent).free, prediction.nbytes
        if fields is not None and free < size:
            raise UserError(
                f"--output {path}: no space on its disk",
                f"{format_bytes(size)} free",
                format_bytes(free),
                "Make room, or name a file on another disk.",
            ) from error
        raise UserError(
            f"--output {path}: cannot be written ({error}). Expected a folder where "
            "you may write, on a disk with room; name another file."
        ) from error


def _write_zarr(prediction: Prediction, path: Path, noted: dict[str, str]) -> None:
    """Write all parts in a folder beside, which takes its name in the end."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        part = temporary / path.name
        spec = prediction.spec
        nothing = np.broadcast_to(np.float32(0), prediction.shape)
        labels = for_files(prediction.labelled(nothing)).assign_attrs(noted)
        labels = labels.drop_vars([v.name for v in spec.variables])
        labels.to_zarr(part, zarr_format=3, consolidated=False)
        group = zarr.open_group(part, mode="r+", use_consolidated=False)
        lead, skipped = ((SAMPLE,), 0) if prediction.several else ((), 1)
        arrays = [
            group.create_array(
                v.name,
                shape=(*prediction.shape[:2], *spec.shape_of(v))[skipped:],
                chunks=(*prediction.chunk, *spec.shape_of(v))[skipped:],
                dtype=prediction.dtype,
                fill_value=np.nan,
                compressors=ZstdCodec(level=1, checksum=True),
                dimension_names=(*lead, "time", *(v.dims or spec.dims)),
                attributes={**described(v)},
            )
            for v in spec.variables
        ]
        for samples, times, fields in prediction:
            for channel, array in enumerate(arrays):
                of_one = spec.part(fields, channel)
                if prediction.several:
                    array[samples, times] = of_one
                else:
                    array[times] = of_one[0]
        consolidate(part)
        os.rename(part, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
