"""Data sets that the workers write: complete, resumable, described, and never of two studies."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
import yaml
from conventions import findings
from distributed import LocalCluster
from programs import command, environment, start
from rich.console import Console
from test_full_disk import DISK, may_mount
from troubled import STEPS, Noted, Troubled, Wave

from surrogate_flow import to_netcdf
from surrogate_flow.cli.app import main
from surrogate_flow.cli.generate import Generation, generate
from surrogate_flow.cli.signals import interrupted, stop_requested
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.stored import StoredData
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.dataset.provenance import sources
from surrogate_flow.dataset.writer import COMPLETE, FAILED
from surrogate_flow.ensemble.ensemble import EnsembleError
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.reservoir import FIFO
from surrogate_flow.sampling import Design, Sobol, Uniform
from surrogate_flow.solvers import (
    Combined1D,
    GrayScott2D,
    Heat2D,
    HeatPlate,
    Lorenz,
    NavierStokes2D,
)

DATA = Path(__file__).parents[1] / "data"
HEAT = partial(Heat2D, cells=(6, 4), steps=8, time_step=0.005)
CLUSTER = partial(
    LocalCluster, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
)


def study(solver=None, **kwargs):
    defaults = {"simulations": 9, "held_out": 2, "cluster": CLUSTER}
    return OnlineData(solver or HEAT(), **{**defaults, **kwargs})


def parameters(data):
    """Those of all simulations, by number."""
    design = Design(
        data.spec.parameters,
        data.sampler,
        held_out=data.held_out,
        simulations=data.simulations,
    )
    return [simulation.parameters for simulation in design]


@pytest.fixture(scope="module")
def heat(tmp_path_factory):
    """A data set of the heat equation, and the study that it is of."""
    path = tmp_path_factory.mktemp("generated") / "heat.zarr"
    data = study(sampler=Sobol(seed=2), name="heat")
    assert generate(data, path, Console(quiet=True)) == 0
    return path, data


def test_contents_are_those_of_the_solver_bit_for_bit(heat):
    """Each simulation, at its number, in single precision."""
    path, data = heat
    with xr.open_zarr(path) as written:
        assert (written.state == COMPLETE).all()
        for number, values in enumerate(parameters(data)):
            truth = xr.concat(data.solver.solve(values), "time").temperature
            got = written.temperature.sel(simulation=number).values
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, truth.values)


def test_xarray_shows_names_units_and_parameters(heat, recwarn):
    """Without a warning: dims, coordinates, units, parameters along the simulations, provenance."""
    path, data = heat
    with xr.open_zarr(path) as written:
        field = written.temperature
        assert field.dims == ("simulation", "time", "x", "y")
        assert field.attrs["units"] == "K"
        assert written.time.attrs["units"] == "s SINCE 0001-01-01"
        np.testing.assert_array_equal(written.time, data.spec.times)
        np.testing.assert_array_equal(written.x, data.spec.coordinates[0].values)
        assert written.left.dims == ("simulation",)
        assert written.left.attrs["units"] == "K"
        expected = [p["left"] for p in parameters(data)]
        np.testing.assert_array_equal(written.left, expected)
        assert written.held_out.values.tolist() == [True] * 2 + [False] * 9
        assert "Heat2D" in written.attrs["solver"]
        assert '"cells": [6, 4]' in written.attrs["solver"]
        assert '"seed": 2' in written.attrs["sampler"]
        assert written.attrs["spec_digest"] == data.spec.digest()
        for word in ("created", "command", "versions"):
            assert written.attrs[word]
        # Parts of it can be written elsewhere.
        written.isel(simulation=[0]).to_netcdf(path.parent / "part.nc")
    assert not [str(w.message) for w in recwarn if "onsolidated" in str(w.message)]


def test_again_nothing_is_simulated_and_more_can_be_added(heat, tmp_path):
    """What is whole stays as it is, to the byte; further simulations come behind."""
    generated, data = heat
    path = shutil.copytree(generated, tmp_path / "heat.zarr")
    before = {p: p.stat().st_mtime_ns for p in path.glob("temperature/c.*")}
    assert Generation(data, path).missing == []
    more = study(sampler=Sobol(seed=2), name="heat", simulations=11)
    generation = Generation(more, path)
    assert [s.number for s in generation.missing] == [11, 12]
    assert generation.run().done == 13
    assert len(Archive(path).complete()) == 13
    with xr.open_zarr(path) as written:
        assert written.sizes["simulation"] == 13
        assert np.isfinite(written.temperature).all()
    after = {p: p.stat().st_mtime_ns for p in path.glob("temperature/c.*")}
    assert before.items() <= after.items()


@pytest.mark.parametrize("what", ["gone", "empty"])
def test_what_has_lost_a_chunk_is_simulated_again(heat, tmp_path, what):
    """A file that is gone, or empty, comes back as it was; all else stays."""
    generated, data = heat
    path = shutil.copytree(generated, tmp_path / "heat.zarr")
    (gone, *_) = path.glob("temperature/c.4.*")
    bytes_ = gone.read_bytes()
    if what == "gone":
        gone.unlink()
    else:
        gone.write_bytes(b"")
    generation = Generation(data, path)
    assert [s.number for s in generation.missing] == [4]
    assert generation.run().done == 11
    assert gone.read_bytes() == bytes_
    assert len(Archive(path).complete()) == 11


OTHERS = {
    "solver": (partial(study, HEAT(diffusivity=2.0)), "asked for is 2.0"),
    "grid": (partial(study, HEAT(cells=(6, 5))), r"cells\[1\] = 4, asked for is 5"),
    "class": (partial(study, Wave()), "class_path = surr.*asked for is troubled.Wave"),
    "seed": (
        partial(study, sampler=Sobol(seed=3)),
        "sampler.*seed = 2, asked for is 3",
    ),
    "sampler": (
        partial(study, sampler=Uniform(2)),
        "sampler.*Sobol, asked for is .*Uniform",
    ),
    "held out": (partial(study, held_out=3), "held_out: it has 2, asked for is 3"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_study_is_refused_and_nothing_changed(heat, other):
    """Solver, its version, spec, sampler, held-out set: what differs is named."""
    path, _ = heat
    make, message = OTHERS[other]
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    if other != "seed":
        make = partial(make, sampler=Sobol(seed=2)) if other != "sampler" else make
    with pytest.raises(ArchiveError, match=message):
        Generation(make(), path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


MINE = """from based import Base

