"""`PyPDE`: equations as text in a recipe, solved by py-pde."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["PyPDE"]

_AXES = ("x", "y", "z")
# Runge-Kutta in NumPy: the operators alone are compiled, in a tenth of the time.
_METHOD = {"solver": "runge-kutta", "backend": "numpy"}
_METHODS = ("solver", "backend", "dt", "adaptive", "tolerance")


class PyPDE(GridSolver):
    """∂u/∂t = f(u, parameters, x, t), with f as text that py-pde reads.

    Parameters
    ----------
    rhs : mapping of str to str
        The time derivative of each variable, such as ``{u: D * laplace(u) - u}``, with
        the operators of py-pde. It may name variables, parameters, x, y, z and t.
    initial : mapping
        Of each variable: a number, a text that may name parameters and coordinates, or
        ``{low: -0.1, high: 0.1, seed: 0}``, a uniform random number for each cell, the
        same in all simulations.
    grid : mapping of str to sequence
        ``{x: [0, 20, 64]}``: the ends of each axis and its number of cells; x, then y,
        then z.
    parameters : mapping
        Bounds ``D: [0.1, 1.0]``, or more, ``D: {low: 0.1, high: 1.0, log: true}``, with
        the names of `Parameter`.
    bc : str or mapping
        Boundary conditions, as py-pde has them: ``{x: periodic, y: {derivative: 0}}``;
        ``periodic`` for all by default. The text of a value or a derivative may name
        parameters and the other coordinates: ``{x-: {value: wall}}``.
    steps : int
        Number of steps of a simulation; the initial state is not one.
    time_step : float
        Time between two steps. Step k is at ``(k + 1) * time_step``.
    units : mapping of str to str, optional
        Of variables, parameters, axes and ``time``.
    method : mapping, optional
        How py-pde steps in time: `solver` (``runge-kutta``, ``euler``, ``implicit``,
        ``crank-nicolson``, ``scipy`` ...), `backend` (``numpy``, ``numba``), and `dt`,
        at most; without `dt`, or if `adaptive`, it adapts to `tolerance`.

    Raises
    ------
    ArgumentError
        If py-pde or a `FieldSpec` refuses something.
    MissingPackageError
        If py-pde is not installed.

    Notes
    -----
    Finite volumes on a Cartesian grid, second order. What py-pde compiles is compiled
    once a worker: a parameter that `rhs` names is one more field, uniform and constant.
    ``backend: numba`` compiles time stepping, too: a minute for a loop that then takes
    a third of the time.

    Examples
    --------
    >>> solver = PyPDE(
    ...     rhs={"u": "-k * u"}, initial={"u": "x"}, grid={"x": [0, 2, 2]},
    ...     parameters={"k": [0.1, 1.0]}, steps=1, time_step=1.0,
    ... )
    >>> [step] = solver.solve({"k": 1.0})
    >>> step.u.values.round(3)
    array([[0.184, 0.552]])
    """

    def __init__(
        self,
        rhs: Mapping[str, str],
        initial: Mapping[str, Any],
        grid: Mapping[str, Sequence[float]],
        parameters: Mapping[str, Any],
        *,
        bc: str | Mapping[str, Any] = "periodic",
        steps: int = 50,
        time_step: float = 1.0,
        units: Mapping[str, str] | None = None,
        method: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(steps, time_step, "")
        self.rhs = {name: str(text) for name, text in rhs.items()}
        self.initial = dict(initial)
        self.grid = {axis: self._axis(axis, given) for axis, given in grid.items()}
        self.parameters = tuple(self._parameter(*item) for item in parameters.items())
        self.bc = bc if isinstance(bc, str) else dict(bc)
        # Whether boundary conditions name parameters.
        self._bound = (
            _filled(self.bc, {p.name: 0.0 for p in self.parameters}) != self.bc
        )
        self.units = dict(units or {})
        self.method = {**_METHOD, **(method or {})}
        if not grid or tuple(grid) != _AXES[: len(grid)]:
            raise self._wrong("grid", "the axes x, x and y, or x, y and z", [*grid])
        if set(initial) != set(rhs):
            raise self._wrong("initial", f"one for each of {[*rhs]}", [*initial])
        known = [*rhs, *grid, *(p.name for p in self.parameters), "time"]
        self._known("units", self.units, known)
        self._known("method", self.method, _METHODS)
        if (dt := self.method.get("dt")) is not None and not dt > 0:
            raise self._wrong("method: dt", "a time > 0", dt)
        self._try()
        texts = f"{self.rhs} {self.initial} {self.bc}"
        for name in (p.name for p in self.parameters):
            if not re.search(rf"\b{re.escape(name)}\b", texts):
                raise self._wrong(
                    f"parameters: {name}", "a name in rhs, initial or bc", "none there"
                )

    def _axis(self, axis: str, given: Any) -> tuple[float, float, int]:
        """Return lower end, upper end and number of cells."""
        what = f"grid: {axis}"
        if not isinstance(given, Sequence) or len(given) != 3:
            raise self._wrong(what, "[low, high, cells]", given)
        low, high = self._bounds(what, (given[0], given[1]), "")
        return low, high, self._count(what, given[2])

    def _parameter(self, name: str, given: Any) -> Parameter:
        if isinstance(given, Mapping):
            fields = [f.name for f in dataclasses.fields(Parameter)]
            self._known(f"parameters: {name}", given, fields)
            if given.get("choices") or given.get("size"):
                # Expressions are of numbers.
                raise self._wrong(f"parameters: {name}", "a number with bounds", given)
            return Parameter(name, **given)
        if not isinstance(given, Sequence) or len(given) != 2:
            raise self._wrong(f"parameters: {name}", "[low, high]", given)
        return Parameter(name, *given)

    @staticmethod
    def _known(what: str, given: Iterable[str], valid: Sequence[str]) -> None:
        for key in given:
            if key not in valid:
                raise ArgumentError(
                    f"PyPDE: {what}: unknown {key!r}. {nearest(str(key), valid)}"
                )

    @cached_property
    def spec(self) -> FieldSpec:
        """Parameters in, averages of the variables over the cells out."""
        shape = tuple(cells for *_, cells in self.grid.values())
        coordinates = tuple(
            Coordinate(
                axis,
                axis,
                tuple(low + (np.arange(cells) + 0.5) * (high - low) / cells),
                self.units.get(axis, ""),
            )
            for axis, (low, high, cells) in self.grid.items()
        )
        others = f"{self.rhs} {self.bc}"
        return FieldSpec(
            parameters=tuple(
                dataclasses.replace(
                    p,
                    units=self.units.get(p.name, p.units),
                    # Its name is in the text of the initial state alone.
                    initial=p.initial
                    or not re.search(rf"\b{re.escape(p.name)}\b", others),
                )
                for p in self.parameters
            ),
            variables=tuple(Variable(v, self.units.get(v, "")) for v in self.rhs),
            dims=tuple(self.grid),
            shape=shape,
            times=self.times,
            time_units=self.units.get("time", ""),
            coordinates=coordinates,
        )

    @cached_property
    def _named(self) -> list[str]:
        """The parameters that the equations name."""
        texts = " ".join(self.rhs.values())
        names = (p.name for p in self.spec.parameters)
        return [name for name in names if re.search(rf"\b{re.escape(name)}\b", texts)]

    @cached_property
    def _grid(self) -> Any:
        pde = _import()
        periodic = [
            self.bc == "periodic"
            or (isinstance(self.bc, dict) and self.bc.get(axis) == "periodic")
            for axis in self.grid
        ]
        bounds = [[low, high] for low, high, _ in self.grid.values()]
        shape = self.spec.shape
        if self._bound and len(shape) == 1:
            # In one dim py-pde cannot compile conditions that change: a second, of one
            # cell, changes nothing else.
            bounds, shape, periodic = [*bounds, [0, 1]], (*shape, 1), [*periodic, True]
        return pde.CartesianGrid(bounds, shape, periodic=periodic)

    @cached_property
    def _equations(self) -> Any:
        pde = _import()
        rates = {**self.rhs, **dict.fromkeys(self._named, "0")}
        return pde.PDE(rates, bc=self._boundaries[0] if self._bound else self.bc)

    def _boundary(self, quantile: float) -> tuple[Any, list[Any]]:
        """Return the conditions at all ends of all axes, together and each."""
        return self._bounded({p.name: p.at(quantile) for p in self.spec.parameters})

    def _bounded(self, parameters: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        given = _filled(self.bc, parameters)
        if len(self._grid.shape) > len(self.grid):
            given = {**given, _AXES[1]: "periodic"}
        conditions = self._grid.get_boundary_conditions(given)
        return conditions, [end for axis in conditions for end in axis]

    @cached_property
    def _boundaries(self) -> tuple[Any, list[Any]]:
        """Conditions whose compiled code reads the values of `_varying`."""
        conditions, ends = self._boundary(0.5)
        for k in self._varying:
            ends[k].link_value(np.array(ends[k].value, dtype=np.float64))
        return conditions, ends

    @cached_property
    def _varying(self) -> list[int]:
        """Numbers of the ends whose value depends on parameters."""

        def same(name: str) -> bool:
            return np.array_equal(getattr(one, name, 0), getattr(other, name, 0))

        varying: list[int] = []
        pairs = zip(self._boundary(0.3)[1], self._boundary(0.7)[1], strict=True)
        for k, (one, other) in enumerate(pairs):
            if not same("value"):
                varying.append(k)
                one.value = other.value
            if str(one) != str(other) or not same("const"):
                raise self._wrong(
                    "bc", "parameters in values and derivatives alone", self.bc
                )
        return varying

    def _try(self) -> None:
        """Refuse texts that py-pde cannot read, before anything is compiled."""
        pde = _import()
        try:
            self._boundary(0.5)
        except Exception as error:  # of any type: texts are evaluated
            raise self._wrong(
                "bc", "boundary conditions of py-pde", self.bc, _said(error)
            ) from error
        if self._bound:
            self._varying  # noqa: B018 - it refuses, too
        names = [*self.rhs, *self._named, *self.grid, "t"]
        try:
            texts = self._equations.expressions
            symbols = [
                symbol
                for name in self.rhs
                for symbol in pde.tools.expressions.ScalarExpression(
                    texts[name], explicit_symbols=names
                ).vars
            ]
        except Exception as error:
            raise self._wrong(
                "rhs", "expressions of py-pde", self.rhs, _said(error)
            ) from error
        used = self._equations.diagnostics["pde"]["operators"]
        operators = [*self._grid.operators, "dot", "outer", "integral"]
        for what, given, valid in (
            ("operator", used, operators),
            ("name", symbols, names),
        ):
            if unknown := sorted({*given} - {*valid}):
                raise ArgumentError(
                    f"PyPDE: rhs: unknown {what} {unknown[0]!r} in {self.rhs}. "
                    f"{nearest(unknown[0], valid)}"
                )
        kind = self.method["solver"]
        if kind not in (valid := [*pde.solvers.registered_solvers()]):
            raise ArgumentError(
                f"PyPDE: method: unknown solver {kind!r}. {nearest(kind, valid)}"
            )
        self._state({p.name: p.at(0.5) for p in self.spec.parameters})

    def _state(self, parameters: Mapping[str, Any]) -> Any:
        """Return the initial state of a simulation."""
        pde = _import()
        fields = []
        for name in self.rhs:
            given = self.initial[name]
            try:
                if isinstance(given, Mapping):
                    rng = np.random.default_rng(given["seed"])
                    field = pde.ScalarField.random_uniform(
                        self._grid, given["low"], given["high"], rng=rng
                    )
                else:
                    consts = {k: float(v) for k, v in parameters.items()}
                    field = pde.ScalarField.from_expression(
                        self._grid, str(given), consts=consts, dtype=np.float64
                    )
            except Exception as error:
                raise self._wrong(
                    f"initial: {name}",
                    "a number, a text of coordinates and parameters, or low, high and "
                    "seed",
                    repr(given),
                    _said(error),
                ) from error
            fields.append(field)
        fields += [pde.ScalarField(self._grid, parameters[n]) for n in self._named]
        return pde.FieldCollection(fields, dtype=np.float64)

    @cached_property
    def _stepper(self) -> tuple[Any, Any, float]:
        """What advances a state, whose first call compiles it, and its first dt."""
        pde = _import()
        method = dict(self.method)
        kind, dt = method.pop("solver"), method.pop("dt", None)
        if kind in ("euler", "runge-kutta"):
            method.setdefault("adaptive", dt is None)
        try:
            solver = pde.SolverBase.from_name(kind, self._equations, **method)
        except (TypeError, ValueError) as error:
            raise self._wrong(
                "method", f"options of {kind} in py-pde", self.method, _said(error)
            ) from error
        state = self._state({p.name: p.at(0.5) for p in self.spec.parameters})
        # A whole number of them make a step.
        first = 1e-3 * self.time_step if dt is None else float(dt)
        first = self.time_step / math.ceil(self.time_step / first * (1 - 1e-9))
        advance = solver.make_stepper(state, dt=first)
        advance(state, 0.0, self.time_step)
        return solver, advance, first

    def setup(self, cores: int) -> None:
        """Compile, once for all simulations of a worker."""
        pde = _import()
        if cores == 1:
            pde.config["backend.numba.multithreading"] = "never"
        self._stepper  # noqa: B018 - it is cached

    def fields(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[Float[np.ndarray, "1 variable *space"]]:
        """Yield the cell averages of each step; see `GridSolver.fields`."""
        solver, advance, first = self._stepper
        state = self._state(parameters)
        if self._bound:
            ends, given = self._boundaries[1], self._bounded(parameters)[1]
            for k in self._varying:
                ends[k].value[...] = given[k].value
        solver.info["dt"] = first  # which it has adapted to the simulation before
        for k in range(self.steps):
            advance(state, k * self.time_step, (k + 1) * self.time_step)
            yield state.data[: len(self.rhs)].reshape(1, -1, *self.spec.shape)


def _filled(given: Any, parameters: Mapping[str, Any]) -> Any:
    """Return boundary conditions with numbers in the place of names of parameters."""
    if isinstance(given, Mapping):
        return {key: _filled(value, parameters) for key, value in given.items()}
    if not isinstance(given, str):
        return given

    def number(name: re.Match[str]) -> str:
        known = name[0] in parameters
        return f"({float(parameters[name[0]])!r})" if known else name[0]

    return re.sub(r"[^\W\d]\w*", number, given)


def _said(error: BaseException) -> str:
    """Return the first sentence or two of an error."""
    text = str(error).partition("\n")[0].partition(" Values can")[0].strip()
    said = f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text
    return said if said.endswith((".", "?")) else f"{said}."


def _import() -> Any:
    why = ""
    try:
        import pde

        if not hasattr(pde, "CartesianGrid"):
            why = f": {next(iter(pde.__path__))} is another 'pde'"
    except ImportError as error:
        why = f": {error}"
    if why:
        raise MissingPackageError(
            f"PyPDE: py-pde is not installed{why}. Type pip install 'py-pde>=0.59', "
            "also where the workers run."
        )
    return pde
