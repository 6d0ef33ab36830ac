"""Stored runs are streamed as they are: each once, whatever their files look like."""

import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml

from surrogate_flow.cli.app import main
from surrogate_flow.data.online import OnlineData
from surrogate_flow.dataset import Archive
from surrogate_flow.fields.errors import UserError
from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers import Ended, Replay, Run
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing import check_solver

X, Y, T = np.linspace(0, 1, 5), np.linspace(0, 2, 4), np.linspace(0.1, 0.6, 6)


def field(number, *axes):
    """The truth of a run: u(t, *space), no two runs and no two points alike."""
    grid = np.meshgrid(T, *axes, indexing="ij")
    return sum((k + 1) * g for k, g in enumerate(grid)) + 10.0 * number


def netcdf(folder, parameters=(0.1, 0.2, 0.4, 0.3, 0.2, 0.5)):
    for k, nu in enumerate(parameters):
        xr.Dataset(
            {"u": (("time", "x"), field(k, X), {"units": "m/s"})},
            {"time": ("time", T, {"units": "s"}), "x": ("x", X, {"units": "m"})},
            {"nu": nu, "nu_units": "m2/s", "run_id": f"r{k}"},
        ).to_netcdf(folder / f"run_{k}.nc")
    return [field(k, X)[:, None] for k in range(len(parameters))], [*parameters]


def one_netcdf(folder):
    nu = [0.1, 0.2, 0.4]
    u = np.stack([field(k, Y, X) for k in range(3)])
    xr.Dataset(
        {
            "u": (("sample", "time", "y", "x"), u),
            "nu": ("sample", nu),
            "force": (("sample", "mode"), np.arange(6.0).reshape(3, 2)),
        },
        {"time": T, "y": Y, "x": X, "sample": [7, 8, 9]},
    ).to_netcdf(folder / "all.nc")
    return [*u[:, :, None]], nu


def zarr(folder):
    for k, nu in enumerate([0.1, 0.2]):
        xr.Dataset(
            {"u": (("time", "x"), field(k, X))}, {"time": T, "x": X}, {"nu": nu}
        ).to_zarr(folder / f"run_{k}.zarr")
    return [field(k, X)[:, None] for k in range(2)], [0.1, 0.2]


def pdebench(folder):
    """1D: a file for each viscosity, which its name has, and one more time."""
    runs, every = [], []
    for k, nu in enumerate([0.001, 0.01]):
        u = np.stack([field(10 * k + n, X) for n in range(3)])
        with h5py.File(folder / f"1D_Burgers_Sols_Nu{nu}.hdf5", "w") as file:
            file["tensor"] = u.astype("f4")
            file["x-coordinate"] = X.astype("f4")
            file["t-coordinate"] = np.append(T, 0.7).astype("f4")
        runs += [*u[:, :, None]]
        every += [nu] * 3
    return runs, every


def pdebench_2d(folder):
    """2D: several fields, and what all runs share in attributes."""
    runs = []
    for k, eta in enumerate([0.1, 0.2]):
        path = folder / f"2D_CFD_Rand_M0.1_Eta{eta}_Zeta0.1_periodic_128_Train.hdf5"
        parts = [
            [field(100 * k + 10 * n + c, X, Y) for c in range(2)] for n in range(2)
        ]
        u = np.array(parts)
        with h5py.File(path, "w") as file:
            file.attrs.update({"eta": eta, "zeta": 0.1, "M": 0.1})
            file["Vx"], file["density"] = u[:, 0], u[:, 1]
            file["x-coordinate"], file["y-coordinate"] = X, Y
            file["t-coordinate"] = T
        runs += [*u.transpose(0, 2, 1, 3, 4)]
    return runs, [0.1, 0.1, 0.2, 0.2]


