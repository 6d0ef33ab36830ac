"""A run's folder is read whatever of it there is: tables, outcome, state and problems."""

import json
import os
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from surrogate_flow.fields.errors import UserError
from surrogate_flow.report.folder.run_folder import RunFolder, RunSummary
from surrogate_flow.report.folder.tables import COLUMNS

NOW = datetime.fromisoformat("2026-03-01T12:00:00+01:00")
OUTCOME = {
    **{"batches": 9, "samples": 90, "unique_samples": 50, "simulations": 5},
    **{"solver_seconds": 1.0, "training_seconds": 2.0, "samples_per_second": 45.0},
    "errors": {"val_relative_l2": 0.1, "val_skill": 0.9},
}


def read(folder, after=1.0):
    """The folder, so many seconds after the last row."""
    return RunFolder(folder, now=lambda: NOW.timestamp() + after)


def rows(count=200, **columns):
    """Telemetry of a run without complaint, a row a second until NOW."""
    seconds = np.arange(count, dtype=float)
    times = [NOW - timedelta(seconds=float(seconds[-1] - s)) for s in seconds]
    return pd.DataFrame(
        {
            **{"seconds": seconds, "step": 10 * seconds, "samples": 80 * seconds},
            **{"loss": 0.5, "samples_per_second": 80.0, "simulations_done": 3},
            **{"put_wait_seconds": 0.0, "draw_wait_seconds": 0.0, "waiting": ""},
            **{"time": [t.isoformat() for t in times], "times_seen": "3 2"},
            **columns,
        }
    )


def wrote(folder, table, name="telemetry.csv"):
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / name, index=False)
    return folder


def test_telemetry_has_all_columns_each_of_its_type(tmp_path):
    """Also in a table of an older version; half a last row is left out."""
    older = rows(3)[["seconds", "step", "loss"]]
    wrote(tmp_path, older.assign(unknown="of a newer version"))
    with (tmp_path / "telemetry.csv").open("a") as file:
        file.write('3.0,30,0.4,"trainer wai')
    table = read(tmp_path).telemetry
    assert list(table) == list(COLUMNS)
    assert table.step.tolist() == [0, 10, 20]
    assert table.population.isna().all()
    assert table.waiting.tolist() == [""] * 3
    wrote(tmp_path, rows(3))
    table = read(tmp_path).telemetry
    assert table.time.iloc[-1] == NOW
    assert table.times_seen.iloc[0] == "3 2"


def test_several_ranks_are_one_run(tmp_path):
    """Counts are added at the moments of the first, waits and losses averaged."""
    words = 'rank 1: trainer waits, for "x"'
    wrote(tmp_path, rows(4, workers=1, draw_wait_seconds=2.0))
    late = rows(3, workers=2, loss=1.5, times_seen="1 1 1", waiting=words[8:])
    late.seconds += 0.5
    wrote(tmp_path, late.assign(draw_wait_seconds=1.0), "telemetry_1.csv")
    table = read(tmp_path).telemetry
    assert table.seconds.tolist() == [0, 1, 2, 3]
    assert table.samples.tolist() == [0, 80, 240, 400]
    assert table.step.tolist() == [0, 10, 20, 30]
    assert table.workers.tolist() == [3] * 4
    assert table.loss.tolist() == [1.0] * 4
    assert table.draw_wait_seconds.tolist() == [1.5] * 4
    assert table.times_seen.iloc[-1] == "4 3 1"
    assert table.waiting.iloc[-1] == words
    assert table.population.isna().all()


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path):
    """Files that are absent, empty, cut off, or of another version."""
    wrote(tmp_path, rows(3))
    with (tmp_path / "telemetry.csv").open("a") as file:
        file.write("99.0,7")
    run = read(tmp_path)
    assert len(run.telemetry) == 3
    assert (run.outcome, run.newest, run.cases, run.settings) == (None, None, None, {})
    assert run.metrics.empty
    assert run.losses.empty
    said = "\n".join(run.missing)
    for name in ("config.yaml", "run.json", "metrics.csv", "newest.nc", "cases.nc"):
        assert f"{name} is not there." in said
    assert "failures" not in said
    assert "cut off" not in said  # it goes on
    for name in ("config.yaml", "run.json", "metrics.csv", "losses.csv", "newest.nc"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "validation.csv").write_bytes(b'simulation,error\n0,"a\nb"\n1,"c\n')
    (tmp_path / "cases.nc").write_bytes(b"\x89HDF")
    (tmp_path / "outcome.json").write_text('{"batches": 7')
    run = read(tmp_path)
    said = "\n".join(run.missing)
    for name in ("config.yaml", "run.json", "metrics.csv", "newest.nc", "cases.nc"):
        assert f"{name} cannot be read" in said
    assert "outcome.json cannot be read" in said
    assert "The last row of telemetry.csv is cut off, and left out." in said
    assert run.validation.simulation.tolist() == [0]
    assert run.validation.error.tolist() == ["a\nb"]
    (tmp_path / "outcome.json").write_text('{"batches": 7}')
    assert "it has no errors, samples, " in "\n".join(read(tmp_path).missing)


