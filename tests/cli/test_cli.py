"""The command line: one clear message for each mistake, before anything is submitted."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import surrogate_flow.data.study
from surrogate_flow.cli.app import main
from surrogate_flow.cli.help import COMMANDS

FIT = ["fit", "--data", "heat2d", "--model", "fully_connected"]
SMALL = ["--data.solver.cells=[4,4]", "--data.solver.steps=2"]


@pytest.fixture(autouse=True)
def nothing_is_submitted(monkeypatch, tmp_path):
    """Opening a cluster fails the test."""

    def refuse(*arguments, **others):
        pytest.fail("a cluster was opened")

    monkeypatch.setattr(surrogate_flow.data.study, "open_cluster", refuse)
    monkeypatch.chdir(tmp_path)


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, capsys.readouterr()


MISTAKES = {
    "missing recipe": (
        ["fit", "--data", "heat", "--model=fully_connected"],
        "Did you mean 'heat2d'",
    ),
    "no prefix": ([*FIT, "--simulations=60"], "Did you mean '--data.simulations'"),
    "no prefix, dotted": (
        [*FIT, "--solver.cells=[4,4]"],
        "Did you mean '--data.solver.cells'",
    ),
    "no prefix of a model": ([*FIT, "--window=x"], "Did you mean '--model.window'"),
    "missing model": ([*FIT[:3], "--model=fulli_connected"], "'fully_connected'"),
    "capacity below threshold": (
        [*FIT, "--data.reservoir.capacity=500", "--data.reservoir.threshold=501"],
        "threshold",
    ),
    "capacity below a batch": (
        [*FIT, "--data.reservoir.capacity=5", "--data.reservoir.threshold=5"],
        "batch",
    ),
    "simulations shorter than a sample": (
        [*FIT[:3], "--model=fully_connected_autoregressive", *SMALL],
        "at least 3 steps",
    ),
    "threshold never reached": (
        [*FIT, *SMALL, "--data.simulations=3"],
        "The threshold can never be reached",
    ),
    "bounds upside down": (
        [*FIT, "--data.solver.low=500", "--data.solver.high=100"],
        "500",
    ),
    "no cells": ([*FIT, "--data.solver.cells=[0,4]"], "cells"),
    "no simulations": ([*FIT, "--data.simulations=0"], "simulations"),
    "unknown option": ([*FIT, "--data.simulation=3"], "Did you mean 'simulations'"),
    "unknown nested option": (
        [*FIT, "--data.solver.cell=[4,4]"],
        "Did you mean 'cells'",
    ),
    "unknown fault": ([*FIT, "--data.faults.retry", "3"], "Did you mean 'retries'"),
    "unknown class": (
        [*FIT, "--data.solver", "surrogate_flow.solvers.Heat2"],
        "Did you mean 'Heat2D'",
    ),
    "unknown bare class": ([*FIT, "--data.reservoir", "Resevoir"], "'Reservoir'"),
    "unknown sampler": ([*FIT, "--data.sampler", "Sobl"], "Did you mean 'Sobol'"),
    "unknown path of a sampler": (
        [*FIT, "--data.sampler=surrogate_flow.sampling.Sobl"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown sampler, the long way": (
        [*FIT, "--data.sampler.class_path=Sobl"],
        "Did you mean 'Sobol'",
    ),
    "unknown sampler in YAML": (
        [*FIT, "--data.sampler={class_path: surrogate_flow.sampling.Sobl}"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown option of a sampler in YAML": (
        [
            *FIT,
            "--data.sampler={class_path: surrogate_flow.sampling.Sobol, "
            "init_args: {sed: 3}}",
        ],
        "Did you mean 'seed'",
    ),
    "an option of no class": (
        [*FIT, "--data.cluster.cores=3"],
        "cluster has no class yet, whose 'cores' could be set",
    ),
    "unknown cluster": (
        [*FIT, "--data.cluster", "dask_jobqueue.SLURMClustr"],
        "Did you mean 'SLURMCluster'",
    ),
    "unknown limiter": (
        [*FIT, "--data.reservoir.limiter", "SamplesPerInser"],
        "Did you mean 'SamplesPerInsert'",
    ),
    "unknown window": ([*FIT, "--model.window=Directt"], "Did you mean 'Direct'"),
    "unknown loss": (
        [*FIT, "--model.loss=torch.nn.L1Los"],
        "has no 'L1Los'. Did you mean 'L1Loss'",
    ),
    "unknown bare loss": ([*FIT, "--model.loss=L1Los"], "Did you mean 'L1Loss'"),
    "unknown option of the network": ([*FIT, "--model.network.width=3"], "'widths'"),
    "unknown option of the trainer": (
        [*FIT, "--trainer.max_step=3"],
        "--trainer.max_step: unknown option 'max_step' of Trainer. "
        "Did you mean 'max_steps'",
    ),
    "a shortened option": ([*FIT, "--seed_every=3"], "--seed_every=3"),
    "generate: a shortened option": (
        ["generate", *FIT[1:3], "--outp=x.zarr"],
        "--outp=x.zarr",
    ),
    "predict: a shortened option": (["predict", "--ckpt=a"], "--ckpt=a"),
    "no checkpoint": (["validate", *FIT[1:]], "validate needs --ckpt_path"),
    "no data": (["fit", "--model=fully_connected"], "fit needs --data"),
    "a path that is none": (["fit", "--data", "./nope"], "No recipe './nope'"),
    "a class that is none": (
        ["fit", "--data", "nowhere.Data"],
        "cannot import 'nowhere'",
    ),
    "no widths": ([*FIT, "--model.network.widths=[]"], "widths"),
    "a command that is none": (["generat", *FIT[1:]], "Did you mean 'generate'"),
    "generate: no output": (["generate", *FIT[1:3]], "output"),
    "generate: no data": (["generate", "--output=x.zarr"], "generate needs --data"),
    "generate: missing recipe": (
        ["generate", "--data=heat", "--output=x.zarr"],
        "Did you mean 'heat2d'",
    ),
    "generate: unknown option": (
        ["generate", *FIT[1:3], "--output=x.zarr", "--data.solver.cell=[4,4]"],
        "Did you mean 'cells'",
    ),
    "generate: a data set": (["generate", "--data=x.zarr"], "expected a workflow"),
    "no data set": (["fit", "--data=x.zarr", *FIT[3:]], "x.zarr is no data set"),
    "unknown option of a data set": (
        ["fit", "--data=x.zarr", "--data.memry=1", *FIT[3:]],
        "Did you mean 'memory'",
    ),
    "missing checkpoint": (
        ["predict", "--ckpt_path=none.ckpt", "--parameters={a: 1}"],
        "No checkpoint",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(words, message, monkeypatch, capsys):
    """Each mistake ends with status 2 and one message on stderr, without a traceback."""
    code, shown = run(words, monkeypatch, capsys)
    assert code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert "Namespace(" not in shown.err


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["fit", "--help"],
        ["predict", "--help"],
        ["generate", "--help"],
        ["fit", "--data.help"],
        ["fit", "--data", "lorenz", "--data.help"],
        ["fit", "--data.help", "lorenz"],
        ["fit", "--model.help"],
    ],
)
def test_help_helps(words, monkeypatch, capsys):
    """Help exits with 0 and explains."""
    code, shown = run(words, monkeypatch, capsys)
    assert code == 0
    assert "surrogate" in shown.out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--data.help"], "--data.batch_size"),
        (["--model", "fno", "--model.help"], "--model.normalisation"),
        (["--data", "lorenz", "--data.solver.help"], "--data.solver.time_step"),
        (["--model", "fno", "--model.network.help"], "--model.network.modes"),
        (["--model.network.help", "surrogate_flow.nn.UNet"], "--model.network.widths"),
        (
            ["--data", "surrogate_flow.OnlineData", "--data.solver.help"]
            + ["surrogate_flow.solvers.Heat2D"],
            "--data.solver.cells",
        ),
    ],
)
def test_help_shows_the_options_of_a_recipe_and_of_its_classes(
    words, shown, monkeypatch, capsys
):
    """A user finds what may be overridden without reading a recipe."""
    code, said = run(["fit", *words], monkeypatch, capsys)
    assert code == 0
    assert shown in said.out
    assert "--model.spec" not in said.out
    code, said = run(["fit", "--data.help", "lorentz"], monkeypatch, capsys)
    assert code == 2
    assert "Did you mean 'lorenz'" in said.err


def test_print_config_shows_everything(monkeypatch, capsys):
    """The configuration is printed whole, defaults included, and nothing runs."""
    code, shown = run([*FIT, "--print_config"], monkeypatch, capsys)
    assert code == 0
    for word in ("batch_size: 32", "retries: 2", "widths:", "max_epochs: 1"):
        assert word in shown.out


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--data.sampler=Sobol", "surrogate_flow.sampling.Sobol"),
        ("--data.sampler=surrogate_flow.sampling.Halton", "Halton"),
        (
            "--data.reservoir={class_path: surrogate_flow.reservoir.FIFO, "
            "init_args: {capacity: 77}}",
            "capacity: 77",
        ),
        ("--data.reservoir.init_args={threshold: 7}", "threshold: 7"),
        ("--data.cluster=distributed.LocalCluster", "distributed.LocalCluster"),
        ("--data.reservoir.limiter={ratio: 2.5}", "ratio: 2.5"),
        ("--model.network.widths+=77", "- 77"),
        ("--data.cluster={class_path: LocalCluster}", "distributed.LocalCluster"),
        ("--model.window=Autoregressive", "surrogate_flow.Autoregressive"),
        ("--model.loss=torch.nn.L1Loss", "torch.nn.L1Loss"),
        ("--model.loss={class_path: torch.nn.HuberLoss}", "torch.nn.HuberLoss"),
    ],
)
def test_whatever_names_a_class_may_be_given(word, shown, monkeypatch, capsys):
    """A class by name, by path, or with its arguments as YAML: none is refused."""
    code, said = run([*FIT, "--print_config", word], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert shown in said.out


QUEUE = "class_path: dask_jobqueue.SLURMCluster\n"
CLUSTERS = {
    "nothing": ("", "expected a mapping of names to values, got NoneType"),
    "a list": ("- a", "expected a mapping of names to values, got list"),
    "broken": ("a: [b", "not valid YAML"),
    "no class": ("n_workers: 2", "expected class_path, and its arguments in init_args"),
    "unknown class": (
        "class_path: dask_jobqueue.SLURMClustr",
        "Did you mean 'SLURMCluster'",
    ),
    "unknown key": (f"{QUEUE}dict_kwarg: {{}}", "Did you mean 'dict_kwargs'"),
    "unknown argument": (
        "class_path: distributed.LocalCluster\ninit_args: {n_worker: 2}",
        "unknown argument 'n_worker' of LocalCluster. Did you mean 'n_workers'",
    ),
    "unknown argument of a queue": (
        f"{QUEUE}init_args: {{corez: 2}}",
        "unknown argument 'corez' of SLURMCluster. Did you mean 'cores'",
    ),
    "unknown argument of jobs": (
        f"{QUEUE}dict_kwargs: {{corse: 2}}",
        "unknown argument 'corse' of SLURMCluster. Did you mean 'cores'",
    ),
    "arguments of jobs among its own": (
        f"{QUEUE}init_args: {{n_workers: 2, cores: 2, memory: 2GB}}",
        "Move them: dict_kwargs: {cores: 2, memory: 2GB}",
    ),
}


@pytest.mark.parametrize(("text", "message"), CLUSTERS.values(), ids=CLUSTERS)
def test_mistakes_in_the_recipe_of_a_cluster(
    text, message, tmp_path, monkeypatch, capsys
):
    """A cluster's own file is read as strictly as the cluster in a workflow's."""
    lines = "".join(f"  {line}\n" for line in text.splitlines())
    workflow = f"solver: surrogate_flow.solvers.Heat2D\ncluster:\n{lines}"
    given = [(text, [*FIT, "--data.cluster=wrong.yaml"])]
    if "class_path" in text:
        given += [(workflow, ["fit", "--data=wrong.yaml", *FIT[3:]])]
    for content, words in given:
        (tmp_path / "wrong.yaml").write_text(content)
        code, said = run(words, monkeypatch, capsys)
        assert code == 2
        assert message in said.err.replace("'cluster.", "'")
        assert said.err.startswith("surrogate-flow: error: wrong.yaml: ")
        assert "Namespace(" not in said.err


@pytest.mark.parametrize("text", ["a: [b", "- a"])
def test_broken_settings_of_a_run(text, tmp_path, monkeypatch, capsys):
    """A file given as --config that is none is named."""
    (tmp_path / "config.yaml").write_text(text)
    words = ["fit", "--config=config.yaml", "--data.cluster.cores=2"]
    code, said = run(words, monkeypatch, capsys)
    assert code == 2
    assert "config.yaml: " in said.err
    assert "Traceback" not in said.err


def cluster_of(words, monkeypatch, capsys):
    """What --print_config says of the cluster."""
    code, said = run(["fit", *words, *FIT[3:], "--print_config"], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    return yaml.safe_load(said.out)["data"]["init_args"]["cluster"]


@pytest.mark.parametrize(
    "word", ["cluster", "cluster.init_args", "cluster.dict_kwargs"]
)
def test_the_cluster_of_a_workflow_can_be_overridden(
    word, tmp_path, monkeypatch, capsys
):
    """As that of --data.cluster can: also what the class hands on to its jobs."""
    (tmp_path / "own.yaml").write_text(
        "solver: surrogate_flow.solvers.Heat2D\n"
        f"cluster:\n  {QUEUE}  init_args: {{n_workers: 2}}\n"
    )
    words = ["--data=own.yaml", f"--data.{word}.cores=2"]
    cluster = cluster_of(words, monkeypatch, capsys)
    assert cluster["init_args"]["n_workers"] == 2
    assert cluster["dict_kwargs"] == {"cores": 2}
    assert cluster_of([*words[:1], "--data.cluster=null"], monkeypatch, capsys) is None
    given = ["--data.cluster={class_path: dask_jobqueue.PBSCluster}", words[1]]
    cluster = cluster_of([words[0], *given], monkeypatch, capsys)
    assert cluster["class_path"] == "dask_jobqueue.PBSCluster"
    assert cluster["dict_kwargs"] == {"cores": 2}


def test_a_site_s_recipe_may_hand_on_what_dask_takes(tmp_path, monkeypatch, capsys):
    """What LocalCluster hands on to its workers cannot be known, and is not refused."""
    (tmp_path / "some.yaml").write_text(
        "class_path: distributed.LocalCluster\n"
        "init_args: {n_workers: 1, blocked_handlers: null}\n"
        "dict_kwargs: {memory_limit: 1GB}"
    )
    words = ["--data=heat2d", "--data.cluster=some.yaml"]
    cluster = cluster_of(words, monkeypatch, capsys)
    assert cluster["dict_kwargs"] == {"memory_limit": "1GB"}


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_nothing_of_the_same_name_hides_a_shipped_recipe(
    make, tmp_path, monkeypatch, capsys
):
    """A bare name is that of the recipe, in any folder; ./heat2d is what lies there."""
    for name in ("heat2d", "fully_connected", "slurm"):
        make(tmp_path / name)
    words = [*FIT, "--data.cluster=slurm", "--print_config"]
    code, said = run(words, monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert "surrogate_flow.solvers.Heat2D" in said.out
    code, said = run(["fit", *FIT[1:3], "--data.solver.help"], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert "--data.solver.cells" in said.out
    code, said = run(["fit", "--data=./heat2d", *FIT[3:]], monkeypatch, capsys)
    assert code == 2
    assert "heat2d" in said.err


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("heat2d", "heat2d"),  # with the zarr.json of a data set
        ("heat2d", "./heat2d"),
        ("mine", "mine"),
        ("mine.zarr", "mine.zarr"),
    ],
)
def test_a_folder_is_a_data_set(folder, word, tmp_path, monkeypatch, capsys):
    """Where it looks like one, or no recipe has its name."""
    (tmp_path / folder).mkdir()
    if folder == word == "heat2d":
        (tmp_path / folder / "zarr.json").write_text("{}")
    code, said = run(["fit", "--data", word, *FIT[3:]], monkeypatch, capsys)
    assert code == 2
    assert f"{Path(word)}" in said.err
    assert "data set" in said.err


SOLVERS = {
    "Other": "'own_solvers' has no 'Other'",
    "NoSolver": "expected a subclass of Solver, got NoSolver",
    "NoSpec": "NoSpec has no spec yet, and so cannot be built",
    "Text": "Text.spec: expected a FieldSpec, got str 'nothing'",
    "Method": "Method.spec: expected a FieldSpec, got method",
    "Sized": "Sized needs 'size', which has no default",
}
MODULE = """
from surrogate_flow import Solver
from surrogate_flow.solvers import Heat2D

