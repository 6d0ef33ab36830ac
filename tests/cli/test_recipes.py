"""Recipes: every pair composes, and every mistake is named with the nearest valid word."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml

from surrogate_flow.cli.app import main
from surrogate_flow.cli.lightning import SurrogateCLI
from surrogate_flow.cli.recipes import CommandLine, find_recipe, given_recipe
from surrogate_flow.fields.inputs import named_inputs
from surrogate_flow.fields.names import RecipeError, class_at
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import Draw
from surrogate_flow.sampling import Design, Uniform
from surrogate_flow.solvers import Lorenz, Solver
from surrogate_flow.stream import Encoder
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.checkpoint import plain_recipe

ROOT = Path(__file__).parents[2]


class NoDims(Solver):
    """Numbers, on no grid."""

    fields: ClassVar = {"dims": (), "shape": ()}

    @property
    def spec(self):
        """Two numbers."""
        return FieldSpec(
            parameters=(Parameter("a", 0, 1),),
            variables=(Variable("u"), Variable("v")),
            times=(1.0, 2.0),
            **self.fields,
        )

    def solve(self, parameters):
        """Never called: nothing runs here."""
        raise AssertionError


class Mesh(NoDims):
    """Two triangles."""

    fields: ClassVar = {
        "dims": ("node",),
        "shape": (4,),
        "cells": ((0, 1, 2), (1, 2, 3)),
    }


WORKFLOWS = sorted((ROOT / "workflows").glob("*.yaml"))
MODELS = sorted((ROOT / "models").glob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs leave their folders beside the test's own files."""
    monkeypatch.chdir(tmp_path)


def on_grid(spec):
    """Fields on a structured grid."""
    return bool(spec.dims) and spec.cells is None


def has_few_nodes(spec):
    """Fields at points, whose messages fit into a computer's memory."""
    return bool(spec.dims) and math.prod(spec.shape) < 100_000


FROM_STEP_TO_STEP = {"fully_connected_autoregressive", "message_passing"}
FIELD_TO_FIELD = ("burgers_u0", "darcy")
# Which fields a model is for; the others are for all.
SERVES = {"fno": on_grid, "unet": on_grid, "message_passing": has_few_nodes}


def compose(workflow, *arguments):
    """What the command line builds, and does not run yet."""
    return SurrogateCLI(["--data", str(workflow), *arguments], run=False)


@pytest.mark.parametrize(
    ("workflow", "model"),
    list(itertools.product(WORKFLOWS, MODELS)),
    ids=lambda path: path.stem,
)
def test_every_workflow_composes_with_every_model(workflow, model):
    """A model recipe carries no sizes: the pair predicts, or the network says which one does."""
    solver = yaml.safe_load(workflow.read_text())["solver"]
    solver = solver if isinstance(solver, dict) else {"class_path": solver}
    spec = class_at(solver["class_path"])(**solver.get("init_args", {})).spec
    if not SERVES.get(model.stem, lambda spec: True)(spec):
        network = yaml.safe_load(model.read_text())["network"]["class_path"]
        with pytest.raises(
            ValueError, match=r"[Uu]se .*surrogate_flow\.nn\."
        ) as caught:
            compose(workflow, "--model", str(model))
        assert str(caught.value).startswith(f"{network.rpartition('.')[2]}: expected")
        return
    if spec.steps == 1 and model.stem in FROM_STEP_TO_STEP:
        with pytest.raises(ValueError, match=r"simulations of at least \d+ steps"):
            compose(workflow, "--model", str(model))
        return
    # Shapes alone, without the arithmetic: a million cells take their time.
    with torch.no_grad(), torch.device("meta"):
        cli = compose(workflow, "--model", str(model))
        assert cli.datamodule.workflow == workflow.stem
        assert cli.datamodule.spec == spec
        window = cli.model.window
        out = cli.model.to("meta")(
            torch.zeros(1, len(spec.parameters)),
            torch.zeros(1),
            torch.zeros(1, window.inputs, *spec.step_shape),
            *[torch.zeros(1, *spec.input_shape)] * bool(spec.inputs),
        )
    assert out.shape == (1, window.outputs, *spec.step_shape)