def test_what_is_there_is_what_was_written(tmp_path):
    """An outcome of a newer version, fields, settings, failures of all ranks."""
    wrote(tmp_path, rows(3))
    fields = xr.Dataset({"u": ("x", [1.0, 2.0]), "u_surrogate": ("x", [1.0, 3.0])})
    for name in ("newest.nc", "cases.nc"):
        fields.to_netcdf(tmp_path / name, engine="h5netcdf")
    (tmp_path / "config.yaml").write_text("data: {init_args: {simulations: 5}}")
    (tmp_path / "run.json").write_text('{"name": "heat2d"}')
    (tmp_path / "outcome.json").write_text(json.dumps({**OUTCOME, "new": 1}))
    for rank, name in (("2", "failures.csv"), ("1", "failures_1.csv")):
        table = pd.DataFrame({"time": [rank], "simulation": [int(rank)]})
        wrote(tmp_path, table, name)
    run = read(tmp_path)
    xr.testing.assert_identical(run.newest, fields)
    xr.testing.assert_identical(run.cases, fields)
    assert run.settings["data"]["init_args"] == {"simulations": 5}
    assert run.about == {"name": "heat2d"}
    assert run.outcome == RunSummary(**OUTCOME)
    assert run.failures.simulation.tolist() == [1, 2]
    assert run.state == "ended"
    assert run.problems == []


def test_a_run_goes_on_while_it_writes(tmp_path):
    """By the time of its last row, not of the copied file; before, by its settings."""
    wrote(tmp_path, rows(3))
    assert read(tmp_path, 5).state == "running"
    assert read(tmp_path, 60).state == "stopped"
    outcome, begun = tmp_path / "outcome.json", {"started": NOW.isoformat()}
    outcome.touch()
    (tmp_path / "run.json").write_text(json.dumps(begun))
    for age, state in ((1, "running"), (-1, "ended")):  # of a run before, and of this
        os.utime(outcome, (NOW.timestamp() - age,) * 2)
        assert read(tmp_path, 5).state == state
    outcome.unlink()
    (tmp_path / "run.json").write_text('{"ended": "2026-03-01T12:00:00+01:00"}')
    assert read(tmp_path, 60).state == "ended"
    (tmp_path / "run.json").write_text('{"error": "MemoryError: no room"}')
    assert read(tmp_path, 5).state == "stopped"
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("data: {}")
    os.utime(begun / "config.yaml", (NOW.timestamp(), NOW.timestamp()))
    assert read(begun, 200).state == "running"
    assert read(begun, 400).state == "stopped"


SLURM = "data: {init_args: {cluster: {init_args: {minimum_jobs: 1, maximum_jobs: 4}}}}"
WAITS = {"draw_wait_seconds": np.maximum(0, np.arange(200.0) - 10) * 0.6}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, None),
        ({"loss": [0.5] * 150 + [np.nan] * 50}, "The loss is NaN or infinite since batch 1500"),
        ({"loss": [np.nan] * 150 + [0.5] * 50}, None),
        ({"loss": [np.inf] * 200}, "--trainer.gradient_clip_val 1"),
        ({"step": np.minimum(np.arange(200), 100) * 10}, "No batch has been trained for 99 s"),
        ({"step": np.minimum(np.arange(200), 120) * 10}, None),
        ({"step": np.minimum(np.arange(200), 100) * 10, "stage": "fit, writing the report"}, None),
        ({"step": np.minimum(np.arange(200), 100) * 10, "stage": "fit, saving"}, "No batch has been trained for 99 s"),
        ({"step": np.arange(200) % 150, "samples": np.arange(200) % 150}, None),
        (WAITS, "The trainer waits for data 60% of its time: ask for more jobs, --data.cluster.maximum_jobs 8."),
        ({"put_wait_seconds": np.arange(200.0), "workers": 2}, "Simulations wait for the trainer 100% of the time"),
        ({"put_wait_seconds": np.arange(200.0), "workers": 1}, None),
    ],
)  # fmt: skip
def test_problems_are_said_with_what_helps(columns, said, tmp_path):
    """Of a run that goes on, by its last rows."""
    wrote(tmp_path, rows(**columns))
    (tmp_path / "config.yaml").write_text(SLURM)
    problems = read(tmp_path).problems
    assert len(problems) == (said is not None)
    assert said is None or said in problems[0]


