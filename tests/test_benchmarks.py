"""The benchmarks run in their tiny form and write what they measure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
import xarray as xr

from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.report.folder.cost import break_even
from surrogate_flow.reservoir.layout import slots_of

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


class Checked(BaseException):
    """Of a comparison that would run now; an Exception would be a line for its user."""


@pytest.fixture
def checked(monkeypatch):
    """Comparisons of a benchmark are checked, and raise the names of their variants."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.setattr(sys, "path", sys.path[:])

    def held(self, made_of):
        raise Checked({*self.recipe.cases})

    monkeypatch.setattr(SweepFolder, "held", held)


@pytest.mark.parametrize(
    "name",
    [
        "reservoir",
        "spectral",
        "predict",
        *(
            pytest.param(name, marks=pytest.mark.bench)
            for name in (
                "stream",
                "clients",
                "ensemble",
                "soak",
                "training",
                "page",
                "fanout",
                "programs",
                "networks",
                "gpu",
            )
        ),
    ],
)
def test_writes_its_rows(name, tmp_path):
    """A list of cases, each with its value, unit, peer, peer's value and their ratio."""
    file = tmp_path / "rows.json"
    programs.run(
        BENCHMARKS / f"{name}.py", "--quick", "--json", file, cwd=tmp_path, timeout=110
    )
    rows = json.loads(file.read_text())
    assert len(rows) >= 4
    for row in rows:
        assert set(row) == {"case", "value", "unit", "peer", "peer_value", "ratio"}
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"], rel=0.01)
        assert row["value"] > 0


@pytest.mark.bench
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["shared", "local"])
def test_trials_of_a_sweep_share_what_others_run_for_each(part, tmp_path):
    """By the solver's own notes: each simulation ran once, beside once for each trial."""
    call("sweep", part, "--quick", "--json", "rows.json", cwd=tmp_path, timeout=500)
    rows = {
        row["case"]: row for row in json.loads((tmp_path / "rows.json").read_text())
    }
    together = 1 if part == "shared" else 0.5
    (ran,) = (row for case, row in rows.items() if case.endswith(": simulations"))
    assert (ran["value"], ran["ratio"]) == (32 + 10, together)
    (spent,) = (row for case, row in rows.items() if case.endswith("processor"))
    assert spent["value"] > 0
    if part == "shared":
        assert rows["2 trials: different ones"]["ratio"] == 1
        assert rows["batches of each"]["value"] == 20


@pytest.mark.parametrize("kind", ["ours", "peer"])
def test_a_producer_that_dies_ends_the_benchmark(kind, monkeypatch):
    """Not a wait for ever: a message that says who, and with which exit code."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import stream
    from producers import Producers

    case = stream.Case("long", 10_000, 1, 10**6, 40_000)
    rate = {"ours": stream.rate_of_ours, "peer": stream.rate_of_peer}[kind]
    with (
        pytest.raises(
            RuntimeError, match=r"Producer 1 of 2 has died with exit code -9"
        ),
        Producers(stream.produce, 2) as producers,
    ):
        start = producers.start

        def start_and_kill(*task):
            began = start(*task)
            producers.processes[1].kill()
            return began

        monkeypatch.setattr(producers, "start", start_and_kill)
        rate(case, producers)
    assert all(process.exitcode is not None for process in producers.processes)


def test_every_producer_has_ended_though_one_has_died(monkeypatch):
    """Also one that dies after its work: the others are told, and are waited for."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import stream
    from producers import Producers

    with (
        pytest.raises(
            RuntimeError, match=r"Producer 0 of 2 has died with exit code -9"
        ),
        Producers(stream.produce, 2) as producers,
    ):
        producers.processes[0].kill()
        producers.processes[0].join()
    assert [process.exitcode for process in producers.processes] == [-9, 0]
    assert all(pipe.closed for pipe in producers.pipes)


def call(name, *words, cwd, timeout=110):
    """Run a benchmark in a folder."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.bench
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("laptop", "reservoir"),
        # Online it is trained below; from a data set its windows are bundles of steps.
        ("message_passing", "offline"),
    ],
)
def test_experiments_of_the_papers_run(name, variant, tmp_path):
    """Each is a comparison; four batches of it, from simulations or from a data set."""
    call("papers", name, "--quick", "--variants", variant, cwd=tmp_path)
    (row,) = (
        (tmp_path / "runs/papers" / name / "comparison.csv").read_text().split()[1:]
    )
    assert row.startswith(f"{variant},0,4,")


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    "name",
    [
        "laptop",
        "message_passing",
        *(
            pytest.param(name, marks=pytest.mark.bench)
            for name in (
                *("large", "fully_connected", "fno", "unet"),
                *("policies", "policies_in_time"),
            )
        ),
    ],
)
def test_experiments_of_the_papers_are_whole(name, tmp_path):
    """Every variant of each, at its full size, passes the checks that come before a run."""
    import papers

    with pytest.raises(Checked) as variants:
        papers.run(name, tmp_path, quick=False, words=[])
    assert {"offline", "reservoir"} <= {v.split()[0] for v in variants.value.args[0]}


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    "name", ["burgers", "darcy", "navier_stokes_1e-3", "message_passing"]
)
def test_published_settings_are_whole(name, tmp_path):
    """Offline and online, both at their full size, pass the checks that come before a run."""
    import fits
    import message_passing
    import operators

    if name == "message_passing":
        words = message_passing.words_of(500, 128, 3)
    else:
        words = operators.words_of(name, quick=False)
    with pytest.raises(Checked) as variants:
        fits.compared(words, tmp_path / name)
    assert variants.value.args[0] == {"offline", "reservoir"}


def test_errors_of_message_passing_are_those_of_the_paper(monkeypatch):
    """By hand: a guess that is off by 0.1 everywhere, from step 50 on, over 200 steps."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from message_passing import errors

    truth = np.ones((3, 250, 8), np.float32)
    found = errors(lambda history, given, step: 0 * history + 1.1, truth, np.zeros(3))
    assert found["one prediction"] == pytest.approx(0.1, rel=1e-5)
    assert found["rollout"] == pytest.approx(200 * 0.01, rel=1e-5)