def pdebench_groups(folder):
    """A group for each run, with the settings of its program."""
    radii = [0.3, 0.6, 0.4]
    with h5py.File(folder / "2D_rdb_NA_NA.h5", "w") as file:
        for k, radius in enumerate(radii):
            file[f"{k:04d}/data"] = field(k, X, Y)[..., None].astype("f4")
            file[f"{k:04d}/grid/x"], file[f"{k:04d}/grid/y"] = X, Y
            file[f"{k:04d}/grid/t"] = T
            text = f"name: swe\nsim: &a\n  seed: {k}\n  dam_radius: {radius}\n"
            text += "  xdim: 5\n  again: *a\n"
            file[f"{k:04d}"].attrs["config"] = text
    return [field(k, X, Y)[:, None] for k in range(3)], radii


def the_well(folder):
    """Scalars, vectors and tensors, and a number for each run."""
    runs, rates = [], []
    for k in range(2):
        path = folder / f"gray_scott_{k}.hdf5"
        u = np.array(
            [[field(100 * k + 10 * n + c, X, Y) for c in range(7)] for n in range(2)]
        )
        with h5py.File(path, "w") as file:
            file.attrs["simulation_parameters"] = ["F"]
            file.attrs.update({"F": 0.1 * (k + 1), "n_trajectories": 2 + k})
            file.attrs.update({"grid_type": "cartesian", "n_spatial_dims": 2})
            grid = file.create_group("dimensions")
            grid.attrs["spatial_dims"] = ["x", "y"]
            for name, values in (("time", T), ("x", X), ("y", Y)):
                grid[name] = values.astype("f4")
                grid[name].attrs["sample_varying"] = False
            varying = {"sample_varying": True, "time_varying": True}
            fields = {
                "t0_fields/A": u[:, 0],
                "t1_fields/v": np.moveaxis(u[:, 1:3], 1, -1),
                "t2_fields/D": np.moveaxis(u[:, 3:], 1, -1).reshape(2, 6, 5, 4, 2, 2),
            }
            for name, values in fields.items():
                file[name] = values.astype("f4")
                file[name].attrs.update({**varying, "dim_varying": [True, True]})
            file["t0_fields/height"] = np.ones((5, 4))
            file["t0_fields/height"].attrs.update(
                {
                    "sample_varying": False,
                    "time_varying": False,
                    "dim_varying": [True, True],
                }
            )
            file["scalars/F"] = 0.1 * (k + 1)
            file["scalars/F"].attrs.update(
                {"sample_varying": False, "time_varying": False}
            )
            file["boundary_conditions/x_periodic/mask"] = np.ones(5, bool)
        runs += [*u.transpose(0, 2, 1, 3, 4)]
        rates += [0.1 * (k + 1)] * 2
    return runs, rates


LAYOUTS = [netcdf, one_netcdf, zarr, pdebench, pdebench_2d, pdebench_groups, the_well]