class NoSolver:
    pass

class NoSpec(Solver):
    def solve(self, parameters):
        yield

class Text(NoSpec):
    spec = "nothing"

class Method(NoSpec):
    def spec(self):
        return None

class Sized(Heat2D):
    def __init__(self, size: int, *, steps: int = 10):
        super().__init__(steps=steps)
"""


@pytest.fixture
def own_solvers(tmp_path, monkeypatch):
    """A module of the user's, where Python finds it."""
    (tmp_path / "own_solvers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_solvers", None)


@pytest.mark.parametrize(("name", "message"), SOLVERS.items(), ids=SOLVERS)
def test_mistakes_in_a_solver_of_one_s_own(
    name, message, own_solvers, monkeypatch, capsys
):
    """A class that cannot be built, or is no solver, is named in one message."""
    recipe = own_solvers / "own.yaml"
    recipe.write_text(f"solver: {{class_path: own_solvers.{name}}}")
    short = own_solvers / "short.yaml"
    short.write_text(f"solver: own_solvers.{name}")
    for words in (
        ["--data=own.yaml"],
        ["--data=short.yaml"],
        ["--data=heat2d", f"--data.solver=own_solvers.{name}"],
        ["--data=surrogate_flow.OnlineData", f"--data.solver=own_solvers.{name}"],
    ):
        code, said = run(["fit", *words, *FIT[3:]], monkeypatch, capsys)
        assert code == 2
        assert message in said.err
        assert "Namespace(" not in said.err
        assert "usage:" not in said.err
    assert not (own_solvers / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--data=own.yaml", "--data.solver.size=3"],
        ["--data=own.yaml", "--data.solver.init_args={size: 3}"],
        ["--data=own.yaml", "--data.solver=surrogate_flow.solvers.Heat2D"],
        ["--data=own.yaml", "--data.solver=Lorenz", "--data.solver.time_step=0.1"],
        ["--data=heat2d", "--data.solver=own_solvers.Sized", "--data.solver.size=3"],
    ],
)
def test_what_a_recipe_leaves_open_is_given_on_the_command_line(
    words, own_solvers, monkeypatch, capsys
):
    """A recipe may lack an argument that the command line has, or another class."""
    recipe = own_solvers / "own.yaml"
    recipe.write_text("solver: {class_path: own_solvers.Sized}\nsimulations: 0")
    code, said = run(
        ["fit", *words, "--data.simulations=0", *FIT[3:]], monkeypatch, capsys
    )
    assert code == 2
    assert "simulations: expected at least 1, got 0" in said.err


