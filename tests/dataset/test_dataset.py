"""The files of a data set: how it grows, and who may write it."""

import dataclasses
import errno
import fcntl
import os

import numpy as np
import pytest
import xarray as xr
import zarr
from test_stored import HELD_OUT, TRAINING, write
from troubled import Wave

from surrogate_flow.data.archiving import planned
from surrogate_flow.dataset import Archive, ArchiveError, layout
from surrogate_flow.dataset.writer import ABSENT, COMPLETE, FAILED
from surrogate_flow.files import DirectoryLock
from surrogate_flow.sampling import Uniform


def again(path, simulations=TRAINING, sampler=None):
    """The same study, or a larger one, once more."""
    return planned(
        path,
        Wave(),
        sampler or Uniform(),
        held_out=HELD_OUT,
        simulations=simulations,
        workflow="wave",
    )[0]


class Drifting(Uniform):
    """A sampler that draws otherwise after a while, whatever its recipe says."""

    backwards = False

    def block(self, index, dimensions):
        drawn = super().block(index, dimensions)
        return drawn[::-1] if self.backwards else drawn


def test_a_sampler_that_draws_otherwise_is_refused(tmp_path, monkeypatch):
    """The first simulation that differs is named, and nothing is changed."""
    path = tmp_path / "wave.zarr"
    again(path, sampler=Drifting()).release()
    again(path, sampler=Drifting()).release()
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    monkeypatch.setattr(Drifting, "backwards", True)
    with pytest.raises(ArchiveError, match=f"parameters for simulation {HELD_OUT}:"):
        again(path, sampler=Drifting())
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


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
        again(path, simulations).release()
        grown = Archive(path)
        assert len(grown.complete()) == HELD_OUT + TRAINING
        np.testing.assert_array_equal(grown.parameters[: len(before)], before)
    assert len(set(grown.parameters[:, 0])) == grown.simulations == 30
    with xr.open_zarr(path) as written:
        assert written.sizes["simulation"] == 30


def test_one_process_at_a_time_adds_to_a_data_set(tmp_path):
    """The second is refused until the first lets go, which leaves no file."""
    path = write(tmp_path / "wave.zarr", Wave())
    first = again(path)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    with pytest.raises(ArchiveError, match=rf"another run: process {os.getpid()} on "):
        again(path, TRAINING + 6)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert len(Archive(path).complete()) == HELD_OUT + TRAINING
    first.release()
    assert not list(path.glob(".*"))
    assert again(path, TRAINING + 6).simulations == HELD_OUT + TRAINING + 6


def test_who_waits_for_a_lock_that_is_removed_gets_another(tmp_path, monkeypatch):
    """Opened before its holder removed it, locked after: nobody else would see that lock."""
    first, flock = DirectoryLock(tmp_path), fcntl.flock

    def late(file, operation):
        first.release(remove=True)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = DirectoryLock(tmp_path)
    third = DirectoryLock(tmp_path)
    assert (second.acquired, third.acquired) == (True, False)
    assert str(os.getpid()) in third.holder


def test_two_that_create_it_at_the_same_moment(tmp_path, monkeypatch):
    """The second one finds that of the first, and says so."""
    path, found = tmp_path / "wave.zarr", []
    create = layout.create_group

    def overtaken(*arguments):
        monkeypatch.setattr(layout, "create_group", create)
        found.append(again(path))
        create(*arguments)

    monkeypatch.setattr(layout, "create_group", overtaken)
    with pytest.raises(ArchiveError, match="written by another run"):
        again(path)
    assert found[0].simulations == HELD_OUT + TRAINING
    assert [p.name for p in tmp_path.iterdir()] == ["wave.zarr"]


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    """It is written all the same, with a warning."""

    def refused(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    again(tmp_path / "wave.zarr")
    assert "wave.zarr cannot be locked" in caplog.text


def test_a_failure_that_cannot_be_marked_ends_nothing(tmp_path, caplog):
    """A disk that refuses is logged, with the simulation."""
    path = write(tmp_path / "wave.zarr", Wave(), leave=(5, 6))
    written = again(path)
    (path / "state" / "c.5").mkdir()
    written.fail(5)
    assert "simulation 5 was not marked as failed" in caplog.text
    written.fail(6)
    written.fail(7)
    (path / "state" / "c.5").rmdir()
    assert written.states()[4:8].tolist() == [COMPLETE, ABSENT, FAILED, COMPLETE]


def test_a_folder_that_was_made_for_it_is_as_good_as_none(tmp_path):
    """Empty, it becomes the data set; with anything in it, it stays as it is."""
    made = tmp_path / "wave.zarr"
    made.mkdir()
    assert again(made).simulations == HELD_OUT + TRAINING
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ArchiveError, match=r"it has no zarr\.json"):
        again(other)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_coordinates_that_another_program_has_changed_are_refused(tmp_path):
    """Fields would be learnt at other places than those that the spec has."""
    path = write(tmp_path / "wave.zarr", Wave())
    for name in ("time", *(c.name for c in Wave.spec.coordinates)):
        stored = zarr.open_group(path)[name]
        values = stored[:]
        stored[:] = values[::-1]
        with pytest.raises(ArchiveError, match=f"coordinate '{name}' expected the"):
            Archive(path)
        stored[:] = values
        Archive(path)


class Sound(Wave):
    """Around a pressure that single precision cannot tell from the variation."""

    spec = dataclasses.replace(
        Wave.spec,
        variables=tuple(
            dataclasses.replace(v, offset=101325, scale=1e-4)
            for v in Wave.spec.variables
        ),
    )

    def solve(self, parameters):
        for step in super().solve(parameters):
            yield 101325 + 1e-4 * step


def test_offset_and_scale_are_applied_by_whoever_reads_the_file(tmp_path):
    """By xarray, as netCDF names them, and by a validation in units of the variable."""
    path = write(tmp_path / "sound.zarr", Sound())
    archive = Archive(path)
    names = [p.name for p in Sound.spec.parameters]
    exact = xr.concat(
        Sound().solve(dict(zip(names, archive.parameters[1], strict=True))), "time"
    )
    with xr.open_zarr(path) as stored:
        for variable in archive.spec.variables:
            assert (variable.offset, variable.scale) == (101325, 1e-4)
            got = stored[variable.name][1].values
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, exact[variable.name], rtol=0, atol=1e-10)
    kept = np.empty((archive.spec.steps, *archive.spec.step_shape), np.float32)
    archive.read(1, 0, kept)
    np.testing.assert_allclose(
        archive.spec.physical(kept)[:, 0],
        exact[archive.spec.variables[0].name],
        rtol=0,
        atol=1e-10,
    )
