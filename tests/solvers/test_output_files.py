"""Programs that write files: each is read once, as a whole, in its order."""

import dataclasses
import random
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.cli.app import main
from surrogate_flow.dataset import Archive
from surrogate_flow.fields import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.solvers import (
    Ended,
    OutputFiles,
    ProcessError,
    Program,
    Run,
)
from surrogate_flow.solvers.programs import files

PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
Y, X, T = (0.0, 1.0, 2.0), (0.0, 0.5, 1.0, 1.5), (0.5, 1.0, 1.5)
SPEC = FieldSpec(
    parameters=(Parameter("rate", 0.0, 9.0),),
    variables=(Variable("p"), Variable("U_x")),
    dims=("y", "x"),
    shape=(3, 4),
    times=T,
    coordinates=(Coordinate("y", "y", Y), Coordinate("x", "x", X)),
)
POINTS = np.stack([*np.meshgrid(X, Y)], -1).reshape(-1, 2)  # x is the fastest


def truth(step):
    """p and U_x on the grid."""
    x, y = np.meshgrid(X, Y)
    return np.stack([100.0 * step + 10 * y + x, -(x + y) - step])


def netcdf(path, step, u):
    dataset = xr.Dataset({"pressure": (("x", "y"), u[0].T), "U_x": (("y", "x"), u[1])})
    dataset["wall"] = 3.0
    dataset.assign_coords(y=[*Y], x=[*X], time=T[step]).to_netcdf(path)


def npy(path, _, u):
    np.save(path, u)


def npz(path, _, u):
    np.savez(path, pressure=u[0], U_x=u[1])


def raw(path, _, u):
    u.astype(">f4").tofile(path)


def plain_csv(path, _, u):
    np.savetxt(path, u.ravel(), fmt="%.9g")


def csv(path, step, u):
    """Rows in any order, with their places."""
    rows = [
        f"{x},{y},{p:.9g},{v:.9g}"
        for (x, y), p, v in zip(POINTS, u[0].ravel(), u[1].ravel(), strict=True)
    ]
    random.Random(step).shuffle(rows)
    path.write_text("\n".join(["x [m],y [m],pressure,U_x", *rows]))


def vtk(path, _, u):
    import meshio

    order = np.random.default_rng(0).permutation(len(POINTS))
    u = u.reshape(2, -1)
    vector = np.stack([u[1], 0 * u[1], 0 * u[1]], 1)
    points = np.append(POINTS, 0 * POINTS[:, :1], 1)[order]
    cells = [("vertex", np.arange(len(order))[:, None])]
    data = {"pressure": u[0][order], "U": vector[order]}
    meshio.Mesh(points, cells, data).write(path)


def openfoam(path, _, u):
    for name, kind, values in (
        ("pressure", "scalar", [f"{v:.9g}" for v in u[0].ravel()]),
        ("U", "vector", [f"({v:.9g} 0 0)" for v in u[1].ravel()]),
        ("uniform", "scalar", "1"),
        ("V", "vector", "(1 2 3)"),
    ):
        inside = f"uniform {values}"
        if isinstance(values, list):
            lines = "\n".join(values)
            inside = f"nonuniform List<{kind}>\n{len(values)}\n(\n{lines}\n)"
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(
            "FoamFile\n{\n version 2.0;\n format ascii;\n"
            f" class vol{kind.title()}Field;\n object {name};\n}}\n"
            f"dimensions [0 0 0 0 0 0 0];\ninternalField {inside};\nboundaryField\n{{\n}}\n"
        )


FORMATS = {
    netcdf: ("out_*.nc", {}),
    npy: ("out_*.npy", {}),
    npz: ("out_*.npz", {}),
    raw: ("out.*", {"format": "raw", "dtype": ">f4"}),
    plain_csv: ("out_*.txt", {}),
    csv: ("out_*.csv", {}),
    vtk: ("out_*.vtk", {}),
    openfoam: ("*", {"format": "openfoam"}),
}