def speed():
    return 1

class Mine(Base):
    pass
"""
BASED = "from troubled import Wave\n\nclass Base(Wave):\n    colour = 1\n"


def imported(folder, monkeypatch, name, text):
    (folder / f"{name}.py").write_text(text)
    # Put in first, so that it is gone when the test has ended.
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]
    return importlib.import_module(name)


@pytest.mark.parametrize("edited", ["class", "helper"])
def test_another_version_of_the_solver_is_refused(tmp_path, monkeypatch, edited):
    """A data set is never of two sources of the same file; the file is named."""
    path = tmp_path / "wave.zarr"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    imported(tmp_path, monkeypatch, "based", BASED)
    mine = imported(tmp_path, monkeypatch, "mine", MINE)
    Generation(study(mine.Mine()), path).close()
    Generation(study(mine.Mine()), path).close()
    text = (
        MINE.replace("pass", "q = 0") if edited == "class" else MINE.replace("1", "22")
    )
    mine = imported(tmp_path, monkeypatch, "mine", text)
    with pytest.raises(ArchiveError, match=r"another solver: it has sources\.mine = "):
        Generation(study(mine.Mine()), path)


def package(folder, monkeypatch, **texts):
    """A package with these modules, imported anew; its class `Mine`, which is in `mine`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [n for n in sys.modules if n.partition(".")[0] == folder.name]:
        monkeypatch.delitem(sys.modules, name)
    folder.mkdir(exist_ok=True)
    for name, text in {"__init__": "", **texts}.items():
        (folder / f"{name}.py").write_text(text)
    return importlib.import_module(f"{folder.name}.mine").Mine()


PACKAGE = {
    "__init__": "from .flux import godunov",
    "mine": """
from equations import godunov
from neighbour import limited
from .based import Base

class Mine(Base):
    pass
""",
    "based": BASED,
    "flux": "from . import constants\n\ndef godunov():\n    return constants.G\n",
    "constants": "G = 9.81\n",
    "unused": "x = 1\n",
}
NEIGHBOUR = "def limited():\n    return 1\n"


