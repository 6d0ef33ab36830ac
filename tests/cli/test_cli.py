"""The command line: one clear message for each mistake, before anything is submitted."""

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import surrogate_flow.ensemble.study
from surrogate_flow.cli.app import main
from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.pages import PAGES
from surrogate_flow.cli.recipes import COMMANDS
from surrogate_flow.ensemble.faults import Faults

FIT = ["fit", "--data", "heat2d", "--model", "fully_connected"]
SMALL = ["--data.solver.cells=[4,4]", "--data.solver.steps=2"]


@pytest.fixture(autouse=True)
def nothing_is_submitted(monkeypatch, tmp_path):
    """Opening a cluster fails the test."""

    def refuse(*arguments, **others):
        pytest.fail("a cluster was opened")

    monkeypatch.setattr(surrogate_flow.ensemble.study, "open_cluster", refuse)
    monkeypatch.chdir(tmp_path)


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, capsys.readouterr()


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
        (["--trainer.help"], "--trainer.accumulate_grad_batches"),
        (["--data", "x.zarr", "--data.help"], "--data.threads"),
        (["--model", "fno", "--model.help"], "--model.normalisation"),
        (["--data", "lorenz", "--data.solver.help"], "--data.solver.time_step"),
        (["--model", "fno", "--model.network.help"], "--model.network.modes"),
        (["--model.network.help", "surrogate_flow.nn.UNet"], "--model.network.widths"),
        (
            ["--data", "surrogate_flow.OnlineData", "--data.solver.help"]
            + ["surrogate_flow.solvers.Heat2D"],
            "--data.solver.cells",
        ),
        (["--data.cluster", "slurm", "--data.cluster.help"], "--data.cluster.walltime"),
        (["--data.cluster=local", "--data.cluster.help"], "--data.cluster.n_workers"),
        (["--data.solver=Lorenz", "--data.solver.help"], "--data.solver.time_step"),
        (["--data.faults.help"], "--data.faults.retries"),
        # Of no class yet: which there are, and how to ask.
        (["--model.network.help"], "fit --model fno --model.network.help"),
        (["--model.network.help"], "one of: deeponet, fno, fully_connected,"),
        (["--model.network.help"], "surrogate_flow.nn.UNet"),
        (["--model.optimizer.help"], "torch.optim.AdamW"),
        (["--data.solver.help"], "fit --data heat2d --data.solver.help"),
        (["--data.sampler.help"], "surrogate_flow.sampling.Sobol"),
        (["--data.sampler.help", "Sobol"], "--data.sampler.seed"),
        (["--data.cluster.help"], "one of: existing, local, pbs, slurm"),
        (["--data.help"], "All options of a workflow"),
        (["--model.help"], "surrogate_flow.nn.FNO"),
        (["--model.help"], "any other by its import path"),
    ],
)
def test_help_shows_the_options_of_a_recipe_and_of_its_classes(
    words, shown, monkeypatch, capsys
):
    """A user finds what may be overridden without reading a recipe."""
    code, said = run(["fit", *words], monkeypatch, capsys)
    assert code == 0
    assert shown in re.sub(r"\s+", " ", said.out)
    assert "--model.spec" not in said.out
    assert "Lightning Trainer command line tool" not in said.out
    # Lightning's own options take so many.
    assert "trainer" in words[0] or len(said.out.splitlines()) < 250
    code, said = run(["fit", "--data.help", "lorentz"], monkeypatch, capsys)
    assert code == 2
    assert "Did you mean 'lorenz'" in said.err


def test_print_config_shows_everything(monkeypatch, capsys):
    """The configuration is printed whole, defaults included, and nothing runs."""
    code, shown = run([*FIT, "--print_config"], monkeypatch, capsys)
    assert code == 0
    for word in ("batch_size: 32", "retries: 2", "widths:", "max_epochs: 1"):
        assert word in shown.out


