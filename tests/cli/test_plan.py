"""What `plan` says of a study, without submitting anything."""

import re
import time
from functools import partial

import pytest
import yaml
from distributed import LocalCluster
from rich.console import Console
from troubled import STEPS, Leisurely, Troubled, Wave

from surrogate_flow.cli.app import main
from surrogate_flow.cli.plan import measure, places, show
from surrogate_flow.cluster import PBS, JobQueue, Slurm
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.solvers import Heat2D
from surrogate_flow.stream import SpecMismatch
from surrogate_flow.testing import LawBroken, check_solver


class Stuck(Wave):
    """A wave that never breaks."""

    def solve(self, parameters):
        time.sleep(60)
        yield from super().solve(parameters)


@pytest.fixture(autouse=True)
def no_batch_system(monkeypatch):
    """Whatever would be submitted fails."""
    monkeypatch.setenv("PATH", "")


def test_the_pace_is_that_of_the_solver():
    """Five steps with pauses of 0.3 s between them."""
    begin = time.perf_counter()
    pace = measure(Leisurely())
    assert pace.steps == STEPS
    assert 1.2 <= pace.seconds < time.perf_counter() - begin
    assert pace.simulation(Wave.spec) == pace.seconds


def test_a_pace_is_taken_for_some_seconds_only():
    """From what came until then; from nothing, none."""
    pace = measure(Leisurely(), 0.8)
    assert 1 <= pace.steps < STEPS
    assert measure(Stuck(), 0.2) is None


class Abrupt(Wave):
    """A wave that does not close, or ends its thread."""

    def __init__(self, where):
        self.where = where

    def solve(self, parameters):
        if self.where == "solve":
            raise GeneratorExit("no licence")
        return super().solve(parameters)

    def close(self):
        if self.where == "close":
            raise OSError("no licence")


@pytest.mark.parametrize("where", ["solve", "close"])
def test_what_ends_the_solver_s_thread_is_raised(where):
    """Whatever it is, and when the solver closes, too."""
    with pytest.raises(BaseException, match="no licence"):
        measure(Abrupt(where))


class Prepared(Wave):
    """A wave that a worker prepares, whose run knows its cores."""

    def setup(self, cores):
        self.cores = [cores]

    def start(self, run):
        assert self.cores == [run.cores] == [3]
        assert run.folder.is_dir()
        return super().start(run)

    def close(self):
        self.cores.clear()


def test_a_solver_is_set_up_and_closed_as_on_a_worker():
    """One that keeps what all simulations share needs it here, too."""
    solver = Prepared()
    assert measure(solver, cores=3).steps == STEPS
    assert solver.cores == []


def test_settings_named_as_methods_are_not_called():
    """A solver may have an argument `setup`: a worker calls the method of its class."""
    solver = Wave()
    solver.setup = solver.close = None
    assert measure(solver).steps == STEPS


def test_a_solver_with_a_mistake():
    """The refusal that a worker would send."""
    with pytest.raises(SpecMismatch):
        measure(Troubled("nan", 0.0))


class Faint(Wave):
    """A sound in air, of which single precision keeps nothing."""

    def solve(self, parameters):
        for step in super().solve(parameters):
            yield 101325 + 1e-4 * step


def test_plan_and_check_say_what_single_precision_loses():
    """With the offset and the scale that keep it."""
    words = r"offset=101325, scale=\d"
    assert re.search(words, measure(Faint()).lost)
    assert not measure(Wave()).lost
    with pytest.raises(LawBroken, match=words):
        check_solver(Faint())


class Broken(Wave):
    """One with a mistake."""

    def solve(self, parameters):
        yield self.nothing


def some_fail(parameters):
    """A constraint with a bug at some of its points."""
    return parameters["phase"] < 0.5 or parameters["none"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"simulations": 20}, "The threshold can never be reached: expected at most"),
        ({"constraint": lambda _: False}, "a function that accepts some points"),
        ({"constraint": some_fail}, "some_fail has failed with .*KeyError"),
    ],
)
def test_what_fit_refuses_is_refused_before_the_solver_runs(options, said):
    """A solver that fails is not reached."""
    with pytest.raises(UserError, match=said):
        show(OnlineData(Abrupt("solve"), **options), Console())