@pytest.mark.parametrize("write", FORMATS, ids=lambda f: f.__name__)
def test_each_format_arrives_as_it_was_written(write, tmp_path):
    """In the order of the numbers, 8, 9, 10, of which no name says the width."""
    pattern, options = FORMATS[write]
    for package in {vtk: ["meshio"], openfoam: ["foamlib"]}.get(write, []):
        pytest.importorskip(package)
    ready, scratch = tmp_path / "ready", tmp_path / "scratch"
    ready.mkdir()
    scratch.mkdir()
    for step in range(3):
        name = pattern.replace("*", str(8 + step))
        if write is openfoam:
            name = f"{T[step]:g}"
        write(ready / name, step, truth(step))
    if write is openfoam:
        write(ready / "0", 0, truth(7))
        (ready / "constant").mkdir()
    reader = OutputFiles(pattern, names={"pressure": "p"}, remove=True, **options)
    # The files of the system, and those of the shell, in the order of text: 10, 8, 9.
    script = f"for file in $(ls -d {ready}/* | sort -V); do cp -r $file .; done"
    program = Program(["sh", "-c", script], SPEC, reader=reader)
    got = xr.concat(program.start(Run({"rate": 1.0}, folder=scratch)), "time")
    np.testing.assert_allclose(got["time"], T)
    got = got.sortby(["y", "x"]).transpose("time", "y", "x")
    for step in range(3):
        fields = np.stack([got["p"][step], got["U_x"][step]])
        np.testing.assert_allclose(fields, truth(step), rtol=1e-6)
    assert {p.name for p in scratch.iterdir()} <= {"0", "constant"}


