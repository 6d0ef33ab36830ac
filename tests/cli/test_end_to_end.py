"""A whole fit through the command line, as a user types it, on a tiny mesh."""

import csv
import json
import os
import re
import signal
import subprocess
from html import unescape
from itertools import pairwise

import numpy as np
import programs
import psutil
import pytest
import xarray as xr
import yaml
from matplotlib.image import imread
from programs import CELLS, STEPS, WORKFLOW, command, environment, fit

from surrogate_flow.cli.app import main
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.run_folder import RunFolder, RunSummary
from surrogate_flow.report.folder.words import percent
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate

# Sends itself Ctrl-C when a module is imported.
INTERRUPTS = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Interrupt())
"""
WALLS = {"initial": 300.0, "left": 100.0, "right": 500.0, "bottom": 200.0, "top": 400.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The output of a fit, and its folder."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "workflow.yaml").write_text(yaml.safe_dump(WORKFLOW))
    done = programs.run(
        *("fit", "--data=workflow.yaml", "--model=fully_connected"),
        *("--model.optimizer.lr=0.003", "--trainer.val_check_interval=50"),
        cwd=folder,
        env={**environment(), "SURROGATE_FLOW_REPORT": ""},
        timeout=250,  # on a busy machine
    )
    (path,) = (folder / "runs" / "tiny").iterdir()
    return done.stdout, path


def test_beats_a_constant_prediction_fivefold(run):
    """The root mean square error is less than a fifth of the best constant field's."""
    output, _ = run
    rmse, constant = re.search(
        r"temperature: ([\d.e+]+) K root mean square .of a constant field: ([\d.e+]+) K",
        output,
    ).groups()
    assert float(rmse) < float(constant) / 5


def test_says_what_a_user_wants_to_know(run):
    """Dashboard, progress line, relative error and kelvin, the folder, the next command."""
    output, path = run
    page = r"Live page: (http://127\.0\.0\.1:\d+)/surrogate \(Dask dashboard: \1/status"
    assert re.search(page, output)
    assert re.search(
        r"batch \d+ \| loss \S+ \| \d+ samples/s.*reservoir \d+/1000 "
        r"\(seen \d+, unseen \d+\) \| simulations \d+ done, \d+ running, 0 failed",
        output,
    )
    assert re.search(r"Validation error: [\d.]+%( ± [\d.]+%)? relative", output)
    assert str(path.relative_to(path.parents[2])) in output
    assert "surrogate-flow predict --ckpt_path" in output
    assert f"Report: {path.relative_to(path.parents[2])}/report.html" in output
    assert output.count("`Trainer.fit` stopped") == 1, output


