"""A campaign of files as a data set: what is read of them, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from xarray.testing import assert_allclose

from surrogate_flow.cli.app import main
from surrogate_flow.data.stored import StoredData
from surrogate_flow.dataset import Archive
from surrogate_flow.solvers import HeatPlate

X, Y, T = np.linspace(0, 1, 5), np.linspace(0, 1, 4), np.linspace(0, 1, 6)
RUNS = [(0.02, 1.0), (0.05, 2.0), (0.09, 3.0), (0.05, 4.0), (0.01, 5.0)]


def simulated(nu, amplitude):
    """What a program of another kind has left."""
    decay = amplitude * np.exp(-30 * nu * T)[:, None, None]
    u = decay * np.sin(np.pi * Y)[:, None] * np.sin(np.pi * X)
    return xr.Dataset(
        {
            "u": (("time", "y", "x"), u, {"units": "m/s"}),
            "p": (("x", "time", "y"), 1 + u.transpose(2, 0, 1), {"units": "Pa"}),
            "mass": ("time", u.sum((1, 2))),
            "amplitude": ((), amplitude, {"units": "m/s"}),
            "gravity": 9.81,
        },
        {"time": ("time", T, {"units": "s"}), "y": Y, "x": ("x", X, {"units": "m"})},
        {"nu": nu, "nu_units": "m2/s", "Re": 100, "history": "made"},
    )


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Five files in the present folder, and their datasets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    made = {f"runs/run_{k:03d}.nc": simulated(*run) for k, run in enumerate(RUNS)}
    for name, dataset in made.items():
        dataset.to_netcdf(name)
    return made


def imported(*words):
    main(["import", "runs/*.nc", "--output=c.zarr", *words])
    return Archive(Path("c.zarr"))


def refused(capsys, *words):
    with pytest.raises(SystemExit):
        main(["import", "--output=c.zarr", *(words or ["runs/*.nc"])])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_fields_parameters_and_units_come_as_they_are(campaign, capsys):
    """Of attributes and scalars those that differ; of variables those on the grid."""
    archive = imported()
    spec = archive.spec
    assert [(p.name, p.low, p.high, p.units) for p in spec.parameters] == [
        ("nu", 0.01, 0.09, "m2/s"),
        ("amplitude", 1, 5, "m/s"),
    ]
    assert [(v.name, v.units) for v in spec.variables] == [("u", "m/s"), ("p", "Pa")]
    assert (spec.dims, spec.shape, spec.time_units) == (("y", "x"), (4, 5), "s")
    assert spec.times == tuple(T)
    assert {c.name: c.units for c in spec.coordinates} == {"x": "m", "y": ""}
    assert (archive.held_out, archive.complete()) == (1, [0, 1, 2, 3, 4])
    truth = {dataset.nu: dataset for dataset in campaign.values()} | {
        (d.nu, float(d.amplitude)): d for d in campaign.values()
    }
    assert sorted(map(tuple, archive.parameters.tolist())) == sorted(RUNS)
    with xr.open_zarr("c.zarr") as written:
        for row in range(5):
            one = written.isel(simulation=row).load()
            expected = truth[float(one.nu), float(one.amplitude)]
            for name in ("u", "p"):
                got = one[name].drop_vars(set(one[name].coords) - {"time", "x", "y"})
                expected_u = expected[name].transpose("time", "y", "x")
                assert_allclose(got, expected_u.astype("f4"), rtol=1e-6)
    said = capsys.readouterr().out
    assert "5 of 5 simulations, 1 of them held out" in said
    assert "parameters: nu (0.01 to 0.09 m2/s), amplitude (1 to 5 m/s)" in said
    data = StoredData(archive.path)
    data.setup("fit")
    assert data.validated == 1


def test_again_only_what_is_missing_is_read(campaign, monkeypatch):
    """A file that cannot be read ends the import; mended, the same command goes on."""
    whole = xr.load_dataset("runs/run_002.nc")
    bad = whole.copy(deep=True)
    bad.u[3, 1, 1] = np.nan
    bad.to_netcdf("runs/run_002.nc")
    with pytest.raises(SystemExit):
        imported()
    before = Archive(Path("c.zarr")).complete()
    whole.to_netcdf("runs/run_002.nc")
    assert len(before) < len(imported().complete()) == 5


def test_a_file_that_has_changed_is_written_again(campaign, caplog):
    """Simulated anew with the same parameters, it does not stay as it was."""
    imported("--variables=u", "--held_out=runs/run_002.nc")
    imported("--variables=u", "--held_out=runs/run_002.nc")
    assert not caplog.messages
    anew = campaign["runs/run_002.nc"]
    anew["u"] = anew.u + 1
    anew.to_netcdf("runs/run_002.nc")
    archive = imported("--variables=u", "--held_out=runs/run_002.nc")
    assert caplog.messages == [
        "runs/run_002.nc has changed since it was imported: written again."
    ]
    u = np.empty((6, 1, 4, 5), np.float32)
    archive.read(0, 0, u)
    np.testing.assert_allclose(u[:, 0], anew.u, rtol=1e-6)
    assert archive.complete() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("key", ["file", "stem", "number"])
def test_parameters_come_from_a_table(campaign, key):
    """Rows go by the name of the file, whole or not, or by its number; in any order."""
    rows = [f"{key},nu,note,forcing"]
    for k in (3, 1, 0, 4, 2):
        name = {"file": f"run_{k:03d}.nc", "stem": f"run_{k:03d}"}.get(key, k)
        rows.append(f"{name},{RUNS[k][0]},x,{10 + k}")
    Path("runs.csv").write_text("\n".join(rows))
    archive = imported("--parameters=runs.csv", "--variables=u", "--held_out=2")
    assert [p.name for p in archive.spec.parameters] == ["nu", "forcing"]
    assert [v.name for v in archive.spec.variables] == ["u"]
    assert archive.held_out == 2
    u = np.empty((6, 1, 4, 5), np.float32)
    for row, (_, forcing) in enumerate(archive.parameters):
        archive.read(row, 0, u)
        expected = campaign[f"runs/run_{forcing - 10:03.0f}.nc"].u.values
        np.testing.assert_allclose(u[:, 0], expected, rtol=1e-6)


def test_held_out_files_and_parameters_are_named(campaign):
    """The files that a pattern names are the first rows."""
    archive = imported("--held_out=runs/run_00[34].nc", "--parameters=amplitude")
    assert archive.held_out == 2
    assert sorted(archive.parameters[:2, 0]) == [4, 5]


def test_a_row_is_of_the_file_that_one_column_names(campaign, capsys):
    """No parameter is taken for the number of a file, and no column is preferred."""
    rows = [(amplitude, k, nu) for k, (nu, amplitude) in enumerate(RUNS)]
    rows = [(4 - a % 5, k, nu) for a, k, nu in rows]

    def written(header):
        lines = [header, *(",".join(map(str, row)) for row in rows)]
        Path("t.csv").write_text("\n".join(lines))
        return "--parameters=t.csv"

    archive = imported(written("amplitude,case,nu"))
    assert sorted(map(tuple, archive.parameters)) == sorted(
        (a, nu) for a, _, nu in rows
    )
    assert "got run, case. " in refused(capsys, "runs", written("run,case,nu"))
    assert "one 'run' with" in refused(capsys, "runs", written("modes,waves,nu"))


@pytest.mark.parametrize("column", ["case", "folder"])
def test_rows_go_by_folders_where_all_files_have_one_name(campaign, column):
    """By their names, or their numbers in a column that says so."""
    rows = [f"{column},nu,amplitude"]
    for k, (path, run) in enumerate(zip(campaign, RUNS, strict=True)):
        Path(f"case_{k:03d}").mkdir()
        Path(path).rename(f"case_{k:03d}/out.nc")
        key = k if column == "case" else f"case_{k:03d}"
        rows.append(f"{key},{run[0]},{run[1]}")
    Path("t.csv").write_text("\n".join(rows))
    main(["import", "case_*/out.nc", "--output=c.zarr", "--parameters=t.csv"])
    archive = Archive(Path("c.zarr"))
    assert sorted(map(tuple, archive.parameters.tolist())) == sorted(RUNS)
    u = np.empty((6, 2, 4, 5), np.float32)
    for row, values in enumerate(archive.parameters):
        archive.read(row, 0, u)
        np.testing.assert_allclose(u[:, 0], simulated(*values).u, rtol=1e-6)


def test_numbers_and_units_come_of_texts(campaign, capsys):
    """What is left out although it differs is named; long names stay."""
    said = ["2.8 m2/s", "3e-1 m2/s", "4. m2/s", "1 m2/s", "+.5 m2/s"]
    units = ["m s-1", "kg m**-2", "%", "[1/s]", "W/(m K)"]
    for k, (path, dataset) in enumerate(campaign.items()):
        dataset.attrs |= {f"q{i}": f"{k} {u}" for i, u in enumerate(units)}
        # As headers of tables have them.
        dataset.attrs |= {"wind [Pa]": k}
        dataset.attrs |= {"nu": said[k], "created": f"2024-01-0{k + 1} 10:00"}
        dataset.attrs |= {"run_id": f"{k}af", "scheme": f"{k} of 9", "only": 3}
        dataset.attrs |= {"seed": 7 + k, "wallTimeSeconds": 2.5 * k, "jobID": k}
        dataset.attrs |= {"date": 20260101 + k, "forcing": [2.0 * k, 3.0]}
        if k:
            del dataset.attrs["only"]
        dataset.u.attrs["long_name"] = "speed of the flow"
        dataset.x.attrs["long_name"] = "distance"
        dataset.to_netcdf(path)
    spec = imported("--variables=u").spec
    assert [(p.name, p.low, p.high, p.units) for p in spec.parameters] == [
        ("nu", 0.3, 4, "m2/s"),
        *((f"q{i}", 0, 4, unit.strip("[]")) for i, unit in enumerate(units)),
        ("wind", 0, 4, "Pa"),
        ("forcing_0", 0, 8, ""),
        ("amplitude", 1, 5, "m/s"),
    ]
    left_out = (
        "left out: created, run_id, scheme, only, seed, wallTimeSeconds, jobID, date"
    )
    assert left_out in " ".join(capsys.readouterr().out.split())
    main(["import", "runs", "--output=d.zarr", "--parameters=nu,seed"])
    assert Archive(Path("d.zarr")).spec.parameters[1].high == 11
    assert "only, wallTimeSeconds" in " ".join(capsys.readouterr().out.split())
    with xr.open_zarr("c.zarr") as written:
        names = [written[name].attrs["long_name"] for name in ("u", "x", "y")]
    assert names == ["speed of the flow", "distance", "y"]
    campaign["runs/run_003.nc"].assign_attrs(nu="1 mm2/s").to_netcdf("runs/run_003.nc")
    error = refused(capsys)
    assert "run_003.nc: units of nu: expected 'm2/s' as runs/run_00" in error


def test_a_table_has_units_and_goes_by_what_files_say(campaign, capsys):
    """Units in the header or in the cells; the key is an attribute of that name."""
    for k, (path, dataset) in enumerate(campaign.items()):
        dataset.assign_attrs(run_id=f"r{4 - k}").to_netcdf(path)
    rows = [f"r{4 - k},{nu},{a} K,n{k}" for k, (nu, a) in enumerate(RUNS)]

    def written(header):
        Path("t.csv").write_text("\n".join([header, *sorted(rows)]))
        return "runs", "--parameters=t.csv"

    main(["import", *written("run_id,nu [m2/s],rise,note"), "--output=c.zarr"])
    archive = Archive(Path("c.zarr"))
    assert [(p.name, p.units) for p in archive.spec.parameters] == [
        ("nu", "m2/s"),
        ("rise", "K"),
    ]
    assert sorted(map(tuple, archive.parameters.tolist())) == sorted(RUNS)
    assert "left out: note" in capsys.readouterr().out
    u = np.empty((6, 2, 4, 5), np.float32)
    for row, values in enumerate(archive.parameters):
        archive.read(row, 0, u)
        truth = simulated(*values).u
        np.testing.assert_allclose(u[:, 0], truth, rtol=1e-6, atol=1e-7)
    rows = [f"{row},run_{4 - k:03d}" for k, row in enumerate(rows)]
    error = refused(capsys, *written("run_id,nu,rise,note,file"))
    assert "t.csv: expected one column that says which" in error
    assert "got file, run_id." in error
    rows = [",".join(row.split(",")[:3]) + ",x" for row in rows]
    assert "t.csv: column 'nu/s'" in refused(capsys, *written("run_id,nu/s,rise,note"))


def test_a_file_of_several_names_is_one_simulation(campaign, capsys):
    """Relative, absolute, a link; and held out are files that are imported."""
    Path("link.nc").symlink_to(Path("runs/run_001.nc"))
    everywhere = ["link.nc", "runs", str(Path("runs").resolve())]
    main(["import", *everywhere, "--output=c.zarr", "--held_out=runs/run_001.nc"])
    archive = Archive(Path("c.zarr"))
    assert sorted(map(tuple, archive.parameters.tolist())) == sorted(RUNS)
    assert (archive.held_out, tuple(archive.parameters[0])) == (1, RUNS[1])
    assert "5 of 5 simulations" in capsys.readouterr().out
    campaign["runs/run_000.nc"].to_netcdf("other.nc")
    error = refused(capsys, "runs", "--held_out=other.nc")
    assert "held_out: expected some of the files that are imported" in error
    assert "other.nc" in error


DIFFERING = {
    "no file": (lambda d: "text", "cannot be read as netCDF (ValueError)"),
    "a variable less": (lambda d: d.drop_vars("p"), "there is no variable 'p'"),
    "other units": (
        lambda d: d.assign(u=d.u.assign_attrs(units="km/s")),
        "u: expected {'y': 4, 'x': 5} m/s as runs/run_001.nc, got {'y': 4, 'x': 5} km/s",
    ),
    "another grid": (lambda d: d.isel(x=slice(3)), "got {'y': 4, 'x': 3}"),
    "other positions": (
        lambda d: d.assign_coords(x=2 * d.x),
        "'x' expected the positions of the spec, in any order: [0.   0.25",
    ),
    "no positions": (lambda d: d.drop_vars("x"), "no 'x' as in runs/run_001.nc"),
    "a time twice": (lambda d: d.isel(time=[0, 1, 1, 2, 3, 4]), "times that differ"),
    "fewer steps": (lambda d: d.isel(time=slice(4)), "time: expected 6 steps"),
    "a variable more": (lambda d: d.assign(q=d.u), "'q' is not in runs/run_001.nc. To"),
    "other times": (lambda d: d.assign_coords(time=d.time + 0.1), "time[0]: expected"),
    "no parameter": (lambda d: d.drop_vars("amplitude"), "no number 'amplitude'"),
    "a parameter that is none": (
        lambda d: d.assign_attrs(nu=np.nan),
        "no number 'nu', among",
    ),
    "NaN": (lambda d: d.assign(u=d.u.where(d.x > 0.1)), "got 4 of 20 cells NaN"),
}


@pytest.mark.parametrize("name", DIFFERING)
def test_a_file_that_is_damaged_or_differs_is_named(campaign, capsys, name):
    """In one sentence, the first file too; or it is left out, and the others are not."""
    change, expected = DIFFERING[name]
    changed = change(campaign["runs/run_000.nc"])
    path = Path("runs/run_000.nc")
    if isinstance(changed, str):
        path.write_text("no netCDF")
    else:
        path.unlink()
        changed.to_netcdf(path)
    error = refused(capsys)
    assert "runs/run_000.nc" in error
    assert expected in error
    archive = imported("--skip_damaged=true")
    assert len(archive.complete()) == 4
    assert 1.0 not in archive.parameters[archive.complete(), 1]
    assert "Left out: runs/run_000.nc" in capsys.readouterr().out


def test_points_and_steps_in_another_order_are_put_right(campaign):
    """Reversed, permuted, in single precision, along time, too."""
    orders = [
        lambda d: d.isel(x=slice(None, None, -1), time=[2, 0, 1, 5, 4, 3]),
        lambda d: d.transpose("x", "time", "y").isel(y=[2, 0, 3, 1]),
        lambda d: d.assign_coords(x=d.x.astype("f4"), y=d.y.astype("f4")),
    ]
    for (path, dataset), change in zip(campaign.items(), orders, strict=False):
        change(dataset).assign_coords(
            x=("x", change(dataset).x.values, {"units": "m"})
        ).to_netcdf(path)
    archive = imported()
    with xr.open_zarr("c.zarr") as written:
        for row, values in enumerate(archive.parameters):
            one, truth = written.isel(simulation=row), simulated(*values)
            for name in ("u", "p"):
                at = dict(time=T, y=Y, x=X, method="nearest")
                got = one[name].sel(**at).transpose(*truth[name].dims)
                np.testing.assert_allclose(got, truth[name], rtol=1e-6, atol=1e-7)


def test_all_damaged_files_are_named_at_once(campaign, capsys):
    """Of whatever kind, after all others have been written."""
    Path("runs/run_000.nc").write_bytes(b"")
    campaign["runs/run_001.nc"].drop_vars("p").to_netcdf("runs/run_001.nc")
    campaign["runs/run_003.nc"].isel(time=[0]).to_netcdf("runs/run_003.nc")
    assert "Not taken either: runs/run_001.nc, runs/run_003.nc. " in refused(capsys)
    for path, dataset in campaign.items():
        dataset.assign(u=dataset.u * (np.nan if "2" in path else 1)).to_netcdf(path)
    assert "run_002.nc, step 0: variable 'u' expected finite" in refused(capsys)
    assert len(Archive(Path("c.zarr")).complete()) == 4


def test_what_single_precision_loses_is_kept_with_an_offset(campaign, caplog):
    """A pressure of 101325 Pa that varies by 1e-4 Pa comes back as it was."""
    for path, dataset in campaign.items():
        dataset.assign(p=101325 + 1e-4 * dataset.p).to_netcdf(path)
    archive = imported("--variables=p")
    assert "p is kept as (p - 101325) / 1e-04" in caplog.text
    with xr.open_zarr("c.zarr") as written:
        for row, values in enumerate(archive.parameters):
            truth = 101325 + 1e-4 * simulated(*values).p
            got = written.p.isel(simulation=row).transpose(*truth.dims)
            np.testing.assert_allclose(got, truth, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:-1], "run_004.nc: no number 'nu', as it has no row"),
        (lambda rows: [*rows, rows[0]], "t.csv: file: run_000.nc is in two rows"),
        (
            lambda rows: [*rows[:-1], "run_004.nc,abc,5"],
            "t.csv: nu of run_004.nc: expected a number, got 'abc'",
        ),
        (lambda rows: [*rows[:-1], "run_004.nc,,5"], "run_004.nc: no number 'nu'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(campaign, capsys, change, expected):
    """With the row and the parameter; rows of other files do not matter."""
    rows = [f"run_{k:03d}.nc,{nu},{a}" for k, (nu, a) in enumerate(RUNS)]
    Path("t.csv").write_text("\n".join(["file,nu,amplitude", *change(rows)]))
    assert expected in refused(capsys, "runs", "--parameters=t.csv")


def test_what_makes_no_data_set_is_refused(campaign, capsys):
    """No files, no parameters, a table of others, a dim that is none."""
    assert "no file 'nope/*.nc'" in refused(capsys, "nope/*.nc")
    assert "import needs files" in refused(capsys, "--time=t")
    assert "two files or more" in refused(capsys, "runs/run_000.nc")
    assert "--time DIM" in refused(capsys, "runs", "--time=step")
    assert "Re is 100 in all runs" in refused(capsys, "runs", "--parameters=Re")
    assert "no number 'nuu'" in refused(capsys, "runs", "--parameters=nuu")
    assert "1 to 4 of the 5 files, got 5" in refused(capsys, "runs", "--held_out=5")
    Path("t.csv").write_text("file,nu\nother.nc,1\n")
    assert "the name of each file" in refused(capsys, "runs", "--parameters=t.csv")
    for path, dataset in campaign.items():
        dataset.assign_attrs(Ra=20240000 + int(path[9:12])).to_netcdf(path)
    assert "Leave it out: --parameters nu,amplitude." in refused(capsys, "runs")
    for k, (path, dataset) in enumerate(campaign.items()):
        lat = ("y", "x"), np.full((4, 5), 1.0 + (k == 2))
        dataset.assign_coords(lat=lat).to_netcdf(path)
    assert "'lat' is not that of runs/run_000.nc" in refused(capsys, "runs")
    for path, dataset in campaign.items():
        dataset.assign_attrs(nu=1).drop_vars("amplitude").to_netcdf(path)
    assert "--parameters FILE.csv" in refused(capsys, "runs")


def test_a_time_of_another_name_and_a_mesh(tmp_path, monkeypatch, capsys):
    """Steps along `step`, whose times have a name of their own; cells as UGRID has them."""
    monkeypatch.chdir(tmp_path)
    solver = HeatPlate(cells=(16, 3), steps=4)
    spec, (middle, *_) = solver.spec, solver.spec.parameters
    solver.setup(1)
    values = {p.name: (p.low + p.high) / 2 for p in spec.parameters}
    for k in range(3):
        one = {**values, middle.name: middle.low + k}
        fields = xr.concat(solver.solve(one), "time")[["temperature"]]
        fields = fields.drop_vars("time").rename(time="step")
        fields["hours"] = ("step", np.array(spec.times), {"standard_name": "time"})
        fields["topology"] = (
            (),
            0,
            {
                "cf_role": "mesh_topology",
                "face_node_connectivity": "faces",
                "node_coordinates": "x y",
            },
        )
        # The same mesh, whose nodes and cells are in another order in each file.
        order = np.random.default_rng(k).permutation(spec.shape[0])
        cells = np.argsort(order)[np.array(spec.cells)][:: 1 - 2 * (k % 2)]
        fields = fields.isel({spec.dims[0]: order if k else slice(None)})
        cells = cells if k else np.array(spec.cells)
        fields["faces"] = (("face", "corner"), cells + 1, {"start_index": 1})
        fields.attrs[middle.name] = one[middle.name]
        fields.to_netcdf(f"plate_{k}.nc")
    truth = xr.concat(solver.solve(one), "time").temperature.values
    main(["import", "plate_*.nc", "--output=plate.zarr", "--held_out=plate_2.nc"])
    archive = Archive(tmp_path / "plate.zarr")
    got = archive.spec
    u = np.empty((4, 1, *spec.shape), np.float32)
    archive.read(0, 0, u)
    np.testing.assert_allclose(u[:, 0], truth, rtol=1e-6)
    assert (got.cells, got.times, got.dims) == (spec.cells, spec.times, spec.dims)
    assert {c.name for c in got.coordinates} == {"x", "y"}
    fields["faces"][0, 0] = 1 + (fields.faces[0, 0] % 3)
    fields.to_netcdf("plate_0.nc")
    error = refused(capsys, "plate_*.nc")
    assert "plate_0.nc: the cells of its mesh are not plate_1.nc's." in error


def test_edges_are_no_fields_and_time_has_a_name_of_each_file(campaign, capsys):
    """In 1D they have as many dims as fields; two grids are two data sets."""
    edges = np.stack([T, T], axis=1)
    for k, (path, dataset) in enumerate(campaign.items()):
        one = dataset[["u", "amplitude"]].isel(y=2, drop=True)
        one = xr.merge([{"edges": (("time", "b"), edges), "time_bnds": one.u}, one])
        one["time_bnds"] = ("time", "b"), edges
        one.time.attrs["bounds"] = "edges"
        one = one.rename(time="t") if k == 2 else one
        one.to_netcdf(path)
    archive = imported()
    assert [v.name for v in archive.spec.variables] == ["u"]
    assert (archive.spec.dims, archive.complete()) == (("x",), [0, 1, 2, 3, 4])
    u = np.empty((6, 1, 5), np.float32)
    for row, (nu, amplitude) in enumerate(archive.parameters):
        archive.read(row, 0, u)
        truth = simulated(nu, amplitude).u[:, 2]
        np.testing.assert_allclose(u[:, 0], truth, rtol=1e-6)
    for path, dataset in campaign.items():
        dataset["v"] = dataset.u.rename(x="face").drop_vars("face", errors="ignore")
        dataset.to_netcdf(path)
    assert "one grid, got p (x, y), v (y, face). Name" in refused(capsys, "runs")


@pytest.mark.parametrize("given", ["runs", "runs/", "runs/run_000.nc"])
def test_fit_says_how_to_bring_files_in(campaign, capsys, given):
    """A folder or a file of them is no data set yet."""
    with pytest.raises(SystemExit):
        main(["fit", "--data", given, "--model=fully_connected"])
    assert "surrogate-flow import 'runs/" in capsys.readouterr().err
