"""What all solvers have in common."""

import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from surrogate_flow import solvers
from surrogate_flow.fields import FieldSpec, Parameter, Variable
from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.fields.errors import UserError
from surrogate_flow.solvers import (
    Combined1D,
    GrayScott2D,
    GridSolver,
    Heat2D,
    HeatPlate,
    Lorenz,
    NavierStokes2D,
    grid,
)
from surrogate_flow.solvers.solver import Run, Solver, spec_of
from surrogate_flow.testing import check_solver

EXPORTED = [getattr(solvers, name) for name in solvers.__all__]
SHIPPED = [
    kind
    for kind in EXPORTED
    if issubclass(kind, solvers.Solver) and not inspect.isabstract(kind)
]


#: Those whose steps a user counts by `steps` and `time_step`; PyPDE needs an equation first.
COUNTED = [
    kind
    for kind in SHIPPED
    if {"steps", "time_step"} <= {*inspect.signature(kind).parameters}
    and kind is not solvers.PyPDE
]


@pytest.mark.parametrize("solver", COUNTED, ids=lambda solver: solver.__name__)
def test_steps_are_where_the_docstring_says(solver):
    """The first step, number 0, is one time step behind the initial state, which is none."""
    made = solver(steps=3, time_step=0.25)
    words = " ".join(solver.__doc__.split())
    (formula,) = re.findall(r"Step k is at ``(.+?)``", words)
    said = [eval(formula, {"k": k, "time_step": 0.25}) for k in range(3)]
    np.testing.assert_allclose(made.spec.times, said)
    given = {v.name: np.zeros(made.spec.shape) for v in made.spec.inputs}
    middle = {p.name: p.at(0.5) for p in made.spec.parameters}
    fields = made.solve(middle | given)
    np.testing.assert_allclose(next(fields).time[0], said[0])


def named(*made: GridSolver) -> pytest.MarkDecorator:
    """Run a test with each of these solvers."""
    ids = [type(solver).__name__ for solver in made]
    return pytest.mark.parametrize("solver", made, ids=ids)


@named(
    Combined1D(8, 8, steps=4),
    GrayScott2D(8, steps=4, spots=1),
    Heat2D((8, 8), steps=4),
    HeatPlate((8, 3), steps=4),
    Lorenz(steps=250),
    NavierStokes2D(points=16, steps=4),
)
def test_the_steps_already_yielded_stay_as_they_were(solver: GridSolver) -> None:
    """A step may be kept while the solver goes on."""
    parameters = {p.name: p.at(0.3) for p in solver.spec.parameters}
    kept = list(solver.solve(parameters))
    for one, other in zip(kept, solver.solve(parameters), strict=True):
        xr.testing.assert_identical(one, other)


@named(
    Combined1D(8, 8, steps=50),
    GrayScott2D(8, steps=50, spots=1, time_step=1.0),
    Heat2D((8, 8), steps=50),
    HeatPlate((8, 3), steps=50),
    NavierStokes2D(points=16, steps=50, substep=1.0),
)
def test_labels_cost_a_step_of_any_solver_little(solver: GridSolver) -> None:
    """They are those of the spec, and a step takes few calls once a simulation has run."""
    spec = solver.spec
    parameters = {p.name: p.at(0.5) for p in spec.parameters}
    arrays = list(solver.fields(parameters))
    bare = type(solver).fields
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    try:
        type(solver).fields = lambda self, _: iter(arrays)
        encoder = Encoder(spec, 0)
        for k, step in enumerate(solver.solve(parameters)):
            whole = spec.dataset(arrays[k], spec.times[k : k + 1], parameters)
            xr.testing.assert_identical(step, whole)
            for attributes in (step.attrs, step[spec.variables[0].name].attrs):
                attributes["mine"] = "of this step alone"
        steps = solver.solve(parameters)
        kept = [next(steps)]
        sys.setprofile(count)
        for k in range(1, 50):
            kept.append(next(steps))
            encoder.convert(kept[k], k)
    finally:
        sys.setprofile(None)
        type(solver).fields = bare
    assert calls / 49 < 120
    got = xr.concat(kept, "time")
    xr.testing.assert_identical(
        got, spec.dataset(np.concatenate(arrays), spec.times, parameters)
    )