def test_leaves_the_run_folder(run):
    """Checkpoints, metrics, TensorBoard events, configuration, picture; no failures."""
    _, path = run
    names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert {
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
        "config.yaml",
        "prediction.png",
        "report.html",
        "ro-crate-metadata.json",
    } <= names
    described = json.loads((path / "ro-crate-metadata.json").read_text())
    assert names - {entity["@id"] for entity in described["@graph"]} <= {
        "checkpoints/.lock"
    }
    said = unescape((path / "report.html").read_text().split('class="headline">')[1])
    errors = RunSummary.read(path).errors
    both = ("val_relative_l2", "val_relative_l2_standard_error")
    error = percent(*(errors.get(name) for name in both))
    assert f"an error of {error} " in said.split("</p>")[0]
    cost = RunCost.of(RunFolder(path))
    assert str(cost) in run[0]
    # Ten held-out simulations and the threshold's are complete before the first batch.
    assert 0 < cost.quickest <= cost.solver / cost.simulations
    assert any("tfevents" in name for name in names)
    assert not {"failures.csv", "hparams.yaml"} & names
    with (path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [float(r["val_relative_l2"]) for r in rows if r["val_relative_l2"]]
    assert len(errors) >= 2
    assert errors[-1] < errors[0]


def test_telemetry_ends_with_the_final_counts(run):
    """Every simulation, step and sample is in its last row, and no count ever fell."""
    _, path = run
    with (path / "telemetry.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last, summary = rows[-1], RunSummary.read(path)
    assert int(last["simulations_done"]) == summary.simulations == 304
    assert (last["simulations_failed"], last["simulations_running"]) == ("0", "0")
    assert int(last["steps_received"]) == 304 * STEPS
    assert int(last["bytes_received"]) == 304 * STEPS * 4 * CELLS[0] * CELLS[1]
    assert int(last["inserted"]) == summary.unique_samples == 300 * STEPS
    assert int(last["samples"]) == summary.samples
    assert int(last["step"]) == summary.batches
    for name in ("step", "samples", "simulations_done", "steps_received", "drawn"):
        values = [int(row[name]) for row in rows]
        assert values == sorted(values)
    seconds = [float(row["seconds"]) for row in rows]
    assert min(b - a for a, b in pairwise(seconds[:-1])) > 0.99


def test_picture_is_a_picture(run):
    """prediction.png opens, and is not blank."""
    _, path = run
    image = imread(path / "prediction.png")
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.05


def test_every_sample_was_trained(run):
    """Reservoir trains each of 300 x 20 samples at least once."""
    _, path = run
    surrogate = Surrogate.load(path / "checkpoints" / "last.ckpt")
    assert surrogate.spec == Heat2D(cells=CELLS, steps=STEPS, time_step=0.005).spec
    outcome = RunSummary.read(path)
    assert outcome.unique_samples == 300 * STEPS
    assert outcome.samples >= 300 * STEPS
    assert outcome.simulations == 300 + outcome.validated


def test_predict_agrees_with_the_solver(run, tmp_path):
    """`surrogate-flow predict` writes a netCDF file close to what the solver yields."""
    _, path = run
    output = tmp_path / "field.nc"
    output.write_text("of before")
    done = programs.run(
        "predict",
        f"--ckpt_path={path / 'checkpoints' / 'last.ckpt'}",
        f"--parameters={WALLS}",
        f"--output={output}",
        cwd=tmp_path,
    )
    assert f"{output}: the file that was there is replaced." in done.stdout
    field = xr.load_dataset(output).temperature
    solver = Heat2D(cells=CELLS, steps=STEPS, time_step=0.005)
    truth = xr.concat(solver.solve(WALLS), "time").temperature
    assert field.attrs["units"] == "K"
    np.testing.assert_allclose(field.time, truth.time)
    assert float(np.sqrt(((field - truth) ** 2).mean())) < 0.2 * float(truth.std())


def test_a_warning_is_one_line(run, tmp_path):
    """Without a line of source."""
    _, path = run
    done = programs.run(
        "predict",
        f"--ckpt_path={path / 'checkpoints' / 'last.ckpt'}",
        f"--parameters={ {**WALLS, 'top': 900.0} }",
        cwd=tmp_path,
    )
    (said,) = [line for line in done.stdout.splitlines() if "warning" in line]
    assert said.startswith("surrogate-flow: warning: top = 900 K lies outside of [")
    assert "surrogate.predict(" not in done.stdout


def test_the_saved_configuration_runs_again(run, tmp_path):
    """config.yaml repeats the experiment: validate gives the error of the fit."""
    output, path = run
    config = yaml.safe_load((path / "config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 16
    again = programs.run(
        "validate",
        f"--data={path.parents[2] / 'workflow.yaml'}",
        "--model=fully_connected",
        f"--ckpt_path={path / 'checkpoints' / 'last.ckpt'}",
        cwd=tmp_path,
    )
    before = float(re.search(r"Validation error: ([\d.]+)%", output)[1])
    after = float(re.search(r"Validation error: ([\d.]+)%", again.stdout)[1])
    assert after == pytest.approx(before, abs=0.006)


def test_failing_simulations_do_not_end_the_fit(tmp_path):
    """A solver that yields NaN for some parameters: rows in failures.csv, and a fit all the same.

    Another logger changes nothing of the run's own files.
    """
    workflow = {
        **WORKFLOW,
        "name": "troubled",
        "solver": {
            "class_path": "troubled.Troubled",
            "init_args": {"fault": "nan", "above": 0.9},
        },
        "simulations": 40,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIFO",
            "init_args": {"capacity": 100},
        },
        "faults": {"retries": 1, "max_failures": 40},
    }
    process = fit(
        tmp_path,
        workflow,
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=theirs",
    )
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    (path,) = (tmp_path / "runs" / "troubled").iterdir()
    names = {entry.name for entry in path.iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "outcome.json", "checkpoints"}
    lying = {entry.name for entry in tmp_path.iterdir()}
    assert lying == {"runs", "theirs", "workflow.yaml"}
    with (path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["error"] for row in rows} == {"SpecMismatch"}
    assert re.search(r"[1-9]\d* failed", output)


def test_ctrl_c_once_saves_and_leaves_nothing(tmp_path):
    """SIGINT to the whole process group, as a terminal sends it: checkpoint, exit 130, no process."""
    process = fit(tmp_path, {**WORKFLOW, "simulations": None}, start_new_session=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(r"batch [1-9]", line):
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    (path,) = (tmp_path / "runs" / "tiny").iterdir()
    Surrogate.load(path / "checkpoints" / "last.ckpt")
    assert "Validation error" in output
    # It says how the run goes on, and not that it has come to its end.
    assert "--ckpt_path last goes on" in output
    said = RunFolder(path).problems[0]
    assert re.match(
        r"The run was ended early at batch \d+, by a signal. To go on", said
    )
    assert "max_epochs" not in output
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_ctrl_c_before_the_first_batch_leaves_nothing(tmp_path):
    """SIGINT while the trainer waits for the first samples: it ends at once, and cleanly."""
    workflow = {
        **WORKFLOW,
        "solver": {
            "class_path": "troubled.Troubled",
            "init_args": {"fault": "hangs", "above": -1.0},
        },
    }
    process = fit(tmp_path, workflow, start_new_session=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "1 running" in line or "2 running" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output = "".join(lines) + process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output, output
    assert output.count("nterrupt") == 1, output
    assert output.endswith("surrogate-flow: interrupted.\n")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("numpy", "SIGINT", "interrupted."),
        ("jsonargparse", "SIGTERM", "interrupted by SIGTERM."),
    ],
)
def test_a_signal_while_the_program_starts_is_one_line(module, name, said, tmp_path):
    """Whatever it imports at that moment."""
    (tmp_path / "sitecustomize.py").write_text(
        INTERRUPTS.format(module=module, name=name)
    )
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    done = subprocess.run(
        command("fit", "--data=heat2d", "--model=fully_connected"),
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (128 + signal.Signals[name], "")
    assert done.stderr == f"surrogate-flow: {said}\n"


@pytest.mark.parametrize(("queue", "program"), [("pbs", "qsub"), ("slurm", "sbatch")])
def test_a_machine_without_the_batch_system(
    queue, program, tmp_path, monkeypatch, capsys
):
    """It is said, and the run leaves no folder; so is, once, that it would leave no checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--data=heat2d",
                "--model=fully_connected",
                f"--data.cluster={queue}",
                "--trainer.enable_checkpointing=false",
            ]
        )
    said = capsys.readouterr()
    assert f"error: There is no {program} on this machine." in said.err
    assert said.out.count("WARNING  No checkpoint is written") == 1
    assert not (tmp_path / "runs").exists()
