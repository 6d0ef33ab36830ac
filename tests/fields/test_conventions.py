"""Files say of themselves what the CF conventions ask for: checkers find nothing."""

import numpy as np
import pytest
import xarray as xr
from conventions import findings
from test_stored import write

from surrogate_flow import Archive, to_netcdf
from surrogate_flow.fields.conventions import about, for_files, time_units
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers import Combined1D, Heat2D, HeatPlate, Lorenz

VOLUME = FieldSpec(
    parameters=(Parameter("inflow_speed", 0.5, 2.0, "m/s"), Parameter("n", 1, 4)),
    variables=(Variable("p", "Pa", "pressure", 101325, 1e-3), Variable("w", "m/s")),
    dims=("x", "y", "z"),
    shape=(3, 4, 2),
    times=(0.0, 1.0, 2.5),
    time_units="h",
    coordinates=tuple(
        Coordinate(d, d, tuple(range(n)), "m")
        for d, n in zip("xyz", (3, 4, 2), strict=True)
    ),
)
SPECS = {
    "1D": Combined1D(16, 32, steps=4).spec,
    "2D": Heat2D((6, 4), steps=3).spec,
    "3D, several": VOLUME,
    "mesh": HeatPlate(steps=3).spec,
    "plain numbers without units of time": Lorenz(steps=4).spec,
}


def dataset(spec, samples):
    """Fields of one sample, or of several."""
    lead = (samples,) if samples else ()
    fields = np.random.default_rng(0).random((*lead, spec.steps, *spec.step_shape))
    values = {p.name: np.full(lead, p.low) for p in spec.parameters}
    return spec.dataset(fields.astype("f4"), spec.times, values)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_checker_finds_nothing(spec, samples, tmp_path):
    """Of any severity; what is read back is what was written, and times are numbers."""
    given, path = dataset(spec, samples), tmp_path / "field.nc"
    to_netcdf(given, path)
    assert findings(path) == []
    with xr.open_dataset(path) as got:
        assert got.time.dtype == np.float64
        assert got.attrs["Conventions"] == "CF-1.8"
        chunks = got[spec.variables[0].name].encoding["chunksizes"]
        assert not samples or chunks[1] == spec.steps
        assert (time_units(got.time.attrs) or "1") == (spec.time_units or "1")
        got.time.attrs = given.time.attrs
        xr.testing.assert_equal(got, given)
        for name, variable in got.variables.items():
            assert variable.attrs.get("units") == given[name].attrs.get("units")
            assert variable.attrs["long_name"]


def test_one_sample_of_many_is_read_alone():
    """A chunk has samples with all times, or one, whatever their number."""
    for steps, cells, chunks in ((9, 8, (3640, 9, 8)), (20, 10**5, (1, 20, 10**5))):
        fields = np.broadcast_to(np.float32(0), (5000, steps, cells))
        kept = for_files(xr.Dataset({"u": (("sample", "time", "x"), fields)})).u
        assert kept.encoding["chunksizes"] == chunks


@pytest.mark.parametrize(
    ("name", "values"),
    [("seed", np.array([1, -(2**31) - 1])), ("flag", np.array([3, 200], "u1"))],
)
def test_whole_numbers_that_cf_cannot_hold_are_refused(name, values, tmp_path):
    """By name, instead of wrapped; those that fit are written."""
    given = dataset(SPECS["2D"], 2).assign({name: ("sample", values)})
    with pytest.raises(ValueError, match=rf"{name}: expected numbers that fit"):
        to_netcdf(given, tmp_path / "field.nc")
    assert not list(tmp_path.iterdir())
    to_netcdf(given.assign({name: ("sample", values // 2)}), tmp_path / "field.nc")
    with xr.open_dataset(tmp_path / "field.nc") as got:
        np.testing.assert_array_equal(got[name], values // 2)


def test_every_part_counts(tmp_path):
    """Each of them left out is found: the checker looks at all of it."""
    path = tmp_path / "field.nc"
    dataset(SPECS["2D"], 0).drop_attrs().to_netcdf(path)
    found = "\n".join(findings(path))
    for part in ("_FillValue", "long_name", "title", "Conventions", "standard_name"):
        assert part in found
    assert "history" in found


def test_h5netcdf_writes_the_same(tmp_path, monkeypatch):
    """Which is what is there without netCDF4."""
    path = tmp_path / "field.nc"
    with xr.set_options(netcdf_engine_order=("h5netcdf", "scipy", "netcdf4")):
        to_netcdf(dataset(SPECS["2D"], 3), path, **about("Fields", "a solver"))
    assert findings(path) == []


def test_a_data_set_says_it_too(tmp_path):
    """Zarr 3, which the checker's netCDF library does not open: it reads xarray's copy."""
    write(tmp_path / "heat.zarr", Heat2D((6, 4), steps=3))
    with xr.open_zarr(tmp_path / "heat.zarr") as stored:
        to_netcdf(stored, tmp_path / "heat.nc")
        assert stored.attrs["source"].startswith("surrogate_flow ")
        assert stored.time.dtype == np.float64
    assert findings(tmp_path / "heat.nc") == []
    assert Archive(tmp_path / "heat.zarr").spec == Heat2D((6, 4), steps=3).spec


def test_what_made_a_file_is_in_it(monkeypatch):
    """The command as it can be typed again, without the folder of the program."""
    monkeypatch.setattr(
        "sys.argv", ["/a/b/surrogate-flow", "predict", "--times=[1, 2]"]
    )
    said = about("Predictions", "FNO")
    assert said["history"].endswith(" surrogate-flow predict '--times=[1, 2]'")
    assert said["source"].startswith("surrogate_flow 0.")
    assert "institution" not in said
    monkeypatch.setattr("sys.argv", ["/a/ipykernel_launcher.py", "-f", "kernel.json"])
    assert about("Predictions")["history"].endswith(" in a notebook")