@named(
    Combined1D(10_000, 20_000, steps=1000),
    GrayScott2D(1000, steps=1000),
    Heat2D((1000, 1000), steps=1000),
    HeatPlate((128, 24)),
    Lorenz(steps=100_000),
    NavierStokes2D(points=1024, steps=1000),
)
def test_a_large_solver_is_a_small_message(solver: GridSolver) -> None:
    """What is sent to a worker does not grow with the grid, nor with use."""
    digest = solver.spec.digest()
    if isinstance(solver, HeatPlate):
        solver.setup(1)
    message = pickle.dumps(solver)
    assert len(message) < 600
    assert pickle.loads(message).spec.digest() == digest


class Breaks(Heat2D):
    """Ends with an error of its own behind its fourth step."""

    def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
        yield from itertools.islice(super().fields(parameters), 4)
        raise FloatingPointError("blown up")


class Doubled(Heat2D):
    """Has its own `solve`."""

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        for step in super().solve(parameters):
            yield 2 * step


def test_small_steps_go_together_and_large_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study has the same steps as `solve`, those before an error, too."""
    monkeypatch.setattr(grid, "TOGETHER", math.inf)
    solver = Heat2D((100, 50), steps=30)
    run = Run({p.name: p.at(0.3) for p in solver.spec.parameters})
    blocks = [*solver.start(run)]
    assert {step.nbytes for step in blocks[:-1]} == {blocks[0].nbytes}
    assert blocks[0].temperature.nbytes <= grid._SMALL < 1.2 * blocks[0].nbytes
    steps = xr.concat(solver.solve(run.parameters), "time")
    xr.testing.assert_identical(xr.concat(blocks, "time"), steps)
    doubled = Doubled((100, 50), steps=30).start(run)
    xr.testing.assert_equal(xr.concat(doubled, "time"), 2 * steps)
    large = Heat2D((400, 200), steps=3).start(run)
    assert [step.sizes["time"] for step in large] == [1, 1, 1]
    broken = Breaks((100, 50), steps=30).start(run)
    xr.testing.assert_identical(next(broken), steps.isel(time=slice(4)))
    with pytest.raises(FloatingPointError, match="blown up"):
        next(broken)


def test_a_solver_of_a_script_goes_to_a_worker_by_value() -> None:
    """With its cached properties, which hold a lock in Python 3.11."""

    class Local(GridSolver):
        @functools.cached_property
        def spec(self) -> FieldSpec:
            return FieldSpec(
                (Parameter("a", 0, 1),), (Variable("u"),), (), (), self.times
            )

        def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
            yield np.full((self.steps, 1), parameters["a"])

    check_solver(Local(steps=3, time_step=0.5))


class Squares(GridSolver):
    """x², two steps at once: a solver that gives arrays alone."""

    def __init__(self, cells: int = 3, width: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(steps=5, time_step=0.5)
        self.cells = self._count("cells", cells)
        self.width = self._bounds("width", width, "m", least=0.0)

    @functools.cached_property
    def spec(self) -> FieldSpec:
        return FieldSpec(
            (Parameter("a", 0.0, 1.0),),
            (Variable("u"), Variable("v")),
            ("x",),
            (self.cells,),
            self.times,
        )

    def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
        x = np.arange(self.cells) + parameters["a"]
        for count in (2, 2, 1):
            yield np.tile([x**2, -(x**2)], (count, 1, 1))


def test_arrays_become_datasets() -> None:
    """Blocks of steps get the names and times of the spec, in their own precision."""
    steps = list(Squares().solve({"a": 0.5}))
    assert [list(s.time.values) for s in steps] == [[0.5, 1.0], [1.5, 2.0], [2.5]]
    for step in steps:
        assert step.u.dtype == np.float64
        assert step.v[0].values.tolist() == [-0.25, -2.25, -6.25]
    check_solver(Squares(), {"a": 0.25})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_a_solver_may_go_on_with_the_array_that_it_has_yielded(kind: type) -> None:
    """In each precision."""

    class Counts(Squares):
        def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
            u = np.zeros((1, 2, self.cells), kind)
            for _ in range(5):
                u += 1
                yield u

    kept = list(Counts().solve({"a": 0.5}))
    assert [float(step.u[0, 0]) for step in kept] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 3), r"\(time, channel, \*space\) = \(up to 5, \(2, 3\)\), got .*3, 3"),
        ((2, 2, 5), r"got the shape \(2, 2, 5\) after 0 steps.*ghost cells"),
        ((6, 2, 3), r"up to 5.*got the shape \(6, 2, 3\).*initial state"),
    ],
)
def test_arrays_of_another_shape_are_refused(shape: tuple, message: str) -> None:
    """Channels, cells or steps too many are neither dropped nor retried."""

    class Wrong(Squares):
        def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
            yield np.zeros(shape)

    with pytest.raises(SpecMismatch, match=message):
        list(Wrong().solve({"a": 0.5}))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "NoneType"),
        ({"u": np.zeros(3)}, "dict"),
        (1.5, "float"),
        ([[1.0, 2.0], [3.0]], "list"),
        (np.zeros((1, 2, 3), complex), "ndarray of complex128"),
        (np.array(1.0), "ndarray of float64"),
        (np.zeros((2, 3)), r"the shape \(2, 3\)"),
    ],
)
def test_what_is_no_array_of_the_grid_is_named_with_its_line(given, shown) -> None:
    """With the shape that is expected, and the user's own line."""

    class Wrong(Squares):
        def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
            yield from self.inner()

        def inner(self) -> Iterator[np.ndarray]:
            yield given  # here

    line = r"\nAt .*test_solvers.py:\d+, in inner: yield given"
    with pytest.raises(
        SpecMismatch, match=rf"fields: expected .*2, 3.*got {shown} .*{line}"
    ):
        list(Wrong().solve({"a": 0.5}))