def replayed(solver, **run):
    """What each of its runs yields, and the first parameter of each."""
    names, columns = zip(*solver.stored_parameters.items(), strict=True)
    fields = []
    for number, point in enumerate(zip(*columns, strict=True)):
        given = Run(dict(zip(names, point, strict=True)), number, **run)
        steps = xr.concat(solver.start(given), "time")
        fields.append(np.stack([steps[v.name] for v in solver.spec.variables], 1))
    return fields, [*columns[0]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_each_run_is_streamed_once_as_it_is(layout, tmp_path):
    """With its own parameters, also where several have the same."""
    truth, parameters = layout(tmp_path)
    solver = Replay(str(tmp_path))
    fields, got = replayed(solver)
    assert sorted(got) == pytest.approx(sorted(parameters))
    key = lambda pair: pair[1].flat[0]  # noqa: E731
    expected = sorted(zip(parameters, truth, strict=True), key=key)
    pairs = sorted(zip(got, fields, strict=True), key=key)
    for (nu, u), (own, yielded) in zip(expected, pairs, strict=True):
        assert own == pytest.approx(nu)
        np.testing.assert_allclose(yielded, u, rtol=1e-6)
    np.testing.assert_allclose(solver.spec.times, T, rtol=1e-6)


def test_a_vector_a_run_has_components_and_the_well_too(tmp_path):
    one_netcdf(tmp_path)
    names = [p.name for p in Replay(str(tmp_path)).spec.parameters]
    assert names == ["nu", "force_0", "force_1"]
    (tmp_path / "well").mkdir()
    the_well(tmp_path / "well")
    spec = Replay(str(tmp_path / "well" / "*.hdf5")).spec
    tensor = ["D_xx", "D_xy", "D_yx", "D_yy"]
    assert [v.name for v in spec.variables] == ["A", "v_x", "v_y", *tensor]
    assert [p.name for p in spec.parameters] == ["F"]


def darcy(folder):
    """A coefficient for each run, and one field that belongs to it."""
    a = np.stack([field(k, X, Y)[0] for k in range(6)])
    with h5py.File(folder / "2D_DarcyFlow_beta1.0_Train.hdf5", "w") as file:
        file["tensor"], file["nu"] = 2 * a[:, None], a
        file["x-coordinate"], file["y-coordinate"] = X, Y
        file.attrs["beta"] = 1.0
    return a


def test_input_fields_need_no_parameters(tmp_path, monkeypatch, capsys):
    """Those of a file, each with its run: generated by inspect's recipe, or imported."""
    monkeypatch.chdir(tmp_path)
    a = darcy(tmp_path)
    with pytest.raises(SystemExit):
        main(["inspect", "*.hdf5"])
    assert "initial state: --inputs tensor." in capsys.readouterr().err
    main(["inspect", "*.hdf5", "--inputs=nu"])
    printed = capsys.readouterr().out
    assert "# input nu" in printed
    Path("darcy.yaml").write_text(printed)
    main(["generate", "--data", "darcy.yaml", "--output", "darcy.zarr"])
    main(["import", "*.hdf5", "--inputs=nu", "--output=imported.zarr"])
    assert "  inputs: nu\n" in capsys.readouterr().out
    for name in ("darcy.zarr", "imported.zarr"):
        assert Archive(Path(name)).complete() == [*range(6)]
        with xr.open_zarr(name) as written:
            nu, u = written["nu"].values, written["tensor"].values[:, 0]
        np.testing.assert_array_equal(u, 2 * nu)
        np.testing.assert_array_equal(nu[nu[:, 0, 0].argsort()], a.astype("f4"))
    main(
        ["fit", "--data=darcy.zarr", "--model=deeponet", "--trainer.max_epochs=60"]
        + ["--data.batch_size=5", "--trainer.accelerator=cpu"]
    )
    (path,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    surrogate = Surrogate.load(path)
    predicted = surrogate.predict({}, inputs={"nu": a[0]})["tensor"]
    assert abs(predicted - 2 * a[0]).mean() < 0.1 * abs(2 * a[0] - 2 * a.mean(0)).mean()


def test_the_first_step_is_an_input(tmp_path):
    """Of a variable that is named so; and then no step, also for a retry."""
    truth, _ = netcdf(tmp_path, [1.0] * 3)
    solver = Replay(str(tmp_path), inputs=["u"])
    spec = solver.spec
    assert [(v.name, v.units) for v in spec.inputs] == [("u_initial", "m/s")]
    assert (spec.parameters, spec.times) == ((), tuple(T[1:]))
    begun = []
    for number in range(3):
        for first in (0, 2):
            first_steps, *_ = solver.start(Run({}, number, first_step=first))
            state = first_steps["u_initial"].values
            own = next(t for t in truth if t[0, 0, 0] == state[0])
            np.testing.assert_array_equal(state, own[0, 0])
            np.testing.assert_array_equal(first_steps["u"], own[1 + first :, 0])
            begun.append(float(state[0]))
    assert sorted(begun) == sorted([float(u[0, 0, 0]) for u in truth] * 2)


def test_a_line_of_numbers_is_an_input_where_it_is_named(tmp_path):
    """Else it is where the points lie."""
    for k in range(2):
        xr.Dataset(
            {"u": (("time", "x"), field(k, X)), "a": ("x", X + k, {"units": "m2"})},
            {"time": T, "x": X},
        ).to_netcdf(tmp_path / f"run_{k}.nc")
    spec = Replay(str(tmp_path), inputs="a").spec
    assert [(v.name, v.units) for v in spec.inputs] == [("a", "m2")]
    assert [c.name for c in spec.coordinates] == ["x"]
    with pytest.raises(UserError, match=r"no field 'b'\. Valid names: a, u\."):
        Replay(str(tmp_path), inputs="b")
    one = xr.load_dataset(tmp_path / "run_1.nc").drop_vars("a")
    one.to_netcdf(tmp_path / "run_1.nc")
    with pytest.raises(UserError, match=r"run_1\.nc: input 'a': expected .* got none"):
        Replay(str(tmp_path), inputs="a")


def test_it_keeps_the_laws_of_solvers(tmp_path):
    """Pickled, too: a worker opens a file when it runs."""
    netcdf(tmp_path)
    assert check_solver(Replay(str(tmp_path)))
    pdebench(tmp_path)
    assert check_solver(Replay(str(tmp_path / "*.hdf5")))
    assert check_solver(Replay(str(tmp_path / "*.hdf5"), inputs=["tensor"]))
    netcdf(tmp_path, [1.0] * 3)
    assert check_solver(Replay(str(tmp_path / "*.nc"), inputs="u"))


def test_names_units_and_times_are_those_of_the_recipe(tmp_path):
    for k, nu in enumerate([0.1, 0.2]):
        xr.Dataset({"T1": (("it", "x"), field(k, X))}, {"x": X}, {"k": nu}).to_netcdf(
            tmp_path / f"run_{k}.nc"
        )
    solver = Replay(
        str(tmp_path),
        names={"T1": "temperature", "k": "conductivity", "it": "time"},
        units={"temperature": "K", "conductivity": "W/m/K", "time": "s", "x": "m"},
        times=0.5,
    )
    spec = solver.spec
    assert [(v.name, v.units) for v in spec.variables] == [("temperature", "K")]
    assert [(p.name, p.units) for p in spec.parameters] == [("conductivity", "W/m/K")]
    assert spec.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert (spec.time_units, spec.coordinates[0].units) == ("s", "m")
    given = Replay(str(tmp_path), names={"it": "time"}, times=[*T])
    assert given.spec.times == tuple(T)
    fields, _ = replayed(given)
    assert sorted(u.flat[0] for u in fields) == [field(k, X).flat[0] for k in (0, 1)]


def test_a_table_has_the_parameters(tmp_path):
    """Of files by their names, of the runs of one file by their numbers."""
    truth, _ = netcdf(tmp_path, [1.0] * 3)
    table = tmp_path / "runs.csv"
    table.write_text("file,rate [1/s]\nrun_2.nc,30\nrun_0.nc,10\nrun_1.nc,20\n")
    solver = Replay(str(tmp_path / "*.nc"), parameters=str(table))
    assert solver.spec.parameters[0].units == "1/s"
    fields, rates = replayed(solver)
    for u, rate in zip(fields, rates, strict=True):
        np.testing.assert_allclose(u, truth[int(rate / 10) - 1], rtol=1e-6)
    one_netcdf(tmp_path / ".")
    table.write_text("run,rate\n2,30\n0,10\n1,20\n")
    solver = Replay(str(tmp_path / "all.nc"), parameters=str(table))
    for u, rate in zip(*replayed(solver), strict=True):
        assert u.flat[0] == field(int(rate / 10) - 1, Y, X).flat[0]


def test_files_of_one_name_are_no_rows_of_a_table(tmp_path):
    """Unless their folders tell them apart; without a table they are two runs."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        netcdf(tmp_path / folder, [1.0 + (folder == "b")])
    solver = Replay(str(tmp_path / "*" / "*.nc"))
    assert sorted(solver.stored_parameters["nu"]) == [1.0, 2.0]
    table = tmp_path / "runs.csv"
    table.write_text("file,rate\nrun_0.nc,1\nrun_0.nc,2\n")
    with pytest.raises(
        UserError, match=r"a column with the name of each file.*each once"
    ):
        Replay(str(tmp_path / "*" / "*.nc"), parameters=str(table))
    table.write_text("folder,rate\na,1\nb,2\n")
    solver = Replay(str(tmp_path / "*" / "*.nc"), parameters=str(table))
    assert sorted(solver.stored_parameters["rate"]) == [1.0, 2.0]


def test_it_goes_on_and_keeps_to_a_rate(tmp_path):
    netcdf(tmp_path)
    fields, _ = replayed(Replay(str(tmp_path)))
    rest, _ = replayed(Replay(str(tmp_path)), first_step=4)
    for u, later in zip(fields, rest, strict=True):
        np.testing.assert_array_equal(u[4:], later)
    solver, begin = Replay(str(tmp_path), rate=50.0), time.monotonic()
    first = dict(nu=0.1)
    assert len([*solver.solve(first)]) == 6
    assert time.monotonic() - begin >= 6 / 50


def test_what_inspect_prints_is_a_recipe(tmp_path, monkeypatch, capsys):
    """Its study has each run once, held-out ones included, and as the files are."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    truth, parameters = netcdf(Path("runs"))
    main(["inspect", *map(str, sorted(Path("runs").iterdir()))])
    printed = capsys.readouterr().out
    recipe = yaml.safe_load(printed)
    assert recipe["solver"]["init_args"] == {"files": "runs/run_*.nc"}
    for line in (
        "# 6 runs in 6 files",
        "# parameter nu: 0.1 to 0.5 m2/s, 5 values",
        "# variable u [m/s]",
        "# dim x: 5 points, x 0 to 1 m",
        "# time: 6 steps, 0.1 to 0.6 s",
        "left out: run_id",
        "only 5 of the runs differ in their parameters",
    ):
        assert line in printed
    Path("mine.yaml").write_text(printed)
    main(["generate", "--data", "mine.yaml", "--output", "again.zarr"])
    archive = Archive(Path("again.zarr"))
    assert archive.complete() == [*range(6)]
    assert archive.held_out == 1
    got = []
    for row, (nu,) in enumerate(archive.parameters):
        u = np.empty((6, 1, 5), np.float32)
        archive.read(row, 0, u)
        got.append((float(u[0, 0, 0]), float(nu), u))
    expected = sorted(zip(truth, parameters, strict=True), key=lambda p: p[0].flat[0])
    for (_, nu, u), (own, p) in zip(
        sorted(got, key=lambda g: g[0]), expected, strict=True
    ):
        assert nu == p
        np.testing.assert_allclose(u, own, rtol=1e-6)


def test_a_parameter_may_be_one_of_the_initial_state(tmp_path, monkeypatch, capsys):
    """As inspect and import are told, and the recipe says."""
    monkeypatch.chdir(tmp_path)
    netcdf(tmp_path)
    main(["inspect", "*.nc", "--initial", "nu"])
    printed = capsys.readouterr().out
    assert "5 values, of the initial state alone" in printed
    arguments = yaml.safe_load(printed)["solver"]["init_args"]
    assert Replay(**arguments).spec.parameters[0].initial
    assert not Replay("*.nc").spec.parameters[0].initial
    main(["import", "*.nc", "--initial", "nu", "--output", "all.zarr"])
    assert Archive(Path("all.zarr")).spec.parameters[0].initial
    with pytest.raises(UserError, match=r"initial: there is no parameter 'mu'.*'nu'"):
        Replay("*.nc", initial=["mu"])


def test_a_fit_trains_on_what_inspect_has_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    netcdf(tmp_path)
    main(["inspect", "*.nc"])
    Path("mine.yaml").write_text(capsys.readouterr().out)
    main(["plan", "--data=mine.yaml"])
    assert "nothing was submitted" in capsys.readouterr().out
    main(
        ["fit", "--data=mine.yaml", "--model=fully_connected", "--trainer.max_steps=90"]
        + ["--trainer.accelerator=cpu", "--data.batch_size=2"]
    )
    assert "best.ckpt" in {p.name for p in tmp_path.glob("runs/*/*/checkpoints/*")}
    said = "".join(capsys.readouterr())
    assert "of 90 batches. There are no more. Of a data set" in said, said


def other_grid(path):
    xr.load_dataset(path).isel(x=slice(1, None)).to_netcdf(path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:2000])


def without_parameter(path):
    dataset = xr.load_dataset(path)
    del dataset.attrs["nu"]
    dataset.to_netcdf(path)


def other_times(path):
    xr.load_dataset(path).assign_coords(time=T + 1).to_netcdf(path)


WRONG = {
    other_grid: "variable 'u' expected",
    truncated: "cannot be read as netCDF",
    without_parameter: "no number 'nu'",
    other_times: "time[0]: expected 0.1",
}


@pytest.mark.parametrize("damage", WRONG, ids=lambda f: f.__name__)
def test_a_file_that_is_wrong_is_named_in_one_line(
    damage, tmp_path, monkeypatch, capsys
):
    """By inspect, and where a study would begin; left out, the others go on."""
    monkeypatch.chdir(tmp_path)
    netcdf(tmp_path)
    damage(Path("run_3.nc"))
    words = ["--parameters=nu"]
    with pytest.raises(SystemExit):
        main(["inspect", "*.nc", *words])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "run_3.nc" in said.err
    with pytest.raises(UserError, match=r"run_3\.nc.* skip_damaged: true") as error:
        Replay("*.nc", parameters="nu")
    assert "\n" not in str(error.value)
    assert (
        len(Replay("*.nc", parameters="nu", skip_damaged=True).stored_parameters["nu"])
        == 5
    )


def test_what_is_no_set_of_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    netcdf(tmp_path, [1.0, 1.0])
    with pytest.raises(UserError, match=r"no file 'nope/\*\.nc' in "):
        Replay("nope/*.nc")
    with pytest.raises(
        UserError, match=r"is a number that differs.* parameters: FILE.csv"
    ):
        Replay("*.nc")
    with pytest.raises(UserError, match="two files or more"):
        Replay("run_0.nc")
    with pytest.raises(UserError, match="names: there is no 'vel'"):
        Replay("*.nc", names={"vel": "u"})
    with pytest.raises(UserError, match="times: expected 2 steps, as given, got 6"):
        Replay("*.nc", times=[0.0, 1.0])
    with pytest.raises(UserError, match="rate: expected steps a second, > 0, got 0"):
        Replay("*.nc", rate=0)
    netcdf(tmp_path)
    with pytest.raises(
        UserError, match=r"none of the 6 runs has .* Leave data\.sampler"
    ):
        next(Replay("*.nc").solve({"nu": 0.15}))


def test_a_file_that_goes_after_the_start_fails_its_attempt(tmp_path):
    netcdf(tmp_path)
    solver = Replay(str(tmp_path / "*.nc"))
    (tmp_path / "run_0.nc").unlink()
    with pytest.raises(UserError, match=r"run_0\.nc cannot be read"):
        next(solver.solve({"nu": 0.1}))


@pytest.mark.parametrize(
    "given",
    [
        {"sampler": Uniform()},
        {"held_out_sampler": Uniform()},
        {"constraint": lambda parameters: True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_runs_are_chosen_by_nothing_else(given, tmp_path):
    """Of inputs alone, any number would be of some run, and of a held-out one again."""
    netcdf(tmp_path, [1.0] * 6)
    solver = Replay(str(tmp_path), inputs="u")
    (option,) = given
    remedy = rf"data\.{option}: .*6 stored runs.* Leave data\.{option} out\."
    with pytest.raises(UserError, match=remedy) as error:
        OnlineData(solver, held_out=2, simulations=20, **given)
    assert "\n" not in str(error.value)
    assert OnlineData(solver, held_out=2, held_out_sampler="same").simulations == 4


def test_an_input_is_what_the_recipe_names(tmp_path):
    """Also beside a field that has the name of another one's first step."""
    for k in range(2):
        xr.Dataset(
            {"u": (("time", "x"), field(k, X)), "u_initial": ("x", X - k)},
            {"time": T, "x": X},
        ).to_netcdf(tmp_path / f"run_{k}.nc")
    for rate in (None, 1e6):
        solver = Replay(str(tmp_path), inputs="u", rate=rate)
        for number in range(2):
            steps = xr.concat(solver.start(Run({}, number)), "time", data_vars=["u"])
            own = next(
                u
                for u in (field(0, X), field(1, X))
                if u[0, 0] == steps["u_initial"][0]
            )
            np.testing.assert_array_equal(steps["u_initial"], own[0])
            np.testing.assert_array_equal(steps["u"], own[1:])
    solver = Replay(str(tmp_path), inputs="u_initial")
    (first, *_), *_ = ([*solver.start(Run({}, n))] for n in range(2))
    assert first["u_initial"][0] in (X[0], X[0] - 1)
    assert solver.spec.steps == len(T)
    with pytest.raises(UserError, match=r"inputs: expected .*'u_initial' twice"):
        Replay(str(tmp_path), inputs="u,u_initial")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"names": {"u": "v", "x": "v"}}, "names: expected .*'v' of u and of x"),
        ({"names": {"u": "x"}}, "names: .*'x' .*as well as 'u'"),
        ({"names": {"run_id": "nu"}}, "names: .*'nu' .*as well as 'run_id'"),
        ({"names": {"nope": "v"}}, "names: there is no 'nope'"),
        ({"units": {"nope": "m"}}, "units: there is no 'nope'.* Valid names: nu"),
        ({"times": -1.0}, "times: expected .*ascend.*, got -1"),
        ({"times": [0, 2, 1, 3, 4, 5]}, "times: expected .*ascend.*, got 1 behind 2"),
        ({"times": "daily"}, "times: expected .*'daily'"),
        ({"seed": -1}, "Replay: seed: expected a whole number >= 0, got -1"),
    ],
    ids=str,
)
def test_a_mistake_of_the_recipe_is_no_damaged_file(given, said, tmp_path):
    """So it is refused in a line, and no file is left out for it."""
    netcdf(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        Replay(str(tmp_path), parameters="nu", skip_damaged=True, **given)
    assert "\n" not in str(error.value)
    assert "netCDF" not in str(error.value)


def test_units_of_the_recipe_are_those_of_a_table_too(tmp_path):
    netcdf(tmp_path, [1.0] * 2)
    (tmp_path / "runs.csv").write_text("run,rate [1/h]\n0,1\n1,2\n")
    table = str(tmp_path / "runs.csv")
    solver = Replay(
        str(tmp_path / "*.nc"), parameters=table, units={"rate": "1/s", "u": "km/h"}
    )
    assert [p.units for p in solver.spec.parameters] == ["1/s"]
    assert [v.units for v in solver.spec.variables] == ["km/h"]


def unequal(folder, lengths=(6, 2, 6, 4, 1, 6)):
    """Runs of which some have ended early, the first one of them."""
    fields, rates = netcdf(folder)
    for k, steps in enumerate(lengths):
        path = folder / f"run_{k}.nc"
        whole = xr.load_dataset(path)
        whole.isel(time=slice(steps)).to_netcdf(path)
    return [field[:steps] for field, steps in zip(fields, lengths, strict=True)], rates


def test_fields_that_are_nan_over_land_are_masked(tmp_path, monkeypatch, capsys):
    """As inspect finds, with the fill value of netCDF; in a data set, too."""
    fields, rates = netcdf(tmp_path)
    for path in tmp_path.iterdir():
        dataset = xr.load_dataset(path)
        land = dataset.where(dataset.x > X[1])
        land.u.encoding["_FillValue"] = 1e20
        land.to_netcdf(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["surrogate-flow"])
    main(["inspect", "*.nc"])
    recipe = capsys.readouterr().out
    assert "# NaN at some points, which is where they are masked: u" in recipe
    arguments = yaml.safe_load(recipe)["solver"]["init_args"]
    assert arguments["masked"] == "u"
    replay = Replay(**arguments)
    assert replay.spec.variables[0].masked
    first = next(replay.solve({"nu": rates[0]}))
    expected = np.where(X[1] < X, fields[0][:, 0], np.nan)
    np.testing.assert_allclose(first["u"], expected[: first.sizes["time"]])
    main(["import", "*.nc", "--masked", "u", "--output", "all.zarr"])
    archive = Archive(tmp_path / "all.zarr")
    got = np.empty((6, 1, 5), np.float32)
    archive.read(0, 0, got)
    assert np.isnan(got[:, 0]).all(0).tolist() == (X[1] >= X).tolist()
    with pytest.raises(UserError, match=r"masked: there is no 'v'. Valid names: u"):
        Replay("*.nc", masked=["v"])


def test_runs_of_unequal_length_are_asked_for(tmp_path):
    """Most of them were cut off; where they have ended early, each has its own steps."""
    fields, rates = unequal(tmp_path)
    with pytest.raises(UserError, match=r"expected 6 steps .* may_end_early: true"):
        Replay(str(tmp_path / "*.nc"))
    replay = Replay(str(tmp_path / "*.nc"), may_end_early=True)
    assert replay.spec.steps == 6
    for number, point in enumerate(replay._points[:, 0]):
        (k,) = {int(f"{path.stem[-1]}") for path, _ in [replay._places[number]]}
        assert point == rates[k]
        for first in {0, len(fields[k]) // 2, len(fields[k])}:
            run, got = Run({"nu": point}, simulation=number, first_step=first), []
            early = pytest.raises(Ended) if len(fields[k]) < 6 else nullcontext()
            with early:
                for steps in replay.start(run):
                    got += [*steps["u"].values]
            np.testing.assert_allclose(
                np.array(got).reshape(-1, 5), fields[k][first:, 0]
            )
    (tmp_path / "run_1.nc").unlink()
    later = xr.load_dataset(tmp_path / "run_3.nc")
    later["time"] = later["time"].copy(data=T[1:5])
    later.to_netcdf(tmp_path / "run_3.nc")
    with pytest.raises(UserError, match=r"run_3.nc: time\[0\]"):
        Replay(str(tmp_path / "*.nc"), may_end_early=True)


def test_runs_of_unequal_length_are_imported_and_inspected(
    tmp_path, monkeypatch, capsys
):
    fields, _ = unequal(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["surrogate-flow"])
    words = ["*.nc", "--may_end_early", "true"]
    main(["inspect", *words])
    recipe = capsys.readouterr().out
    assert "# time: 1 to 6 steps, 0.1 to 0.6 s" in recipe
    assert yaml.safe_load(recipe)["solver"]["init_args"]["may_end_early"] is True
    main(["import", *words, "--output", "all.zarr", "--held_out", "2"])
    assert "1 to 6 steps of" in capsys.readouterr().out
    archive = Archive(tmp_path / "all.zarr")
    steps = archive.steps().tolist()
    assert sorted(steps) == [1, 2, 4, 6, 6, 6]
    for number, count in enumerate(steps):
        got = np.empty((count, 1, 5), np.float32)
        archive.read(number, 0, got)
        assert any(
            len(field) == count and np.allclose(got, field, rtol=1e-6)
            for field in fields
        )