def test_the_network_says_how_many_samples_there_are(capsys):
    """One that sees a step, and unrolls, has fewer a simulation than steps."""
    words = "plan --data heat2d --data.simulations 20 --data.solver.steps 10 --model"
    sized = "fully_connected_autoregressive --data.reservoir.threshold=200"
    with pytest.raises(SystemExit):
        main([*words.split(), *sized.split()])
    assert "at most 160 samples (20 simulations of 8)" in capsys.readouterr().err


def test_a_model_may_have_options_and_what_it_does_not_see_is_said(capsys):
    words = "plan --data lorenz --model fully_connected_autoregressive"
    main([*words.split(), "--model.conditions=[rho, time]", "--model.loss=HuberLoss"])
    printed = capsys.readouterr().out
    assert "it does not see sigma, beta, x0, y0, z0;" in " ".join(printed.split())
    assert "nothing was submitted" in printed


def test_a_solver_that_fails_is_named_with_its_line():
    """As a fit would name it."""
    with pytest.raises(UserError, match=r"(?s)Broken failed.*AttributeError.*nothing"):
        show(OnlineData(Broken()), Console())


@pytest.mark.parametrize("kind", [Slurm, PBS])
def test_a_walltime_that_no_queue_takes(kind):
    """It is not called none."""
    cluster = kind(
        cores=1, memory="1 GB", interface="lo", walltime="tomorrow", n_workers=1
    )
    plan = places(OnlineData(Wave(), cluster=cluster))
    assert "walltime 'tomorrow', which no queue accepts" in plan.resources


@pytest.mark.parametrize(
    ("kind", "said"),
    [("SGE", "walltime 02:00:00"), ("OAR", "walltime 02:00:00"), ("Slurm", None)],
)
def test_a_walltime_of_another_batch_system_is_not_called_none(kind, said):
    """Its script has one, whose directive only that system reads."""
    taken = {"cores": 1, "memory": "1 GB", "interface": "lo", "n_workers": 1}
    if kind == "Slurm":
        cluster = Slurm(**taken, walltime="2h", options={"job_directives_skip": ["-t"]})
    else:
        path = f"dask_jobqueue.{kind}Cluster"
        cluster = JobQueue(path, **taken, walltime="2h")
    plan = places(OnlineData(Wave(), cluster=cluster))
    assert plan.resources.endswith(said or "no walltime")


@pytest.mark.parametrize("kind", [Slurm, PBS])
def test_the_script_of_a_job_and_how_many(kind, capsys):
    """Of 2 to 5 jobs with 4 cores each, half of them for each simulation."""
    cluster = kind(
        cores=4,
        memory="4 GB",
        walltime="00:30:00",
        interface="lo",
        minimum_jobs=2,
        maximum_jobs=5,
    )
    data = OnlineData(Wave(), cluster=cluster, cores_per_simulation=2, simulations=200)
    where = places(data)
    assert where.at_once == (4, 10)
    show(data, Console(width=200))
    printed = capsys.readouterr().out
    assert "distributed.cli.dask_worker tls://" in printed
    assert "2 to 5, each with 4 cores, 4 GB, walltime 0:30:00" in printed
    assert "4 to 10 simulations, 2 cores each" in printed
    assert "30 held out, then 200" in printed
    assert "5 steps of 16 B: 80 B" in printed