LINE = FieldSpec(
    parameters=(Parameter("rate", 0.0, 9.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(40,),
    times=tuple(range(1, 9)),
)
# Numbers whose first digits are numbers as well: half of a file looks like another.
WRITER = textwrap.dedent(
    """
    import os, sys
    fate, file_, bytes_ = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for k in range(1, 9):
        text = " ".join(f"{1000 * k + i}.5" for i in range(40)).encode()
        out = os.open(f"u_{k}.csv", os.O_WRONLY | os.O_CREAT)
        if k == file_:
            os.write(out, text[:bytes_])
            if fate == "killed":
                os.kill(os.getpid(), 9)
            sys.exit(0)
        os.write(out, text[:100])
        os.write(out, text[100:])
        os.close(out)
    """
)


def written(folder, fate, file, count, **options):
    """A run of the writer, whose file `file` has `count` bytes."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        WRITER.replace("{", "{{").replace("}", "}}"),
    ]
    reader = OutputFiles("u_*.csv", **options)
    program = Program([*command, fate, str(file), str(count)], LINE, reader=reader)
    return program.start(Run({"rate": 1.0}, folder=folder))


def killed(count, folder):
    """Kill a writer so often, each time after another byte; what arrives is whole."""
    rng = random.Random(5)
    for number in range(count):
        scratch = folder / str(number)
        scratch.mkdir()
        file, size = rng.randrange(1, 9), rng.randrange(40 * 7)
        got = []
        with pytest.raises(ProcessError, match="was ended by SIGKILL"):
            for dataset in written(scratch, "killed", file, size, remove=number % 2):
                got.append(dataset["u"].values[0])
        expected = [1000.0 * k + np.arange(40) + 0.5 for k in range(1, file)]
        assert len(got) == file - 1
        if got:
            np.testing.assert_array_equal(got, expected)
        shutil.rmtree(scratch)


def test_a_kill_in_mid_write_gives_no_torn_field(tmp_path):
    """All files before the torn one arrive, and nothing of that."""
    killed(100, tmp_path)


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_a_thousand_kills_in_mid_write_give_no_torn_field(tmp_path):
    killed(1000, tmp_path)


def test_a_program_that_ends_well_has_its_last_file_read(tmp_path):
    steps = [*written(tmp_path, "ends", 99, 0)]
    assert [float(s["u"][0, 0]) for s in steps] == [
        1000.0 * k + 0.5 for k in range(1, 9)
    ]
    assert len([*tmp_path.glob("u_*")]) == 8


def test_files_are_read_while_the_program_runs(tmp_path):
    """It waits for the reader, which removes what it has read."""
    script = (
        "for k in 1 2 3; do echo $k.5 $k > part; mv part u_$k.txt; "
        "while [ -e u_$k.txt ] && [ $k != 3 ]; do sleep 0.01; done; done"
    )
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), T)
    reader = OutputFiles("u_*.txt", renamed=True, remove=True)
    program = Program(["sh", "-c", script], spec, reader=reader, timeout=60)
    steps = [*program.start(Run({"rate": 1.0}, folder=tmp_path))]
    assert [s["u"].values.tolist() for s in steps] == [
        [[k + 0.5, k]] for k in (1, 2, 3)
    ]
    assert [*tmp_path.iterdir()] == []


def wrote(tmp_path, script, pattern="u_*.txt", **options):
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), T)
    program = Program(
        ["sh", "-c", script], spec, reader=OutputFiles(pattern, **options)
    )
    return [*program.start(Run({"rate": 1.0}, folder=tmp_path))]


WRONG = {
    "echo 1 2 > u_1.txt; echo 1 2 > u_2.txt": "ended before it wrote all steps",
    "for k in 1 2 3 4; do echo 1 2 > u_$k.txt; done": "got u_4.txt as well. If the first",
    "echo 1 2 > u_1.txt; echo 1 2 > u_01.txt": "with numbers that ascend, got u_1.txt beside",
    "echo 1 2 3 > u_1.txt; touch u_2.txt": r"u_1.txt: expected an array .*\(1, 2\)",
    "echo 1 two > u_1.txt; touch u_2.txt": r"u_1.txt.*",
    "touch u_1.txt u_2.txt": "u_1.txt cannot be read as csv",
    "echo 1 2 > u_a.txt; touch u_b.txt": "a number in the name of each file, got u_",
    "echo 'v w\n1 2\n3 4' > u_1.txt; touch u_2.txt": "u_1.txt: there is no variable 'u'",
    "echo 'v u\n1 2' > u_1.txt; touch u_2.txt": "u_1.txt: u: expected 2 points, 2, got 1",
}


@pytest.mark.parametrize(("files", "error"), [(2, Ended), (0, ProcessError)])
def test_fewer_files_may_be_regular(tmp_path, files, error):
    """The last one is whole when the program has ended; without any it has failed."""
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), T)
    script = "".join(f"echo 1 2 > u_{k}.txt; " for k in range(files)) + "true"
    reader, steps = OutputFiles("u_*.txt"), []
    words = ["sh", "-c", script]
    program = Program(words, spec, reader=reader, may_end_early=True)
    with pytest.raises(error):
        for step in program.start(Run({"rate": 1.0}, folder=tmp_path)):
            steps.append(step)
    assert len(steps) == files


@pytest.mark.parametrize("script", WRONG)
def test_files_that_are_wrong_fail_the_attempt_in_one_line(script, tmp_path):
    with pytest.raises((ProcessError, ArgumentError), match=WRONG[script]) as error:
        wrote(tmp_path, script)
    assert str(error.value).partition(" Its stderr")[0].count("\n") == 0


def test_a_foreign_binary_file_is_named(tmp_path):
    for name, options, said in (
        ("u_1.nc", {}, "u_1.nc cannot be read as netcdf"),
        ("u_1.npy", {}, "u_1.npy cannot be read as npy"),
        ("u_1.raw", {}, r"u_1.raw cannot be read as raw .*13 bytes are no whole"),
    ):
        script = f"echo no such file > {name}; touch {name.replace('1', '2')}"
        with pytest.raises(ProcessError, match=said):
            wrote(tmp_path, script, "u_*" + Path(name).suffix, **options)


def test_fields_that_are_the_same_everywhere(tmp_path):
    """Of OpenFOAM: a number, or one for each component, for all points; also of 3."""
    pytest.importorskip("foamlib")
    variables = (Variable("uniform"), Variable("V_y"))
    spec = FieldSpec(LINE.parameters, variables, ("x",), (3,), T[:1])
    openfoam(tmp_path / f"{T[0]:g}", 0, truth(0))
    reader = OutputFiles("*", format="openfoam")
    run = Run({"rate": 1.0}, folder=tmp_path)
    (got,) = Program("true", spec, reader=reader).start(run)
    assert got["uniform"].values.tolist() == [[1, 1, 1]]
    assert got["V_y"].values.tolist() == [[2, 2, 2]]


def test_arrays_of_another_shape_are_refused(tmp_path):
    """Of .npz, too, whose arrays have names."""
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("y", "x"), (2, 3), T[:1])
    np.savez(tmp_path / "u_1.npz", u=np.zeros((3, 2)))
    run = Run({"rate": 1.0}, folder=tmp_path)
    with pytest.raises(ProcessError, match="u: expected 6 points, 2 x 3, got 3 x 2"):
        [*Program("true", spec, reader=OutputFiles("u_*.npz")).start(run)]


def test_rows_and_axes_say_where_they_belong(tmp_path):
    """Of a line, too, without coordinates in the spec; and of arrays with their axes."""
    line = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), T[:1])
    run = Run({"rate": 1.0}, folder=tmp_path)
    (tmp_path / "u_1.csv").write_text("x,u\n2,20\n1,10\n")
    (got,) = Program("true", line, reader=OutputFiles("u_*.csv")).start(run)
    assert got["u"].values.tolist() == [[10, 20]]
    plane = FieldSpec(LINE.parameters, (Variable("u"),), ("y", "x"), (2, 3), T[:1])
    with pytest.raises(ProcessError, match="columns of all dims, y, x, or of none"):
        (tmp_path / "u_1.csv").write_text("x,u\n" + "1,2\n" * 6)
        [*Program("true", plane, reader=OutputFiles("u_*.csv")).start(run)]
    u = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "v_1.npz", u=u, x=[3, 2, 1], y=[1, 2])
    (got,) = Program("true", plane, reader=OutputFiles("v_*.npz")).start(run)
    assert got["x"].values.tolist() == [3, 2, 1]
    assert got["u"].values.tolist() == [u.tolist()]


def test_positions_may_differ_by_rounding(tmp_path):
    """From those of the spec; without any there, they are no grid."""
    x = [0.1, float(np.nextafter(0.1, 1)), 0.2, 0.2]
    rows = [f"{x!r},{y},{k}" for k, (x, y) in enumerate(zip(x, "0101", strict=True))]
    (tmp_path / "u_1.csv").write_text("\n".join(["x,y,u", *rows]))
    lines = (Coordinate("y", "y", (0.0, 1.0)), Coordinate("x", "x", (0.1, 0.2)))
    plane = FieldSpec(
        *(LINE.parameters, (Variable("u"),), ("y", "x"), (2, 2), T[:1]),
        coordinates=lines,
    )
    run = Run({"rate": 1.0}, folder=tmp_path)
    (got,) = Program("true", plane, reader=OutputFiles("u_*.csv")).start(run)
    assert got["u"].values.tolist() == [[[0, 2], [1, 3]]]
    assert got["x"].values.tolist() == [0.1, 0.2]
    bare = dataclasses.replace(plane, coordinates=())
    said = "u_1.csv: expected 2 positions along 'x', got 3.*a coordinate 'x'"
    with pytest.raises(ProcessError, match=said):
        [*Program("true", bare, reader=OutputFiles("u_*.csv")).start(run)]


def test_a_folder_is_listed_only_where_it_must_be(tmp_path, monkeypatch):
    """Not at each step of many; one that a listing misses is in its place."""
    count, listed, glob_ = 200, [], files.glob.glob
    times = tuple(float(k) for k in range(1, count + 1))
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), times)
    for k in range(count):
        (tmp_path / f"u_{k}.txt").write_text(f"{k} {k}")

    def counted(*words, **options):
        listed.append(words)
        # As where u_7 is made after its place in the listing, and u_8 before its own.
        found = glob_(*words, **options)
        return [name for name in found if len(listed) > 1 or name != "u_7.txt"]

    monkeypatch.setattr(files.glob, "glob", counted)
    run = Run({"rate": 1.0}, folder=tmp_path)
    steps = Program("true", spec, reader=OutputFiles("u_*.txt")).start(run)
    assert [float(s["u"][0, 0]) for s in steps] == [*map(float, range(count))]
    assert len(listed) < 20


@pytest.mark.parametrize("where", ["/tmp/u_*.nc", "../u_*.nc", "a/../../u_*.nc"])
def test_files_elsewhere_are_no_output(where):
    """What is removed lies in the scratch folder."""
    with pytest.raises(ArgumentError, match=r"pattern: expected .*in the folder where"):
        OutputFiles(where, remove=True)


def test_one_more_file_than_steps_is_refused_where_order_alone_tells(tmp_path):
    """Of netCDF without times, too: the first may be the initial state."""
    spec = FieldSpec(LINE.parameters, (Variable("u"),), ("x",), (2,), T)
    run = Run({"rate": 1.0}, folder=tmp_path)
    program = Program("true", spec, reader=OutputFiles("u_*.nc"))
    for k in range(4):
        xr.Dataset({"u": ("x", [k, k])}).to_netcdf(tmp_path / f"u_{k}.nc")
    with pytest.raises(ProcessError, match=r"got u_3\.nc as well"):
        [*program.start(run)]
    (tmp_path / "u_3.nc").unlink()
    assert [float(s["u"][0, 0]) for s in program.start(run)] == [0, 1, 2]


def test_what_cannot_be_read_is_refused_before_anything_runs(monkeypatch):
    with pytest.raises(ArgumentError, match=r"one of many files, such as out_\*\.nc"):
        OutputFiles("out.nc")
    with pytest.raises(ArgumentError, match=r"got 'out_\*'\. Name it: netcdf, npy"):
        OutputFiles("out_*")
    with pytest.raises(ArgumentError, match=r"got 'netcfd'\. Did you mean 'netcdf'"):
        OutputFiles("out_*", format="netcfd")
    with pytest.raises(ArgumentError, match=r"dtype: expected one of NumPy's"):
        OutputFiles("out_*.raw", dtype="flaot64")
    monkeypatch.setitem(sys.modules, "meshio", None)
    with pytest.raises(MissingPackageError, match="pip install meshio"):
        OutputFiles("out_*.vtk")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_the_cpp_program_of_the_page_is_a_solver(tmp_path, monkeypatch):
    """Compiled, run by its recipe, and compared with the exact solution."""
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text("utf-8").partition("## Programs that write files")[2]
    source = re.search(r"```cpp\n(.*?)```", section, re.DOTALL)[1]
    assert len(source.splitlines()) <= 25
    Path("heat.cpp").write_text(source)
    subprocess.run(
        [
            "g++",
            "-std=c++11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "heat.cpp",
            "-o",
            "heat",
        ],
        check=True,
        timeout=120,
    )
    Path("heat.yaml").write_text(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
    main(
        ["generate", "--data=heat.yaml", "--output=heat.zarr", "--data.simulations=2"]
        + ["--data.held_out=1"]
    )
    archive = Archive(tmp_path / "heat.zarr")
    assert archive.complete() == [0, 1, 2]
    spec = archive.spec
    x = np.arange(1, 65) / 65
    u = np.empty((50, 1, 64), np.float32)
    for row, (nu,) in enumerate(archive.parameters):
        archive.read(row, 0, u)
        decay = np.exp(-nu * np.pi**2 * np.array(spec.times))[:, None]
        np.testing.assert_allclose(u[:, 0], decay * np.sin(np.pi * x), atol=3e-4)
