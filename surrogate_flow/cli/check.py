"""``surrogate-flow check``: whether a class of the user's keeps the laws of a study."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dask.utils import format_bytes
from rich.console import Console

from surrogate_flow.cli.parser import Parser, parse
from surrogate_flow.cli.recipes import (
    CommandLine,
    find_recipe,
    read_recipe,
    shipped,
)
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import RecipeError, class_at
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import CAPACITY, Autoregressive, Direct
from surrogate_flow.sampling.sampler import Sampler
from surrogate_flow.solvers.solver import Recorded, Solver
from surrogate_flow.testing.law import LawBroken, Laws
from surrogate_flow.testing.sampler import check_sampler
from surrogate_flow.testing.solver import check_solver

__all__ = ["run"]

_STEPS = 20
_GRIDS = {"no dims": (), "a line": (11,), "a plane": (10, 7), "a box": (5, 4, 6)}
# Of a policy, where nothing else is asked for: so small that a store of it gets full.
_SMALL = {"capacity": 40, "threshold": 6}


def run(words: Sequence[str]) -> None:
    """Build a class with the options of a command line, and try the laws on it.

    Raises
    ------
    RecipeError
        If the class cannot be imported, or nothing is known that such a class obeys.
    UserError
        If an option is wrong.
    LawBroken
        If it breaks a law; those before it are printed.
    """
    if not words or words[0].startswith("-"):
        raise RecipeError(
            "check needs the import path of a class first, such as my_module.MySolver."
        )
    given, *options = words
    named = _named(given)
    path, kind = named.path, class_at(named.path)
    if isinstance(kind, type) and issubclass(kind, Solver):
        make = _maker(path, kind, [*named.arguments, *options])
        solver = _built(make)
        if named.every != 1:
            solver = Recorded(solver, named.every)
        figures = partial(_figures, solver, named.capacity)
        _show(given, lambda: check_solver(solver), figures)
        own = [re.sub("^--", "--data.solver.", word) for word in options]
        words = " ".join([named.data, *map(shlex.quote, own)])
        print(
            f"Next: surrogate-flow plan {words} --model fully_connected"
            "    # the dry run of a study"
        )
    elif isinstance(kind, type) and issubclass(kind, Sampler):
        make = _maker(path, kind, options)
        _show(path, lambda: check_sampler(_built(make)))
    else:
        _check_with_torch(path, kind, options)


class _Named(NamedTuple):
    """A class, and what a recipe says of it."""

    path: str
    #: Words that fit takes for it.
    data: str
    arguments: Sequence[str] = ()
    capacity: int | str = CAPACITY
    every: int = 1


def _named(given: str) -> _Named:
    """Return what is named: a class path, FILE.py:CLASS, or a recipe, also by name."""
    file, _, name = given.partition(":")
    if file.endswith(".py") and name:
        folder = str(Path(file).absolute().parent)
        if not Path(file).is_file():
            raise RecipeError(f"No file {file!r} in {Path.cwd()}.")
        if folder not in sys.path:
            sys.path.insert(0, folder)
        path = f"{Path(file).stem}.{name}"
        return _Named(path, f"--data.solver {path}")
    if not given.endswith((".yaml", ".yml")) and given not in shipped("workflows"):
        return _Named(given, f"--data.solver {given}")
    recipe = read_recipe(find_recipe("workflows", given))
    solver, policy = recipe.get("solver"), recipe.get("reservoir")
    if solver is None:
        raise RecipeError(f"{given}: expected a solver, got none in this recipe.")
    solver = {"class_path": solver} if isinstance(solver, str) else solver
    words = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in solver.get("init_args", {}).items()
    ]
    settings = policy.get("init_args") if isinstance(policy, dict) else None
    capacity = (settings or {}).get("capacity", CAPACITY)
    every = recipe.get("every", 1)
    return _Named(solver["class_path"], f"--data {given}", words, capacity, every)


def _figures(solver: Solver, capacity: int | str, laws: Laws) -> Iterator[str]:
    """Yield how fast a solver is, and what its steps take."""
    spec = solver.spec
    yield f"{laws.pace:,.3g} steps/s on this machine, from parameters to arrays"
    if laws.cast:
        yield laws.cast
    step = spec.step_bytes
    yield (
        f"{format_bytes(step)} a step, {format_bytes(step * spec.steps)} a simulation "
        f"of {counted(spec.steps, 'step')}"
    )
    if isinstance(solver, Recorded):
        made = counted(solver.solver.spec.steps, "step")
        yield f"one of {solver.every} steps is kept: the solver makes {made}"
    if isinstance(capacity, int):
        of = ", the default" if capacity == CAPACITY else ""
        size = format_bytes(capacity * (step + spec.input_bytes))
        most = "at most " * bool(spec.inputs)
        yield f"{most}{size} for a reservoir of {capacity:,} steps{of}"
    else:
        yield f"a reservoir of {capacity}, at most"


def _check_with_torch(path: str, kind: Any, options: Sequence[str]) -> None:
    import torch
    from torch import nn

    from surrogate_flow.reservoir import Policy, Store
    from surrogate_flow.testing.network import check_network
    from surrogate_flow.testing.store import check_store

    if isinstance(kind, type) and issubclass(kind, Policy):
        make, spec = _maker(path, kind, options, _SMALL), _spec(3)
        settings = (f"{k}={v}" for k, v in make.keywords.items() if k in _SMALL)
        _show(
            f"{path}, with {', '.join(settings)}",
            lambda: check_store(lambda: Store(spec, Direct(), 4, _built(make))),
        )
    elif isinstance(kind, type) and issubclass(kind, nn.Module):
        make, refusals = _maker(path, kind, options), []
        torch.set_num_threads(1)  # which is faster on small tensors
        for name, shape in _GRIDS.items():
            for window in (Direct(), Autoregressive(2)):
                spec, on = _spec(*shape), f"{path} on {name}, {window}"
                try:
                    make(spec, window)
                except UserError as error:
                    refusals.append(error)
                    Console().print(f"{on}: refused: {error}", soft_wrap=True)
                    continue
                except Exception:
                    pass  # A broken law, and shown as one.
                _show(on, partial(check_network, make, spec, window))
        if len(refusals) == 2 * len(_GRIDS):
            raise LawBroken(f"Broken law: {path} serves some fields.")
    else:
        raise RecipeError(
            f"{path}: expected a class derived from surrogate_flow.Solver, "
            "surrogate_flow.sampling.Sampler, surrogate_flow.reservoir.Policy or "
            f"torch.nn.Module, got {kind!r}."
        )


def _maker(
    path: str, kind: type, options: Sequence[str], preset: Mapping[str, Any] = {}
) -> partial[Any]:
    """Return the class with the arguments of a command line, over those preset."""
    parser = Parser(prog=f"surrogate-flow check {path}", allow_abbrev=False)
    # What builds a network gives it these.
    skip = set[str]() if issubclass(kind, Solver) else {"spec", "window"}
    added = parser.add_class_arguments(kind, skip=skip, fail_untyped=False)
    given = {option.lstrip("-").partition("=")[0] for option in options}
    words = [
        *(f"--{k}={v}" for k, v in preset.items() if k in added and k not in given),
        *options,
    ]
    parser.owner = None  # it is the outermost
    arguments = parse(
        CommandLine(["check", *words]),
        lambda words: parser.instantiate(parser.parse_args(words[1:])),
    )
    return partial(kind, **arguments.as_dict())


def _built(make: Callable[[], Any]) -> Any:
    with Laws().law("it can be built"):
        return make()


def _show(
    name: str,
    check: Callable[[], list[str]],
    figures: Callable[[Any], Iterator[str]] | None = None,
) -> None:
    """Print the laws that hold, the one that is broken, and then figures."""
    console, laws = Console(soft_wrap=True, highlight=False), list[str]()
    broken = ""
    console.print(f"{name}:")
    try:
        with console.status("trying the laws"):
            laws = check()
    except LawBroken as error:
        laws = error.kept
        broken = str(error).partition("\n")[0].removeprefix("Broken law: ")
        raise
    finally:
        for law in laws:
            console.print(f"  [green]✓[/] {law}")
        if broken:
            console.print("  [red]✗[/]", broken, markup=True)
    for line in figures(laws) if figures else ():
        console.print(f"    {line}")


def _spec(*shape: int) -> FieldSpec:
    return FieldSpec(
        parameters=(Parameter("a", 0.0, 1.0), Parameter("b", 0.0, 1.0)),
        variables=(Variable("u"), Variable("v")),
        dims=tuple("xyz"[: len(shape)]),
        shape=shape,
        times=tuple(float(step) for step in range(1, _STEPS + 1)),
    )
