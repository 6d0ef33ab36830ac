"""Classes of a user's own, with arguments of any kind: what can be built is let pass."""

import sys

import pytest
import yaml
from jsonargparse import lazy_instance

from surrogate_flow.cli.checks import overrides, spelling
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.surrogate.surrogate import Surrogate

MODULE = """
import datetime, decimal, typing
from collections.abc import Callable

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

class Solver:
    def __init__(
        self,
        scheme: Scheme | None = None,
        limiter: Limiter | None = None,
        old: typing.Callable | None = None,
        new: Callable | None = None,
        full: Callable[[float], float] | None = None,
        gap: datetime.timedelta | None = None,
        dt: decimal.Decimal | None = None,
    ): ...

class Owner:
    def __init__(self, solver: Solver, cells: int = 1): ...
"""
VALID = [
    "scheme: {class_path: own_classes.Euler, init_args: {order: 2}}",
    "scheme: own_classes.Euler",
    "limiter: {class_path: own_classes.MinMod}",
    "limiter: {class_path: own_classes.minmod}",
    "limiter: own_classes.minmod",
    "old: own_classes.minmod",
    "new: own_classes.minmod",
    "new: {class_path: own_classes.MinMod}",
    "full: own_classes.minmod",
    "gap: '1:00:00.5'",
    "dt: '0.1'",
    "dt: 'NaN'",
]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, where Python finds it."""
    (tmp_path / "own_classes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import own_classes

    yield own_classes
    sys.modules.pop("own_classes", None)


@pytest.mark.parametrize("text", VALID)
def test_what_jsonargparse_takes_is_let_pass(text, own, tmp_path):
    """Protocols, functions, and text that says a number or a time."""
    path = tmp_path / "own.yaml"
    path.write_text(
        f"solver: {{class_path: own_classes.Solver, init_args: {{{text}}}}}"
    )
    spelling.check_recipe(path, own.Owner)
    recipe = spelling.read_recipe(path)
    overrides.check_whole(recipe, own.Owner)
    name, _, value = text.partition(": ")
    spelling.check_override(f"solver.{name}", value, recipe, own.Owner)
    changed = overrides.overridden(recipe, f"solver.{name}", value, own.Owner)
    overrides.check_whole(changed, own.Owner)


def test_what_stands_behind_a_protocol_is_checked(own, tmp_path):
    """The arguments of the class that is named there."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "solver: {class_path: own_classes.Solver, init_args: {scheme: "
        "{class_path: own_classes.Euler, init_args: {oder: 2}}}}"
    )
    with pytest.raises(RecipeError, match=r"solver\.scheme\.oder.*'order'"):
        spelling.check_recipe(path, own.Owner)


def settle(recipe, owner, *given):
    """What a command line goes through, and the recipe that comes of it."""
    for dotted, value in given:
        spelling.check_override(dotted, value, recipe, owner)
        recipe = overrides.overridden(recipe, dotted, value, owner)
    overrides.check_whole(recipe, owner)
    return recipe


HEAT = {"class_path": "surrogate_flow.solvers.Heat2D", "init_args": {"cells": [4, 4]}}


@pytest.mark.parametrize(
    ("name", "value", "then"),
    [
        ("reservoir", "{class_path: FIFO}", ("reservoir.capacity", "9")),
        ("reservoir", "{class_path: FIFO, init_args: {capacity: 77}}", None),
        ("sampler", "{class_path: Sobol}", ("sampler.seed", "9")),
        ("solver", "{class_path: Lorenz}", ("solver.time_step", "0.1")),
    ],
)
def test_a_bare_name_in_yaml_is_a_class(name, value, then, tmp_path):
    """In an override and in a recipe, with its arguments there or behind it."""
    behind = (then,) if then else ()
    settle({"solver": HEAT}, OnlineData, (name, value), *behind)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"solver": HEAT, name: yaml.safe_load(value)}))
    spelling.check_recipe(path, OnlineData)
    settle(spelling.read_recipe(path), OnlineData, *behind)


def test_options_of_a_class_that_a_recipe_names_barely():
    """They are those of that class."""
    recipe = {"solver": HEAT, "reservoir": "FIFO"}
    changed = settle(recipe, OnlineData, ("reservoir.capacity", "9"))
    assert changed["reservoir"]["init_args"] == {"capacity": 9}
    with pytest.raises(RecipeError, match="'capacity'"):
        settle(recipe, OnlineData, ("reservoir.capacit", "9"))


def test_a_wrong_bare_name_in_yaml_names_the_nearest():
    """As it does outside of YAML."""
    with pytest.raises(RecipeError, match=r"no class 'Sobl'.*'Sobol'"):
        settle({"solver": HEAT}, OnlineData, ("sampler", "{class_path: Sobl}"))


class Base:
    """What is wanted."""


class Up(Base):
    """What is there by default."""

    def __init__(self, order: int = 1):
        self.order = order


LAZY = lazy_instance(Up, order=3)
PLAIN = Up()


class Defaults:
    """Arguments with objects as their defaults, and one with none."""

    def __init__(self, lazy: Base = LAZY, plain: Base = PLAIN, no: Base | None = None):
        pass


@pytest.mark.parametrize("name", ["lazy", "plain"])
@pytest.mark.parametrize("middle", ["", "init_args."])
def test_an_object_as_a_default_has_a_class(name, middle):
    """Whose arguments may be given, and are checked."""
    settle({}, Defaults, (f"{name}.{middle}order", "2"))
    with pytest.raises(RecipeError, match=r"oder' of Up\..*'order'"):
        settle({}, Defaults, (f"{name}.{middle}oder", "2"))


def test_no_default_has_no_class():
    """None is one of no class, whose argument could be given."""
    with pytest.raises(RecipeError, match="no has no class yet"):
        settle({}, Defaults, ("no.order", "2"))


@pytest.mark.parametrize(
    "given",
    [
        [("solver", "{cells: [8, 8]}"), ("solver.steps", "3")],
        [("solver", "{init_args: {cells: [8, 8]}}"), ("solver.steps", "3")],
    ],
)
def test_arguments_in_yaml_leave_the_class(given):
    """What is given without a class belongs to the one that was there."""
    solver = settle({"solver": HEAT}, OnlineData, *given)["solver"]
    assert solver["class_path"] == HEAT["class_path"]
    assert solver["init_args"] == {"cells": [8, 8], "steps": 3}


def test_a_recipe_may_name_another_file(tmp_path):
    """Which jsonargparse reads."""
    path = tmp_path / "own.yaml"
    path.write_text("solver: heat.yaml")
    spelling.check_recipe(path, OnlineData)
    settle(spelling.read_recipe(path), OnlineData, ("solver.steps", "3"))


def test_bare_names_that_only_jsonargparse_finds():
    """Of a callable that returns one of several classes."""
    given = ("scheduler", "StepLR"), ("scheduler.step_size", "100")
    recipe = {"spec": None, "network": "surrogate_flow.nn.FullyConnected"}
    settle(recipe, Surrogate, *given)
    settle(recipe, Surrogate, ("scheduler", "{class_path: StepLR}"), given[1])