@pytest.mark.parametrize("edited", ["based", "flux", "constants", "neighbour"])
def test_what_a_solver_uses_is_part_of_its_version(tmp_path, monkeypatch, edited):
    """In its package and folder: bases, modules, functions that come through others."""
    monkeypatch.syspath_prepend(tmp_path)
    path, home = tmp_path / "wave.zarr", tmp_path / "equations"
    imported(tmp_path, monkeypatch, "neighbour", NEIGHBOUR)
    Generation(study(package(home, monkeypatch, **PACKAGE)), path).close()
    noted = json.loads(Archive(path).attributes["solver"])["sources"]
    known = {"mine", "based", "flux", "constants"}
    assert {*noted} == {f"equations.{name}" for name in known} | {"neighbour"}
    assert all(noted.values())
    unused = {"unused": "x = 2\n", "new": "x = 1\n"}
    same = package(home, monkeypatch, **{**PACKAGE, **unused})
    Generation(study(same), path).close()
    if edited == "neighbour":
        imported(tmp_path, monkeypatch, "neighbour", NEIGHBOUR.replace("1", "2"))
        again = package(home, monkeypatch, **PACKAGE)
    else:
        text = PACKAGE[edited] + "# edited\n"
        again = package(home, monkeypatch, **{**PACKAGE, edited: text})
    name = edited if edited == "neighbour" else rf"equations\.{edited}"
    with pytest.raises(ArchiveError, match=rf"it has sources\.{name} = "):
        Generation(study(again), path)


@pytest.mark.parametrize(
    "kind", [Combined1D, NavierStokes2D, HeatPlate, Heat2D, GrayScott2D, Lorenz]
)
def test_the_numerics_of_the_shipped_solvers_are_part_of_their_version(kind):
    """The file with its numerics, and no more: any version may check its arguments."""
    assert list(sources(kind)) == [kind.__module__]
    assert all(sources(kind).values())


def test_a_data_set_of_version_0_1_can_be_read_but_not_added_to(tmp_path):
    """Its solver had fewer arguments: the error says so, and what to do."""
    path = tmp_path / "heat2d.zarr"
    shutil.copytree(DATA / "v0.1" / "heat2d.zarr", path)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    data = study(Heat2D(cells=(8, 8), steps=6), sampler=Uniform(), simulations=6)
    with pytest.raises(
        ArchiveError, match=r"another solver: it has .* can be read and train"
    ):
        Generation(data, path)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert len(Archive(path).parameters) == 8