@pytest.mark.bench
@pytest.mark.parametrize("name", ["burgers", "darcy"])
def test_operators_are_measured_on_pairs_that_they_have_not_seen(name, tmp_path):
    """Four updates of each, and what both err on test pairs."""
    call("operators", name, "--quick", cwd=tmp_path, timeout=500)
    found = json.loads((tmp_path / "runs/operators" / name / "test.json").read_text())
    assert {*found} == {"offline", "reservoir"}
    assert all(0.1 < error < 2 for runs in found.values() for error in runs.values())


@pytest.mark.bench
def test_surrogates_of_the_combined_equation_beside_weno5(tmp_path):
    """Error and time of both networks; and when they have paid for themselves."""
    words = ("e1", "--quick", "--simulations=2", "--json", "rows.json")
    call("burgers", *words, cwd=tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    kinds = [row["case"].rpartition(": ")[2] for row in rows]
    assert kinds == ["error", "error", "time"] * 2
    # One that has seen four batches does not beat a solver; standing still does neither.
    assert all(row["ratio"] > 1 for row in rows if row["unit"] != "s")
    runs = sorted(path.parent for path in tmp_path.rglob("outcome.json"))
    assert len(runs) == 2
    call("payback", *runs, "--simulations=2", "--json", "pay.json", cwd=tmp_path)
    for row in json.loads((tmp_path / "pay.json").read_text()):
        # What errs as much as this is coarse, and takes less than the full solver.
        assert row["peer"].startswith("WENO5 on")
        assert 0 < row["peer_error"] <= row["error"]
        assert row["peer_seconds"] < row["full_solver_seconds"]


def test_a_surrogate_pays_by_what_the_cheapest_solver_that_errs_as_much_takes(
    monkeypatch,
):
    """By hand: of three rungs the third errs too much, and the second saves half a second."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from payback import Rung, cheapest

    ladder = [Rung("full", 0.0, 4.0), Rung("half", 0.05, 1.5), Rung("rough", 0.2, 0.1)]
    peer = cheapest(ladder, 0.06)
    assert peer.name == "half"
    assert break_even(30.0 + 20.0, peer.seconds, 1.0) == 100
    assert break_even(50.0, peer.seconds, 1.5) is None


def test_coarser_solvers_come_near_the_full_one(monkeypatch):
    """Each ladder begins with the full grid, which errs by nothing, and errs by more further down."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from coarser import LADDERS
    from payback import climbed, solved

    from surrogate_flow.solvers import Combined1D, Heat2D, NavierStokes2D

    for solver in (
        Heat2D((20, 20), steps=10),
        Combined1D(20, 40, steps=25),
        NavierStokes2D(24, steps=3, substep=0.2),
    ):
        chance = np.random.default_rng(1)
        drawn = [{p.name: p.at(chance.random()) for p in solver.spec.parameters}]
        courses, _ = solved(solver, drawn)
        truth = np.array(courses, dtype=np.float32)
        rungs = climbed(solver, drawn, truth, 0)
        assert len(rungs) == len(list(LADDERS[type(solver)](solver))) > 5
        assert rungs[0].error < 1e-6
        assert 0.003 < rungs[-1].error < 1.0
        assert max(rung.error for rung in rungs) < 1.0


def test_waves_of_a_coarse_grid_are_the_same_on_a_fine_one(monkeypatch):
    """Points at 0, or half a cell off it: five waves on 12 are the five waves on 30."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from coarser import trigonometric

    def field(x, y):
        return xr.Dataset(
            {"u": np.sin(2 * np.pi * (2 * x - y)) + np.cos(2 * np.pi * 5 * y)},
        ).transpose("y", "x")

    def points(count, offset, name):
        return xr.DataArray((np.arange(count) + offset) / count, dims=name, name=name)

    for offset in (0.0, 0.5):
        coarse, fine = (
            {name: points(count, offset, name) for name in "xy"} for count in (12, 30)
        )
        coarse = field(**coarse).assign_coords(coarse)
        got = trigonometric(coarse, {name: c.values for name, c in fine.items()})
        xr.testing.assert_allclose(
            got.u.drop_vars(["x", "y"]), field(**fine).u, atol=1e-12
        )


@pytest.fixture
def apebench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import apebench

    return apebench


def test_a_step_of_burgers_is_that_of_apebench(apebench):
    """By eight values of exponax 0.2, after a step and after a hundred."""
    x = np.arange(apebench.POINTS) / apebench.POINTS
    u = np.cos(2 * np.pi * x) - 0.5 * np.sin(6 * np.pi * x + 1)
    fields = [u / np.abs(u).max()]
    for _ in range(100):
        fields.append(apebench.burgers_step(fields[-1]))
    for steps, expected in (
        (1, [0.501735, 0.646074, 0.247274, -0.994666, -0.463875, -0.69447, -0.19922]),
        (
            100,
            [0.228005, 0.350379, 0.40193, -0.380838, -0.260915, -0.139393, -0.017177],
        ),
    ):
        np.testing.assert_allclose(fields[steps][:140:20], expected, atol=1e-5)


def test_its_networks_are_those_of_apebench(apebench):
    """As many weights, and a Fourier layer by products is that by FFT."""
    fno, conv = apebench.ClassicFNO(1, 1), apebench.ConvNet(1, 1)
    counts = [sum(w.numel() for w in module.parameters()) for module in (fno, conv)]
    assert counts == [6457, 18669]
    v = h = torch.randn(3, 1, apebench.POINTS)
    h = fno.lifting(h)
    for linear, (real, imaginary) in zip(fno.linear, fno.spectral, strict=True):
        z = torch.fft.rfft(h)[..., : apebench.WAVES]
        z = torch.einsum("bim,mio->bom", z, torch.complex(real, imaginary))
        h = linear(h) + torch.fft.irfft(z, apebench.POINTS)
        h = torch.nn.functional.gelu(h, approximate="tanh")
    torch.testing.assert_close(fno(v), fno.projection(h))


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_apebench_trains_offline_and_online_once(tmp_path):
    words = ["--quick", "--scenarios", "burgers", "--networks", "conv"]
    for _ in range(2):
        call("apebench", *words, "--output", "runs", cwd=tmp_path, timeout=280)
    rows = [*(tmp_path / "runs").glob("*.json")]
    assert len(rows) == 3
    for row in rows:
        assert all(0 < e < 2 for e in json.loads(row.read_text())["errors"])


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_what_pays_is_fitted_once_and_follows_from_its_figures(tmp_path):
    """By hand, against a setting that errs no more; the second call measures alone."""
    for _ in range(2):
        words = ("--quick", "--output", "runs", "--json", "rows.json")
        call("pays", *words, cwd=tmp_path, timeout=280)
    assert len([*(tmp_path / "runs").glob("*/seed-0/*/*")]) == 1
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["peer_error"] <= row["error"]
    saved = row["peer_seconds"] - row["batch"]
    assert row["pays_after"] == int(np.ceil(row["spent"] / saved))
    saved = row["full"] - row["batch"]
    assert row["pays_after_full"] == int(np.ceil(row["spent"] / saved))


@pytest.mark.bench
def test_ablations_have_a_row_for_each_setting(tmp_path):
    """Of fits that are run once; the table has the error of the last weights."""
    words = ["heat2d", "--quick", "--seeds", "0", "--variants", "bf16"]
    call("ablations", *words, "--data.solver.cells=[6,6]", cwd=tmp_path)
    (outcome,) = tmp_path.glob("runs/ablations/heat2d/bf16-*/0/*/*/outcome.json")
    written = outcome.stat().st_mtime
    call("ablations", *words, "--data.solver.cells=[6,6]", cwd=tmp_path)
    assert [written] == [p.stat().st_mtime for p in tmp_path.rglob("outcome.json")]


@pytest.mark.parametrize(
    "pair",
    [
        "message_passing_e1",
        *(
            pytest.param(name, marks=pytest.mark.bench)
            for name in ("heat2d", "heat2d_nonlinear", "heat2d_steps", "darcy")
        ),
        *(
            pytest.param(name, marks=pytest.mark.bench)
            for name in ("fno_e1", "fno_flow", "unet_flow")
        ),
    ],
)
def test_settings_of_ablations_are_options(pair, monkeypatch):
    """All variants of each pair can be built at their full size, reservoirs too."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", sys.argv)
    import ablations

    pair_of = ablations.PAIRS[pair]
    for name, variant in ablations.VARIANTS.items():
        if not pair_of.takes(variant):
            continue
        words = pair_of.fit(variant)
        data, model = build(["fit", *words, "--data.deterministic=true"])
        assert (model.scheduler is None) == name.startswith("constant rate")
        draws = 2 if name == "twice the draws" else 1
        assert data.reservoir.limiter.ratio == pair_of.draws * draws
        change = variant.get("--model.predicts", "field")
        assert model.recipe["predicts"] == change
        assert slots_of(data.reservoir, data.spec, model.window, data.batch_size)
