"""Trials of a sweep as jobs of a real Slurm: by its own commands, and by those of PBS."""

import importlib.metadata

import batch
import pytest
from batch import wait_until

from surrogate_flow.cli.sweep.folder import SweepError
from surrogate_flow.cli.sweep.places import Jobs

pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_trial_is_a_job(slurm, kind, tmp_path, monkeypatch):
    """Its output is in the trial's log; it is found again, and ended, by its id."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.5)
    monkeypatch.chdir(tmp_path)  # where PBS leaves the logs of jobs
    place = Jobs(batch.cluster(kind), tmp_path / "jobs")
    log = tmp_path / "trials" / "0000" / "log.txt"
    short = place.start(0, ["--version"], log)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "telemetry.csv").write_text("seconds\n1.0\n")
    words = ["watch", str(tmp_path / "run"), "--port", "0"]
    long = place.start(1, words, tmp_path / "log.txt")
    wait_until(lambda: not place.runs(short), 90)
    version = importlib.metadata.version("surrogate-flow")
    assert log.read_text() == f"surrogate-flow {version}\n"
    wait_until((tmp_path / "log.txt").is_file, 90)
    # As a process that goes on with the sweep would.
    again = Jobs(batch.cluster(kind), tmp_path / "jobs")
    assert again.runs(long)
    again.end(long)
    wait_until(lambda: not again.runs(long), 90)


def test_a_job_that_the_queue_refuses_is_one_line(slurm, tmp_path):
    """With the queue's own words."""
    place = Jobs(batch.cluster(queue="nowhere"), tmp_path / "jobs")
    with pytest.raises(SweepError, match=r"refuses trial 0: .*nvalid partition"):
        place.start(0, ["--version"], tmp_path / "log.txt")