def test_a_run_that_was_cut_off_can_go_on(tmp_path):
    """By its own command; without a checkpoint it cannot; its failures are named."""
    wrote(tmp_path, rows())
    failures = pd.DataFrame(
        {
            **{"simulation": [4, 4], "outcome": ["retried", "failed permanently"]},
            **{"error": "ValueError", "message": "negative density."},
        }
    )
    wrote(tmp_path, failures, "failures.csv")
    cut, failed = read(tmp_path, 60).problems
    assert cut == (
        "The run was cut off at batch 1990. It has left no checkpoint to go on from."
    )
    assert failed.startswith(
        "1 simulation failed permanently, the last of them 4: ValueError: negative "
        "density. See "
    )
    about = {"command": "surrogate-flow fit --data heat2d", "error": "MemoryError: x"}
    (tmp_path / "run.json").write_text(json.dumps(about))
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert read(tmp_path).problems[0] == (
        "The run failed at batch 1990: MemoryError: x. To go on, type: "
        f"surrogate-flow fit --data heat2d --ckpt_path {last}"
    )
    for command, on in (
        ("python train.py", f"To go on: trainer.fit(..., ckpt_path='{last}')."),
        ("surrogate-flow fit --key ***", "surrogate-flow fit, as before, with --"),
    ):
        (tmp_path / "run.json").write_text(json.dumps({"command": command}))
        assert on in read(tmp_path, 60).problems[0]
    on = tmp_path.parent / f"{tmp_path.name}-on" / "run.json"
    on.parent.mkdir()
    on.write_text(json.dumps({"resumed_from": str(last)}))
    assert read(tmp_path, 60).problems[0] == (
        f"The run was cut off at batch 1990. It went on in {on.parent}."
    )
    early = {"ended": "2026-03-01T12:00:00+01:00", "ended_early": True}
    (tmp_path / "run.json").write_text(json.dumps(early))
    assert (
        read(tmp_path).problems[0].startswith("The run was ended early at batch 1990")
    )
    outcome = {**OUTCOME, "errors": {"val_skill": -0.5}}
    (tmp_path / "run.json").unlink()
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    assert "no better than a constant field" in read(tmp_path).problems[-1]


def test_what_is_no_run_is_refused_naming_the_newest(tmp_path, monkeypatch):
    """A folder above runs, as deep as in a comparison, an empty one, a file, nothing."""
    monkeypatch.chdir(tmp_path)
    compared = "runs/compare/heat-fno/trials/0001/heat/2"
    older, newer = tmp_path / "runs/heat/1", tmp_path / compared
    for at, folder in enumerate((newer, older)):
        folder.mkdir(parents=True)
        wrote(folder, rows(2))
        os.utime(folder / "telemetry.csv", (NOW.timestamp() - at,) * 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "runs/heat/all").symlink_to(tmp_path / "runs")
    for wrong, newest in (
        (tmp_path / "runs", newer),
        *((name, compared) for name in ("empty", "file", "absent")),
    ):
        with pytest.raises(UserError, match=f"The newest is {newest}.$") as caught:
            RunFolder(wrong)
        assert "config.yaml and telemetry.csv" in str(caught.value)
        assert f"got {wrong}" in str(caught.value)


def test_a_quote_without_an_end_takes_one_line(tmp_path):
    """The rows behind it count, the time is linear, and it is said."""
    lines = [f'{k},"a, {k}"' for k in range(20_000)]
    lines[5] = '5,"a'
    (tmp_path / "losses.csv").write_text("\n".join(["simulation,loss", *lines, ""]))
    run = read(tmp_path)
    assert run.losses.simulation.tolist() == [0, 1, 2, 3, 4, *range(6, 20_000)]
    assert "Of losses.csv damaged lines are left out: 1." in run.missing
    (tmp_path / "failures.csv").write_bytes(b"simulation,message\n3,caf\xe9\n")
    assert read(tmp_path).failures.message.tolist() == ["caf\ufffd"]
    (tmp_path / "losses.csv").write_text('simulation,loss\n1,"a\nb"\n2,"c\nd\n')
    run = read(tmp_path)
    assert run.losses.simulation.tolist() == [1]
    assert "Of losses.csv damaged lines are left out: 2." in run.missing


def test_only_runs_are_searched_for_the_newest(tmp_path, monkeypatch):
    """Below a home there may be millions of folders."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home/a/b"
    folder.mkdir(parents=True)
    wrote(folder, rows(2))
    with pytest.raises(UserError, match="Go to where fit was typed"):
        RunFolder(tmp_path / "home")