def test_a_recipe_may_name_another_file(tmp_path, monkeypatch, capsys):
    """Which has the class; its options can be set."""
    (tmp_path / "heat.yaml").write_text("class_path: surrogate_flow.solvers.Heat2D")
    (tmp_path / "own.yaml").write_text("solver: heat.yaml\nreservoir: FIFO")
    words = ["fit", "--data=own.yaml", *FIT[3:], "--data.solver.steps=3"]
    words += ["--data.reservoir.capacity=77", "--print_config"]
    code, said = run(words, monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert "steps: 3" in said.out
    assert "capacity: 77" in said.out


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
        ("--model.scheduler={class_path: StepLR, init_args: {step_size: 9}}", "StepLR"),
        ("--data.solver={class_path: Lorenz}", "surrogate_flow.solvers.Lorenz"),
        ("--data.solver={cells: [8, 8]}", "class_path: surrogate_flow.solvers.Heat2D"),
        ("--data.solver.init_args={cells: [8, 8]}", "- 8"),
        ("--data.faults.retries=7", "retries: 7"),
    ],
)
def test_whatever_names_a_class_may_be_given(word, shown, monkeypatch, capsys):
    """A class by name, by path, or with its arguments as YAML: none is refused."""
    code, said = run([*FIT, "--print_config", word], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert shown in said.out


MINE = """
from dataclasses import dataclass
from surrogate_flow.reservoir import FIFO

@dataclass(frozen=True)
class Mine(FIFO.__base__):
    capacity: int = 77
    threshold: int = 7
    needed, take = FIFO.needed, FIFO.take
"""
PBS = "class_path: dask_jobqueue.PBSCluster, init_args: {n_workers: 3}"


@pytest.mark.parametrize(
    ("recipe", "words", "shown"),
    [
        (  # Over the default instance of a signature, and over recipes.
            "reservoir: mine.Mine\nsampler: {class_path: Sobol, init_args: {seed: 4}}",
            ["--data.sampler=Halton", "--model.network=UNet"]
            + ["--model.window=Direct", "--model.optimizer=Adadelta"],
            {
                "data.reservoir": {"capacity": 77, "threshold": 7},
                "data.sampler": {"seed": 0},
                "model.network": {"widths": [32, 64, 128, 256]},
                "model.window": {"inputs": None},
                "model.optimizer": {"lr": 1.0, "eps": 1e-6},
            },
        ),
        (  # What is typed for a class is its own, behind its name or before.
            f"cluster: {{{PBS}, dict_kwargs: {{cores: 3, memory: 2GB}}}}",
            ["--data.reservoir.capacity=5", "--data.reservoir=mine.Mine"]
            + ["--data.solver.class_path=HeatPlate", "--data.solver.steps=3"]
            + ["--data.cluster=distributed.LocalCluster"],
            {
                "data.reservoir": {"capacity": 5, "threshold": 7},
                "data.solver": {"cells": [64, 12], "steps": 3},
                "data.cluster": {"n_workers": None, "cores": None, "memory": None},
            },
        ),
        (
            "reservoir: {class_path: FIRO, init_args: {seed: 3, threshold: 9}}",
            ["--data.reservoir=Reservoir", "--data.reservoir.capacity=5"],
            {"data.reservoir": {"capacity": 5, "seed": 0, "threshold": 1000}},
        ),
        (  # The same class by its other path.
            "reservoir: {class_path: FIRO, init_args: {seed: 3, threshold: 9}}",
            ["--data.reservoir=surrogate_flow.reservoir.policy.FIRO"],
            {"data.reservoir": {"capacity": 6000, "seed": 3, "threshold": 9}},
        ),
    ],
)
def test_another_class_has_its_own_defaults(
    recipe, words, shown, tmp_path, monkeypatch, capsys
):
    """No argument of the recipe's or the signature's class is that of the next one."""
    (tmp_path / "mine.py").write_text(MINE)
    heat = "solver: {class_path: Heat2D, init_args: {cells: [8, 8], steps: 9}}\n"
    (tmp_path / "own.yaml").write_text(heat + recipe)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--model=message_passing", *words, "--data=own.yaml", "--print_config"]
    code, said = run(["fit", *words], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    config = yaml.safe_load(said.out)
    arguments = {"data": config["data"]["init_args"], "model": config["model"]}
    for option, expected in shown.items():
        section, name = option.split(".")
        named = arguments[section][name]
        got = {**named.get("init_args", {}), **named.get("dict_kwargs", {})}
        assert {key: got.get(key) for key in expected} == expected


QUEUE = "class_path: dask_jobqueue.SLURMCluster\n"


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


MODULE = """
import datetime, decimal, typing
from collections.abc import Callable
from surrogate_flow.solvers import Heat2D

class Scheme(typing.Protocol):
    def step(self, x: float) -> float: ...

class Euler:
    def __init__(self, order: int = 1): ...
    def step(self, x: float) -> float: ...

class Limiter(typing.Protocol):
    def __call__(self, x: float) -> float: ...

class MinMod:
    def __init__(self, a: float = 1.0): ...
    def __call__(self, x: float) -> float: ...

def minmod(x: float) -> float: ...

class Own(Heat2D):
    def __init__(
        self,
        scheme: Scheme | None = None,
        limiter: Limiter | None = None,
        old: typing.Callable | None = None,
        new: Callable | None = None,
        full: Callable[[float], float] | None = None,
        gap: datetime.timedelta | None = None,
        dt: decimal.Decimal | None = None,
    ):
        super().__init__()

class Sized(Heat2D):
    def __init__(self, size: int, *, steps: int = 10):
        super().__init__(steps=steps)
"""
VALID = [
    "scheme: {class_path: own_solvers.Euler, init_args: {order: 2}}",
    "scheme: own_solvers.Euler",
    "limiter: {class_path: own_solvers.MinMod}",
    "limiter: {class_path: own_solvers.minmod}",
    "limiter: own_solvers.minmod",
    "old: own_solvers.minmod",
    "new: own_solvers.minmod",
    "new: {class_path: own_solvers.MinMod}",
    "full: own_solvers.minmod",
    "gap: '1:00:00.5'",
    "dt: '0.1'",
    "dt: 'NaN'",
]


@pytest.fixture
def own_solvers(tmp_path, monkeypatch):
    """A module of the user's, where Python finds it."""
    (tmp_path / "own_solvers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_solvers", None)


@pytest.mark.parametrize("text", VALID)
def test_arguments_of_any_kind_are_let_pass(text, own_solvers, monkeypatch, capsys):
    """Protocols, functions, numbers and times, in a recipe and on the command line."""
    (own_solvers / "own.yaml").write_text(
        f"solver: {{class_path: own_solvers.Own, init_args: {{{text}}}}}"
    )
    name, _, value = text.partition(": ")
    value = value.strip("'")
    given = ["--data.solver=own_solvers.Own", f"--data.solver.{name}={value}"]
    for words in (["--data=own.yaml"], ["--data=heat2d", *given]):
        words = ["fit", *words, *FIT[3:], "--print_config"]
        code, said = run(words, monkeypatch, capsys)
        assert (code, said.err) == (0, "")
        assert "own_solvers.Own" in said.out


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


ASK = """
import sys
from surrogate_flow.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code
    print(end="\\f")
print(sorted({{"torch", "pytorch_lightning", "distributed"}} & set(sys.modules)))
"""


def test_a_short_question_has_its_answer_at_once(tmp_path):
    """Without the import of torch and Lightning, which takes seconds; a report, too."""
    (tmp_path / "telemetry.csv").touch()
    words = [["--version"], ["--help"], ["-h"], ["fit", "--help"], ["plan", "-h"]]
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(words=[*words, ["report", "."]])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=tmp_path,
    )
    *answers, imported = done.stdout.split("\f")
    assert imported == "[]\n"
    assert len(answers) == 6
    assert answers[0] == f"surrogate-flow {version('surrogate-flow')}\n"
    for answer in answers[1:3]:
        for command in (*COMMANDS, "surrogate-flow COMMAND --help", "--version"):
            assert command in answer


def test_the_program_alone_lists_the_commands(capsys):
    """That none is named is a mistake all the same."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    said = capsys.readouterr()
    for command, what in COMMANDS.items():
        assert re.search(rf"^  {command} +{re.escape(what)}$", said.out, re.MULTILINE)
    assert "Expected a command first, got nothing" in said.err


@pytest.mark.parametrize("null", ["null", "None"])
def test_null_is_taken_within_a_class(null, monkeypatch, capsys):
    """As the words of help have it."""
    words = [*FIT, "--data.faults.step_timeout", null, "--print_config"]
    monkeypatch.setattr(sys, "argv", ["surrogate-flow", *words])
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    faults = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["faults"]
    assert faults["step_timeout"] is None


def test_null_for_faults_is_their_default(tmp_path, monkeypatch):
    """As for the reservoir, and where a recipe has others."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text("solver: surrogate_flow.solvers.Heat2D\nfaults: {retries: 7}\n")
    words = ["fit", "--data", str(recipe), *FIT[3:]]
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    assert build([*words, "--data.faults.patience=9"])[0].faults == Faults(
        retries=7, patience=9
    )
    assert build([*words, "--data.faults=null"])[0].faults == Faults()


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    """Of files that libraries write, too: the program begins again if it must."""
    program = "import sys; from surrogate_flow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "fit", "--data", "θ.yaml"],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "No recipe 'θ.yaml'" in done.stderr.decode("utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_short_help(command, monkeypatch, capsys):
    """About a page, with an example; all that it names is there."""
    code, said = run([command, "--help"], monkeypatch, capsys)
    assert code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith(f"usage: surrogate-flow {command} ")
    assert len(lines) <= 65
    assert max(map(len, lines)) <= 88
    assert f" surrogate-flow {command} " in "".join(lines[1:])
    if command in ("validate", "test"):
        assert "--data.held_out" in said.out
        assert "--data.simulations" not in said.out


def test_the_options_that_help_names_are_there(monkeypatch, capsys):
    """Each option in the help of fit, which has those of most others, is known."""
    named = re.findall(r"--((?:data|model|trainer)\.[a-z_.]+[a-z])\b", PAGES["fit"])
    named = {name for name in named if not name.endswith(".help")}
    assert len(named) > 20
    for name in sorted(named):
        # Whatever is wrong with the value, the name is right.
        words = [*FIT, "--data.cluster=slurm", f"--{name}=1", "--print_config"]
        _, said = run(words, monkeypatch, capsys)
        assert "unknown" not in said.err, (name, said.err)


OWN_ERRORS = """
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import closest
from surrogate_flow.solvers import Heat2D

class Advice(Heat2D):
    def __init__(self):
        raise ArgumentError("speed", "at least 1", 0, "Raise it.")

class Own(Heat2D):
    def __init__(self):
        raise ValueError("cells, of all things")

class Defect(Heat2D):
    def __init__(self):
        closest(3, ["cells"])
"""


def test_errors_for_users_are_a_line_and_our_defects_a_traceback(
    tmp_path, monkeypatch, capsys
):
    """By their class; and what code of the user's raises names its line."""
    (tmp_path / "own_errors.py").write_text(OWN_ERRORS)
    monkeypatch.syspath_prepend(tmp_path)
    solver = "--data.solver=own_errors"
    code, said = run([*FIT, f"{solver}.Advice"], monkeypatch, capsys)
    assert code == 2
    assert "error: speed: expected at least 1, got 0. Raise it.\n" in said.err
    code, said = run([*FIT, f"{solver}.Own"], monkeypatch, capsys)
    assert code == 2
    assert "error: ValueError: cells, of all things. At " in said.err
    assert "own_errors.py:12, in __init__" in said.err
    with pytest.raises(ValueError, match="no attribute 'lower'"):
        main([*FIT, f"{solver}.Defect"])


def test_a_signal_ends_a_command_that_awaits_none(tmp_path):
    """In order: the solver's folder is gone, and the status says which signal."""
    (tmp_path / "waits.py").write_text(
        "import time\n"
        "from surrogate_flow.solvers import Heat2D\n"
        "class Waits(Heat2D):\n"
        "    def start(self, run):\n"
        "        print(run.folder, flush=True)\n"
        "        time.sleep(60)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "surrogate_flow", "check", "waits.Waits"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waits.Waits:\n"
    folder = Path(process.stdout.readline().strip())
    assert folder.is_dir()
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert said == "surrogate-flow: interrupted by SIGTERM.\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert not folder.exists()