def test_fields_without_yield_are_named() -> None:
    """A plain function, and one that returns its array."""

    class Plain(Squares):
        def fields(self, parameters: Mapping[str, float]) -> Iterator[np.ndarray]:
            return self.width if parameters["a"] else None

    for a, shown in ((0.0, "NoneType"), (1.0, "float")):
        with pytest.raises(SpecMismatch, match=f"got {shown} .*return in place of y"):
            list(Plain().solve({"a": a}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 0}, r"Squares: cells: expected a whole number >= 1, got 0\."),
        ({"cells": np.nan}, "cells: .*got nan"),
        ({"cells": np.inf}, "cells: .*got inf"),
        ({"width": (1.0,)}, r"width: expected two values, got \(1.0,\)"),
        ({"width": (1.0, 1.0)}, r"width: expected finite, low < high, low >= 0"),
        ({"width": (np.nan, 1.0)}, r"got \(nan, 1.0\)\. Give both in m\."),
        ({"width": (0.0, np.inf)}, r"got \(0.0, inf\)"),
    ],
)
def test_arguments_of_any_solver_are_checked(arguments: dict, message: str) -> None:
    """The error names the class, the argument, what is expected and the units."""
    with pytest.raises(UserError, match=message):
        Squares(**arguments)


@pytest.mark.parametrize("parameters", [{}, {"a": np.nan}, {"b": 1.0}])
def test_parameters_of_any_solver_are_checked(parameters: dict) -> None:
    """Before the first step, and before anything is computed."""
    with pytest.raises(UserError):
        next(Squares().solve(parameters))


def test_the_solver_of_the_page(tmp_path: Path, monkeypatch) -> None:
    """It keeps the laws, and decays as exp(-π² t) up to the error of its steps."""
    page = Path(__file__).parents[2] / "docs" / "solvers.md"
    (code,) = re.findall(
        r"```python\n(from functools.*?)```", page.read_text(), re.DOTALL
    )
    (tmp_path / "my_solvers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("my_solvers").Diffusion
    solver = kind(cells=16)
    solver.setup(1)
    *_, last = solver.solve({"height": 1.5})
    exact = 1.5 * np.exp(-(np.pi**2) * 0.1)
    assert float(last.u.max()) == pytest.approx(exact, rel=0.03)
    check_solver(kind(cells=16, steps=5))


def test_a_spec_may_be_set_in_init() -> None:
    """Where it depends on the arguments; without any, the words say where to put it."""

    class Sized(Solver):
        def __init__(self, cells: int = 3) -> None:
            self.spec = dataclasses.replace(Squares().spec, shape=(cells,))

        def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
            yield from ()

    class Without(Sized):
        def __init__(self) -> None: ...

    assert spec_of(Sized(5)).shape == (5,)
    with pytest.raises(UserError, match=r"Without.spec: expected.*self.spec = Field"):
        spec_of(Without())