# Sizes at which a training step takes no time; the others are small as they are.
SMALL = {
    "heat2d": "--data.solver.cells=[12, 12]",
    "heat2d_large": "--data.solver.cells=[12, 12]",
    "heat2d_nonlinear": "--data.solver.cells=[12, 12]",
    "gray_scott2d": "--data.solver.cells=16",
    "navier_stokes2d": "--data.solver.points=16",
    "heat_plate": "--data.solver.cells=[16, 3]",
}
# One workflow for each kind of field, with every model; the others with the smallest.
KINDS = ("heat2d", "combined1d_e2", "heat_plate", "lorenz")
PAIRS = [
    pytest.param(
        workflow,
        model,
        marks=()
        if workflow.stem in KINDS or model.stem == "fully_connected"
        else pytest.mark.bench,
        id=f"{workflow.stem}-{model.stem}",
    )
    for workflow, model in itertools.product(WORKFLOWS, MODELS)
    # A steady one has a single step, which this test learns several of.
    if workflow.stem not in (*FIELD_TO_FIELD, "natural_convection")
    and (workflow.stem == "heat_plate") <= (model.stem not in ("fno", "unet"))
    and (workflow.stem == "lorenz") <= model.stem.startswith("fully")
]


@pytest.mark.parametrize(("workflow", "model"), PAIRS)
def test_every_sensible_pair_learns(workflow, model):
    """Some steps of the recipe's optimizer on the first steps of a simulation: the loss falls."""
    cli = compose(
        workflow, "--model", str(model), SMALL.get(workflow.stem, "--data.held_out=1")
    )
    module, solver = cli.model, cli.datamodule.solver
    (simulation,) = Design(solver.spec.parameters, Uniform(), held_out=1, simulations=0)
    crossing, steps = Encoder(solver.spec, 0), []
    for dataset in solver.solve(simulation.parameters):
        steps.extend(crossing.convert(dataset, len(steps)))
        if len(steps) >= module.window.span + 5:
            break
    steps = np.stack(steps[: module.window.span + 5])
    axes = (0, *range(2, steps.ndim))
    module.normalisation.freeze(
        steps.mean(axes, dtype=float), steps.std(axes, dtype=float)
    )
    first = np.arange(4)
    windows = np.stack([steps[k : k + module.window.span] for k in first])
    vector = solver.spec.vector(simulation.parameters).astype(np.float32)
    draw = Draw(windows, np.zeros(4, int), first, np.tile(vector, (4, 1)))
    batch = Batch.from_draw(draw, module.window)
    optimizer, losses = warm(module), []
    while not losses or losses[-1] > 0.7 * losses[0]:
        assert len(losses) < 100, losses
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


def warm(module):
    """The optimizer of a recipe, at the rate behind the warm-up."""
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    return optimizer


@pytest.mark.parametrize(
    ("workflow", "model"), [("darcy", "fno"), ("burgers_u0", "unet")]
)
def test_a_field_is_learnt_from_a_field(workflow, model):
    """Of eight simulations of the recipe, each with the field that it draws."""
    path, cells = ROOT / "workflows" / f"{workflow}.yaml", "--data.solver.cells=16"
    cli = compose(path, "--model", str(ROOT / "models" / f"{model}.yaml"), cells)
    data, module, spec = cli.datamodule, cli.model, cli.datamodule.spec
    given = [data.inputs.fields(Simulation(n, "training", {}), spec) for n in range(8)]
    fields = []
    for inputs in given:
        (dataset,) = data.solver.solve(named_inputs(spec, inputs))
        fields.append(Encoder(spec, 0).convert(dataset, 0))
    fields, given = np.stack(fields), np.stack(given)
    moments = [
        np.array([kind(values, dtype=float) for values in (fields, given)])
        for kind in (np.mean, np.std)
    ]
    module.normalisation.freeze(*moments)
    none = np.zeros((8, 0), np.float32)
    draw = Draw(fields, np.arange(8), np.zeros(8, int), none, given)
    batch = Batch.from_draw(draw, module.window)
    optimizer, losses = warm(module), []
    # Of norms, not of their squares.
    while not losses or losses[-1] > 0.3 * losses[0]:
        assert len(losses) < 200, losses
        optimizer.zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())


@pytest.mark.parametrize("model", ["fno", "unet"])
@pytest.mark.parametrize("solver", [NoDims, Mesh])
def test_fields_on_no_grid_need_another_model(tmp_path, solver, model):
    """The command line ends with the name of a model that serves them, and that one does."""
    workflow = tmp_path / "other.yaml"
    workflow.write_text(f"solver: {__name__}.{solver.__name__}\nsimulations: 3\n")
    with pytest.raises(
        ValueError, match=r": expected fields .*--model fully_connected"
    ):
        compose(workflow, "--model", str(ROOT / "models" / f"{model}.yaml"))
    compose(workflow, "--model", str(ROOT / "models" / "fully_connected.yaml"))