@pytest.mark.parametrize("what", ["folder", "file", "beneath a file", "no end"])
def test_places_that_cannot_be_written(tmp_path, what, caplog):
    """Each is refused before a cluster is opened, and stays as it is."""
    path, data, refusal = tmp_path / "there", study(), "no data set"
    if what == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif what == "file":
        path.write_text("mine")
    elif what == "beneath a file":
        (tmp_path / "file").write_text("mine")
        path, refusal = tmp_path / "file" / "x.zarr", "cannot be written"
    else:
        data, refusal = study(simulations=None), "data.simulations"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ArchiveError, ValueError), match=refusal):
        Generation(data, path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not caplog.records


def test_failed_simulations_are_absent_and_marked(tmp_path, recwarn):
    """NaN in the fields, 'failed' in the state, a row in failures.csv beside the data set."""
    path = tmp_path / "wave.zarr"
    data = study(
        Troubled("raises", 0.7),
        simulations=20,
        faults=Faults(retries=0, max_failures=20),
    )
    failing = [n for n, p in enumerate(parameters(data)) if p["phase"] > 0.7]
    assert 2 < len(failing) < 15
    generate(data, path, Console(quiet=True))
    with xr.open_zarr(path) as written:
        assert np.flatnonzero(written.state == FAILED).tolist() == failing
        absent = np.isnan(written.u).all(("time", "x"))
        assert np.flatnonzero(absent).tolist() == failing
    with (tmp_path / "wave_generate" / "failures.csv").open(newline="") as file:
        rows = [int(row["simulation"]) for row in csv.DictReader(file)]
    assert sorted(rows) == failing
    assert not [w for w in recwarn if "Zarr" in str(w.message)]
    # Typed again, they have another try.
    assert [s.number for s in Generation(data, path).missing] == failing
    data.faults = Faults(retries=0, max_failures=0)
    with pytest.raises(EnsembleError, match="negative density"):
        Generation(data, path).run()


def test_an_online_run_leaves_the_same_data_set(heat, tmp_path, monkeypatch):
    """Written while it streams: the arrays that generate writes, bit for bit."""
    monkeypatch.chdir(tmp_path)
    path, _ = heat
    tee = tmp_path / "tee.zarr"
    data = study(
        sampler=Sobol(seed=2),
        name="heat",
        archive=tee,
        reservoir=FIFO(capacity=40),
    )
    data.setup("fit")
    trained = sum(len(batch.step) for batch in data.train_dataloader())
    data.close()
    assert trained == 9 * 8
    with xr.open_zarr(path) as generated, xr.open_zarr(tee) as teed:
        xr.testing.assert_identical(generated.drop_attrs(), teed.drop_attrs())
        for name in ("solver", "sampler", "spec", "held_out"):
            assert generated.attrs[name] == teed.attrs[name]
    assert not list(tee.glob(".*"))
    # What it took is known to those who train on it, and not counted twice.
    took = data.cost().solver_seconds
    assert StoredData(tee).cost().solver_seconds == took > 0
    data.setup("fit")
    assert sum(len(batch.step) for batch in data.train_dataloader()) == trained
    data.close()
    assert Archive(tee).solver_seconds == took
    # And generate sees that nothing is missing.
    assert Generation(study(sampler=Sobol(seed=2)), tee).missing == []


def test_a_run_goes_on_when_its_data_set_cannot_be_written(
    tmp_path, monkeypatch, caplog
):
    """Every sample is trained all the same; the log says what is missing, and what adds it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tee.zarr"
    data = study(Wave(), archive=path, reservoir=FIFO(capacity=40))
    data.setup("fit")
    # What a file system that a worker does not reach looks like.
    (path / "u").rename(tmp_path / "u")
    trained = sum(len(batch.step) for batch in data.train_dataloader())
    assert data.status().ensemble.failed == 0
    (tmp_path / "u").rename(path / "u")
    data.close()
    assert trained == 9 * STEPS
    assert "archives no more" in caplog.text
    assert not (tmp_path / "failures.csv").exists()
    assert len(Generation(data, path).missing) == 11


def workflow(folder, count=40):
    (folder / "noted.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "noted",
                "solver": {
                    "class_path": "troubled.Noted",
                    "init_args": {"path": str(folder / "notes")},
                },
                "simulations": count,
                "held_out": 2,
            }
        )
    )
    return ["generate", "--data", "noted.yaml", "--output", "noted.zarr"]


def begun(folder, words):
    """A process that generates, some of whose simulations are whole."""
    process = start(*words, cwd=folder, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("noted.zarr/state/c.*"))) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no simulation was written"
        time.sleep(0.01)
    return process, psutil.Process(process.pid).children(recursive=True)


def test_killed_half_way_it_goes_on_where_it_was(tmp_path):
    """SIGKILL: whole simulations do not run again, others do, and the fields are the solver's.

    Until then no other process may write there; its lock dies with it.
    """
    process, children = begun(tmp_path, workflow(tmp_path))
    # So that simulations are left, however long the refusals take.
    for child in children:
        child.suspend()
    path, notes = tmp_path / "noted.zarr", tmp_path / "notes"
    data = study(Noted(str(notes)), simulations=40, name="noted")
    store = FIFO(capacity=40)
    teeing = study(data.solver, simulations=40, archive=path, reservoir=store)
    named = f"noted.zarr is written by another run: process {process.pid} on "
    for second in (lambda: Generation(data, path), lambda: teeing.setup("fit")):
        with pytest.raises(ArchiveError, match=named):
            second()
    teeing.close()
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.resume()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    # A worker that dies while it writes leaves this.
    (path / "u" / "c.41.0.0123.partial").write_bytes(b"half")
    whole = set(Archive(path).complete())
    assert 3 <= len(whole) < 42
    first = notes.read_text().splitlines()
    notes.unlink()
    assert generate(data, path, Console(quiet=True)) == 0
    again = notes.read_text().splitlines()
    phases = [repr(p["phase"]) for p in parameters(data)]
    assert len(set(phases)) == 42
    assert {phases[n] for n in whole} <= set(first)
    assert sorted(again) == sorted({*phases} - {phases[n] for n in whole})
    assert not list(path.rglob("*.partial"))
    with xr.open_zarr(path) as written:
        for number, values in enumerate(parameters(data)):
            truth = xr.concat(Wave().solve(values), "time").u.astype(np.float32)
            np.testing.assert_array_equal(written.u[number], truth)


def test_ctrl_c_ends_cleanly(tmp_path):
    """SIGINT to the whole group: says how to go on, and leaves no process."""
    process, children = begun(tmp_path, workflow(tmp_path, count=4000))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    assert re.search(r"noted.zarr, \d+ of 4,002 simulations", output)
    assert "Type the same command again" in output
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU"])
def test_signals_end_it_in_order_however_often_they_come(name):
    """As they end a fit; a second Ctrl-C leaves at once."""
    number = signal.Signals[name]

    def at_once(signum, frame):
        raise InterruptedError(signum)

    handlers = {n: signal.signal(n, at_once) for n in (signal.SIGINT, number)}
    try:
        with stop_requested() as told:
            assert not told.is_set()
            assert told.status == 0
            for _ in range(3):
                signal.raise_signal(number)
                assert told.is_set()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(InterruptedError):
                signal.raise_signal(signal.SIGINT)
            assert told.status == 128 + number
        with pytest.raises(InterruptedError):
            signal.raise_signal(number)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_nohup_and_a_terminal_that_is_gone(monkeypatch):
    """SIGHUP that is ignored stays so; else what is printed to the terminal goes nowhere."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as told:
            signal.raise_signal(signal.SIGHUP)
        assert not told.is_set()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        reader, terminal = os.openpty()
        with os.fdopen(terminal, "w") as stream, stop_requested() as told:
            monkeypatch.setattr(sys, "stdout", stream)
            os.close(reader)
            with pytest.raises(OSError, match="Input/output"):
                print("lost", flush=True)
            signal.raise_signal(signal.SIGHUP)
            print("nobody reads this", flush=True)
        assert told.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_lightning_leaves_with_after_a_signal():
    """It has cut the run off: the command leaves with that signal."""
    with pytest.raises(KeyboardInterrupt) as left, stop_requested():
        signal.raise_signal(signal.SIGTERM)
        sys.exit(1)
    assert interrupted(left.value) == 128 + signal.SIGTERM


@pytest.mark.skipif(not may_mount(), reason="the kernel forbids user namespaces")
def test_a_full_disk_ends_it_with_what_is_whole(tmp_path):
    """ENOSPC: one message that says what to do, no retries; whole simulations stay whole."""
    words = command(*workflow(tmp_path, count=2000))
    words[-1] = "full/noted.zarr"
    script = """
        mkdir full
        mount -t tmpfs -o size=600k none full
        code=0
        "$@" || code=$?
        cp -r full out
        exit $code
    """
    done = subprocess.run(
        [*DISK, script, "sh", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "type the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    archive = Archive(tmp_path / "out" / "noted.zarr")
    whole = archive.complete()
    assert whole
    archive.require_chunks(whole)


def test_by_the_command_line(tmp_path, monkeypatch, capsys):
    """Recipes by name, options as for a fit, a model is no mistake; the next command is shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    words = (
        "generate --data heat2d --model fully_connected --output data/h.zarr "
        "--model.network.widths=[4] "
        "--data.simulations 3 --data.held_out=2 --data.solver.steps 4 "
        "--data.solver.cells=[6,4] --data.sampler Sobol --data.sampler.seed 5 "
        "--data.cluster local --data.cluster.n_workers 1"
    )
    main(words.split())
    printed = capsys.readouterr().out
    assert "simulations 5 of 5 done" in printed
    assert "data/h.zarr, 5 of 5 simulations, 2 of them held out" in printed
    assert "surrogate-flow fit --data data/h.zarr" in printed
    with xr.open_zarr("data/h.zarr") as written:
        assert '"seed": 5' in written.attrs["sampler"]
        assert written.attrs["workflow"] == "heat2d"
        to_netcdf(written, tmp_path / "h.nc")
    assert findings(tmp_path / "h.nc") == []