def test_a_machine_without_queue(capsys):
    """No script; the workers that there would be."""
    cluster = partial(
        LocalCluster, n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    show(OnlineData(Heat2D(steps=1), cluster=cluster), Console(width=200))
    printed = capsys.readouterr().out
    assert "2 simulations, 1 core each" in printed
    assert "1 step of 39.1 kiB: 39.1 kiB" in printed
    assert "script" not in printed


def test_a_scheduler_without_workers(capsys):
    """No rate, no time, and no division by nothing."""
    cluster = partial(LocalCluster, n_workers=0, dashboard_address="127.0.0.1:0")
    show(OnlineData(Wave(), cluster=cluster), Console(width=200))
    assert "no workers yet" in capsys.readouterr().out


def test_by_the_command_line(monkeypatch, capsys, tmp_path):
    """With recipes by name; a model is no mistake."""
    monkeypatch.chdir(tmp_path)
    words = (
        "plan --data heat2d --model fully_connected --data.cluster slurm "
        "--data.cluster.interface lo"
    )
    main([*words.split(), "--data.solver.steps=3"])
    printed = " ".join(capsys.readouterr().out.split())
    spec = Heat2D(steps=3).spec
    count = sum(w.numel() for w in FullyConnected(spec, Direct()).parameters())
    assert f"Model: FullyConnected, {count:,} parameters, " in printed
    assert "; 57 batches of 32 have each sample once" in printed
    assert "#SBATCH -t 04:00:00" in printed
    assert "nothing was submitted" in printed
    assert "1 to 8, each with 2 cores, 4 GB, walltime 4:00:00" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        (
            "slurm --data.cluster.cores 16 --data.cluster.interface lo",
            "1 to 8, each with 16 cores",
        ),
        (
            "slurm --data.cluster.maximum_jobs=3 --data.cluster.interface lo",
            "1 to 3, each with 2 cores",
        ),
        (
            "dask_jobqueue.PBSCluster --data.cluster.cores 3 --data.cluster.memory 1GB "
            "--data.cluster.n_workers 7 --data.cluster.interface lo",
            "3, each with 3 cores, 1GB",
        ),
        (
            "slurm --data.cluster.walltime 12:00:00 --data.cluster.interface lo",
            "walltime 12:00:00",
        ),
        (
            "slurm --data.cluster.walltime 2h --data.cluster.account maths "
            "--data.cluster.interface lo",
            "walltime 2:00:00",
        ),
        (
            "slurm --data.cluster.n_workers 4 --data.cluster.interface lo",
            "2, each with",
        ),
        ("local --data.cluster.n_workers 3", "3 simulations"),
    ],
    ids=lambda words: words.split()[0],
)
def test_arguments_of_a_cluster_on_the_command_line(words, jobs, capsys):
    """Arguments of ours, and of a class of dask-jobqueue."""
    main(f"plan --data heat2d --data.solver.steps 3 --data.cluster {words}".split())
    assert jobs in capsys.readouterr().out


def test_arguments_of_a_cluster_over_the_settings_of_a_run(tmp_path, capsys):
    """fit --config FILE: they change the cluster as they do with --data.cluster."""
    words = "--data.cluster slurm --data.cluster.walltime 01:00:00 --print_config"
    with pytest.raises(SystemExit):
        main(["fit", "--data=heat2d", "--model=fully_connected", *words.split()])
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    more = ["--data.cluster.cores=16", "--data.cluster.maximum_jobs=3"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), *more, "--print_config"])
    cluster = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["cluster"]
    arguments = cluster["init_args"]
    assert (arguments["cores"], arguments["maximum_jobs"]) == (16, 3)
    assert arguments["walltime"] == "01:00:00"


def test_a_misspelt_argument_of_a_cluster(capsys):
    """The nearest one of those that are handed on, too."""
    words = "plan --data heat2d --data.cluster slurm --data.cluster.walltme 1"
    with pytest.raises(SystemExit):
        main(words.split())
    assert "Did you mean 'walltime'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"), [("slrm", "'slurm'"), ("slurm.yml", "no such file")]
)
def test_a_misspelt_recipe(word, hint, capsys):
    """The nearest one that there is."""
    with pytest.raises(SystemExit):
        main(["plan", "--data", "heat2d", "--data.cluster", word])
    assert hint in capsys.readouterr().err