def test_a_model_recipe_names_a_window(tmp_path):
    """The window is a class with arguments as all else is."""
    model = tmp_path / "model.yaml"
    model.write_text(
        "network: surrogate_flow.nn.UNet\n"
        "window: {class_path: test_networks.History, init_args: {seen: 3, predicted: 2}}"
    )
    cli = compose(ROOT / "workflows" / "heat2d.yaml", "--model", str(model))
    assert (cli.model.window.inputs, cli.model.window.outputs) == (3, 2)


def test_a_recipe_without_an_optimizer_can_be_saved(tmp_path):
    """The default one is a class with its arguments, which config.yaml can hold."""
    model = tmp_path / "model.yaml"
    model.write_text("network: {class_path: surrogate_flow.nn.FullyConnected}\n")
    cli = compose(ROOT / "workflows" / "lorenz.yaml", "--model", str(model))
    assert cli.config.model.optimizer.class_path == "torch.optim.Adam"
    assert cli.config.model.scheduler.class_path == "surrogate_flow.WarmupCosine"
    assert cli.model.configure_optimizers()["optimizer"].defaults["lr"] == 1e-3


def test_a_class_will_do_for_a_recipe():
    """A solver and a network: all else has a default."""
    line = CommandLine.of(
        ["fit", "--data.solver=Lorenz", "--model.network=FullyConnected"]
    )
    cli = SurrogateCLI(line.words[1:], run=False)
    assert isinstance(cli.datamodule.solver, Lorenz)
    assert isinstance(cli.model.network, FullyConnected)


def test_recipes_are_short():
    """A recipe says only what differs from the defaults: 5 to 25 lines."""
    for path in WORKFLOWS + MODELS:
        assert 5 <= len(path.read_text().splitlines()) <= 25, path


def test_a_bare_name_finds_the_shipped_recipe():
    """A shipped recipe goes by its name from any folder."""
    assert find_recipe("workflows", "heat2d") == ROOT / "workflows" / "heat2d.yaml"


@pytest.mark.parametrize("name", ["heat2", "workflows/heat2.yaml"])
def test_a_missing_recipe_names_the_nearest(name):
    """The error names what was asked for and the nearest recipe there is."""
    with pytest.raises(RecipeError, match=r"heat2.*Did you mean 'heat2d'\?"):
        find_recipe("workflows", name)


@pytest.mark.parametrize("name", ["existing", "local", "pbs", "slurm"])
def test_shipped_clusters_parse(name, monkeypatch, capsys):
    """Each is the cluster of a workflow as it stands."""
    monkeypatch.setattr("sys.argv", ["surrogate-flow"])
    with pytest.raises(SystemExit) as ended:
        main(
            ["fit", "--data=heat2d", "--model=fully_connected", "--print_config"]
            + [f"--data.cluster={name}"]
        )
    assert ended.value.code == 0
    recipe = yaml.safe_load(find_recipe("workflows/clusters", name).read_text())
    assert recipe["class_path"] in capsys.readouterr().out


@pytest.mark.parametrize(("name", "kind"), [("wandb", "Wandb"), ("mlflow", "MLFlow")])
def test_shipped_loggers_parse(name, kind, monkeypatch, capsys):
    """Each is the logger of a trainer as it stands; so are false and bare classes."""
    monkeypatch.setattr("sys.argv", ["surrogate-flow"])
    line = ["fit", "--data=heat2d", "--model=fully_connected", "--print_config"]
    for given in (name, f"{ROOT}/models/loggers/{name}.yaml"):
        with pytest.raises(SystemExit) as ended:
            main([*line, "--trainer.logger", given])
        assert ended.value.code == 0
        logger = yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]
        recipe = yaml.safe_load(find_recipe("models/loggers", name).read_text())
        assert logger["class_path"].endswith(f".{kind}Logger")
        assert logger["init_args"].items() >= recipe["init_args"].items()
    for given in ("false", "null", "CSVLogger", "[CSVLogger, TensorBoardLogger]"):
        assert given_recipe("--trainer.logger", given) is None


def test_class_at_finds_classes():
    """A class path gives the class."""
    assert class_at("surrogate_flow.nn.FullyConnected") is FullyConnected


def test_plain_recipe_round_trip():
    """A partial of a class becomes plain values that rebuild it."""
    plain = plain_recipe(partial(FullyConnected, widths=(3, 4)))
    assert class_at(plain["class_path"]) is FullyConnected
    assert plain["init_args"] == {"widths": [3, 4]}


@pytest.mark.parametrize(
    "factory",
    [lambda spec, window: None, partial(FullyConnected, widths=torch.ones(2))],
)
def test_plain_recipe_refuses_code(factory):
    """What could not be rebuilt from data is refused when the surrogate is made."""
    with pytest.raises(RecipeError, match="checkpoint"):
        plain_recipe(factory)
