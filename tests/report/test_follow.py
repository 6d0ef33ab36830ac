"""What is new in a run's folder: each row once, small messages, files that are replaced."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from live_states import field
from test_run_folder import rows, wrote

from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.live.follow import Changes, Follower, Tail
from surrogate_flow.report.live.server import _hub


def append(path, table):
    with path.open("a") as file:
        table.to_csv(file, header=False, index=False)


def test_only_what_was_appended_is_read(tmp_path, monkeypatch):
    """Half a row is read when it is whole."""
    path, table = tmp_path / "telemetry.csv", rows(6)
    wrote(tmp_path, table[:3])
    tail = Tail(path)
    read, other = tail.rows()
    assert (read.step.tolist(), other) == ([0, 10, 20], True)
    sizes = []
    monkeypatch.setattr(
        "surrogate_flow.report.live.follow.read_table",
        lambda data: (sizes.append(len(data)) or pd.DataFrame(), 0),
    )
    tail.rows()
    assert sizes[-1] == len(path.read_bytes().split(b"\n")[0]) + 1
    monkeypatch.undo()
    append(path, table[3:5])
    with path.open("a") as file:
        file.write("5.0,50,")
    assert tail.rows()[0].step.tolist() == [30, 40]
    with path.open("a") as file:
        file.write("400,0.5\n")
    assert tail.rows()[0].samples.tolist() == [400]


def test_a_page_follows_all_ranks(tmp_path, monkeypatch):
    """Rows of each are joined, though one is late; the table of another run begins anew."""
    path, table = tmp_path / "telemetry.csv", rows(6)
    wrote(tmp_path, table[:3])
    wrote(tmp_path, table[:2], "telemetry_1.csv")
    state = (follower := Follower(tmp_path)).state
    assert [row["step"] for row in state.series] == [0, 10, 20]
    assert state.last["samples"] == 160 + 80
    append(path, table[3:4])
    follower.update()
    assert state.last["samples"] == 240 + 80
    append(path, table[4:])
    append(tmp_path / "telemetry_1.csv", table[2:])
    follower.update()
    follower.update()
    assert [row["step"] for row in state.series] == [0, 10, 20, 30, 40, 50]
    assert state.last["samples"] == 400 + 400
    assert state.last["times_seen"] == "6 4"
    wrote(tmp_path, table[:2])
    (tmp_path / "telemetry_1.csv").unlink()
    follower.update()
    assert [row["step"] for row in state.series] == [0, 10]
    # All files are read for a new one alone, not for one that is being written.
    reads = []
    monkeypatch.setattr(
        RunFolder, "missing", property(lambda run: reads.append(run) or [])
    )
    (tmp_path / "losses.csv.part").write_text("simulation,loss\n")
    follower.update()
    assert reads == []
    (tmp_path / "losses.csv.part").rename(tmp_path / "losses.csv")
    follower.update()
    assert len(reads) == 1


def test_a_page_opens_of_a_damaged_folder(tmp_path):
    """A spec of another form is shown as far as it is known; what cannot be read is said."""
    path = wrote(tmp_path, rows(3)) / "run.json"
    path.write_text('{"spec": {"parameters": [{"low": 1}, 5, {"name": "a"}]}}')
    state = Follower(tmp_path).state
    assert state.about["spec"]["parameters"] == [{"name": "a"}]
    (tmp_path / "telemetry.csv").write_bytes(b"\n")
    state = (follower := Follower(tmp_path)).state
    assert len(state.series) == 0
    with pytest.raises(ValueError, match="empty"):
        follower.update()


def test_a_wait_that_is_longer_than_what_is_kept_is_said_whole(tmp_path):
    """Of a run before in the same folder nothing is."""
    now = datetime.now(UTC).isoformat()
    table = rows(3000, step=np.minimum(np.arange(3000), 100), time=now)
    path = wrote(tmp_path, table[:1500]) / "telemetry.csv"
    follower = Follower(tmp_path)
    append(path, table[1500:])
    follower.update()
    assert "No batch has been trained for 2899 s" in follower.state.problems[0]
    append(path, rows(10, time=now).assign(seconds=np.arange(3000.0, 3010)))
    follower.update()
    assert follower.state.problems == []
    assert follower.state.series[-1]["samples_per_second"] == 80


def test_an_older_run_has_the_errors_of_its_metrics(tmp_path):
    """Without the columns; where they are there, they stay."""
    metrics = pd.DataFrame(
        {
            "step": [9, 15, 25],
            "train_loss": [0.7, np.nan, 0.3],
            "val_relative_l2": [np.nan, 0.2, 0.1],
        }
    )
    wrote(tmp_path, rows(4).drop(columns="loss"))
    wrote(tmp_path, metrics, "metrics.csv")
    state = Follower(tmp_path).state
    assert state.validations == [(20, 0.2), (30, 0.1)]
    drawn = [row["loss"] for row in state.series]
    np.testing.assert_equal(drawn, [np.nan, 0.7, 0.7, 0.3])
    wrote(tmp_path, rows(4, validation=0.5))
    state = Follower(tmp_path).state
    assert state.validations == [(0, 0.5)]
    assert state.last["loss"] == 0.5


def test_each_message_is_small(tmp_path):
    """With 1,000 parameters, and reasons of failures of any length: 64 KB a part."""
    names = [f"parameter{k}" for k in range(1000)]
    spec = [{"name": n, "low": 0, "high": 1, "units": "K"} for n in names]
    (tmp_path / "run.json").write_text(
        pd.Series({"spec": {"parameters": spec}}).to_json()
    )
    numbers = np.arange(2000.0)
    losses = {"simulation": numbers, "step": numbers, "loss": 0.1, "seconds": 1.0}
    wrote(tmp_path, pd.DataFrame(losses | dict.fromkeys(names, 0.5)), "losses.csv")
    failed = {"time": "2026", "simulation": 3, "attempt": 1}
    failed |= {"error": "E" * 900, "worker": "w" * 900, "message": "m" * 9000}
    failed |= {"outcome": "failed permanently"}
    failed["parameters"] = repr({n: -1.23456789e-200 for n in names})
    wrote(tmp_path, pd.DataFrame([failed] * 300), "failures.csv")
    field("2D").to_netcdf(tmp_path / "newest.nc", engine="h5netcdf")
    run, changes = RunFolder(tmp_path), Changes(tmp_path)
    message = changes.message(run)
    assert {*message} == {"about", "losses", "failures", "newest"}
    for name, part in message.items():
        size = sum(map(len, part.values())) if name == "losses" else len(str(part))
        assert size <= 65536, name
    assert [*message["losses"]] == ["simulation", "loss", *names[:6]]
    assert message["about"]["spec"]["count"] == 1000
    assert run.lost[0] == 300
    (point,) = {str(each["parameters"]) for each in message["failures"]}
    assert point == str({n: -1.235e-200 for n in names[:6]})
    append(tmp_path / "failures.csv", pd.DataFrame([failed]))
    run = RunFolder(tmp_path)
    assert len(changes.message(run)["failures"]) == 1
    assert (run.lost[0], run.lost[1]["simulation"]) == (301, 3)


@pytest.mark.parametrize(
    ("environ", "origins"),
    [
        ({}, []),
        ({"JUPYTERHUB_HOST": ""}, []),
        ({"JUPYTERHUB_HOST": "https://hub.example.org"}, ["hub.example.org:443"]),
        (
            {"JUPYTERHUB_PUBLIC_URL": "http://10.0.0.1:8000/user/ada/"},
            ["10.0.0.1:8000"],
        ),
    ],
)
def test_a_browser_may_come_from_the_hub_alone(environ, origins):
    assert _hub(environ) == origins
