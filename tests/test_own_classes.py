"""Classes of a user's own, with arguments of any kind: what can be built is let pass."""

import sys

import pytest

from surrogate_flow import overrides, spelling
from surrogate_flow.recipes import RecipeError

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
