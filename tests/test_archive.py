"""The files of a data set: which are cut off, and how it grows."""

import numpy as np
import pytest
import xarray as xr
import zarr
from test_stored import HELD_OUT, TRAINING, write
from troubled import Wave
from zarr.codecs import ZstdCodec

from surrogate_flow.archive import Archive, planned
from surrogate_flow.archive.chunks import is_whole
from surrogate_flow.sampling import Uniform


def again(path, simulations=TRAINING):
    """The same study, or a larger one, once more."""
    archive, _ = planned(
        path,
        Wave(),
        Uniform(),
        held_out=HELD_OUT,
        simulations=simulations,
        workflow="wave",
    )
    return archive


@pytest.mark.parametrize("size", [1, 70, 1000, 300_000])
@pytest.mark.parametrize("values", [np.zeros, np.random.default_rng(0).random])
def test_a_chunk_is_whole_if_no_byte_is_missing(tmp_path, size, values):
    """Of any length and content: by the lengths in the file, none of which is decoded."""
    array = zarr.create_array(
        str(tmp_path / "a"),
        shape=(size,),
        chunks=(size,),
        dtype="float32",
        fill_value=np.nan,
        compressors=ZstdCodec(level=1, checksum=True),
    )
    array[:] = values(size)
    chunk = tmp_path / "a" / "c" / "0"
    content = chunk.read_bytes()
    assert is_whole(chunk)
    for stop in {0, 1, 4, 5, len(content) // 2, len(content) - 1}:
        chunk.write_bytes(content[:stop])
        assert not is_whole(chunk), stop
    for other in (content + b"x", bytes(len(content))):
        chunk.write_bytes(other)
        assert not is_whole(chunk)
    chunk.unlink()
    assert not is_whole(chunk)


@pytest.mark.parametrize("count", range(6))
def test_growth_that_was_cut_off_is_done_again(tmp_path, count, monkeypatch):
    """Whichever arrays have grown: what was there stays, and the same command grows it."""
    path = write(tmp_path / "wave.zarr", Wave())
    before = Archive(path).parameters
    resize, left = zarr.Array.resize, list(range(count))

    def killed(array, shape):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        resize(array, shape)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "resize", killed)
        try:
            again(path, TRAINING + 6)
        except KeyboardInterrupt:
            assert count < 5
        else:
            assert count == 5
    for simulations in (TRAINING - 1, TRAINING + 6):
        again(path, simulations)
        archive = Archive(path)
        assert len(archive.whole()) == HELD_OUT + TRAINING
        np.testing.assert_array_equal(archive.parameters[: len(before)], before)
    assert len(set(archive.parameters[:, 0])) == archive.simulations == 30
    with xr.open_zarr(path) as written:
        assert written.sizes["simulation"] == 30