TOO_MUCH = {
    "reservoir": ("--data.reservoir.capacity=8 TiB", "8.00 TiB", "capacity"),
    "held out": ("--data.held_out=1000000000", "3.55 PiB", "data.held_out"),
}


@pytest.mark.parametrize(("word", "size", "remedy"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_more_than_the_memory_of_the_machine(
    word, size, remedy, tmp_path, monkeypatch, capsys
):
    """What could never be kept is refused, with its bytes and what to lower."""
    code, said = run([*FIT, word], monkeypatch, capsys)
    assert code == 2
    assert size in said.err
    assert f"Lower {remedy}" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.*"))


ASK = """
import sys
from surrogate_flow.cli import main

try:
    main([{word!r}])
except SystemExit as ended:
    assert not ended.code
print(sorted({{"torch", "pytorch_lightning", "distributed"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("word", ["--version", "--help", "-h"])
def test_a_short_question_has_its_answer_at_once(word):
    """Without the import of torch and Lightning, which takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(word=word)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *answer, imported = done.stdout.splitlines()
    assert imported == "[]"
    if word == "--version":
        assert answer == [f"surrogate-flow {version('surrogate-flow')}"]
        return
    for command in (*COMMANDS, "surrogate-flow COMMAND --help", "--version"):
        assert command in "\n".join(answer)
    assert max(map(len, answer)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_help_names_has_help(command, monkeypatch, capsys):
    """What the short help leads to is there."""
    code, said = run([command, "--help"], monkeypatch, capsys)
    assert code == 0
    assert said.out.startswith("usage: surrogate-flow")
