"""The description of what a simulation yields: parameters, fields, grid and times.

The axes are called the same everywhere: ``batch``, ``time`` (steps of one simulation),
``channel`` (one for each variable), then the dims of the grid, written ``*space`` in
the types.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import msgspec
import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.parameter import Parameter, apart, arguments
from surrogate_flow.fields.quantities import (
    SURROGATE,
    Coordinate,
    Variable,
    attributes,
    described,
    named,
    numbers,
)
from surrogate_flow.fields.staggered import sizes_of, smallest_box

__all__ = ["Coordinate", "FieldSpec", "Parameter", "Variable", "of_fields"]

# What a parameter may lack, as JSON has it.
_OPTIONAL: dict[str, Any] = {
    field.name: [] if field.default == () else field.default
    for field in dataclasses.fields(Parameter)[4:]
}


@dataclass(frozen=True)
class FieldSpec:
    """The shape, names and units of everything that one solver yields.

    It is plain data, known before anything runs. Checkpoints hold it, and restore it
    without importing the solver.

    Parameters
    ----------
    parameters : tuple of Parameter
        The inputs of a simulation, in the order of every parameter vector. Each
        component of a vector is one.
    variables : tuple of Variable
        The fields, in the order of the ``channel`` axis. Each component of a vector is
        one.
    dims : tuple of str
        Names of the axes of the grid, in the order of ``*space``.
    shape : tuple of int
        Their sizes; where variables have dims of their own, those of the smallest box
        that holds all of them.
    times : tuple of float
        The time of every step of a simulation, ascending.
    time_units : str
        For example ``"s"``.
    coordinates : tuple of Coordinate
        Positions along the dims.
    cells : tuple of tuple of int, optional
        Node numbers of each cell of an unstructured mesh, from 0; ``None`` on a
        structured grid.
    dtype : str
        Of the fields in the stream and in the reservoir.
    inputs : tuple of Variable
        Fields on the same grid that a simulation is given, one of each, rather than
        solves for: a coefficient, a geometry, an initial state.

    Raises
    ------
    ArgumentError
        If names repeat, sizes disagree, times are not finite and ascending, or cells
        are not of two or more different nodes.
    """

    parameters: tuple[Parameter, ...]
    variables: tuple[Variable, ...]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    times: tuple[float, ...]
    time_units: str = ""
    coordinates: tuple[Coordinate, ...] = ()
    cells: tuple[tuple[int, ...], ...] | None = None
    dtype: str = "float32"
    inputs: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        self._normalise()
        grids = sizes_of(self)
        object.__setattr__(self, "shape", smallest_box(self, grids))
        taken = {"time": "the time axis"}
        taken |= {
            v.name + SURROGATE: f"the prediction of {v.name!r}" for v in self.variables
        }
        taken |= {
            v.name: "a prediction, in files of a run"
            for v in self.variables
            if v.name.endswith(SURROGATE)
        }
        if self.cells is not None:
            taken["cells"] = "those of the mesh"
        for what, names in (
            ("a dim", [*self.dims, *(dim for dim in grids if dim not in self.dims)]),
            # A coordinate that is named after its own dim is that dim's index.
            ("a coordinate", [c.name for c in self.coordinates if c.name != c.dim]),
            ("a parameter", [p.name for p in self.parameters]),
            ("a parameter", {p.of for p in self.parameters} - {""}),
            ("a variable", [v.name for v in self.variables]),
            ("a variable", {v.of for v in self.variables} - {""}),
            ("an input field", [v.name for v in self.inputs]),
        ):
            for name in names:
                if name in taken:
                    raise ArgumentError(
                        f"FieldSpec: expected names that differ, got {name!r} for "
                        f"{what} and for {taken[name]}. Rename one."
                    )
                taken[name] = what
        if not self.variables or not self.times:
            raise ArgumentError(
                "FieldSpec: expected at least one variable and one time, got "
                f"{len(self.variables)} variables and {len(self.times)} times."
            )
        if len(self.dims) != len(self.shape) or min(self.shape, default=1) < 1:
            raise ArgumentError(
                "FieldSpec: expected one positive size for each of the dims "
                f"{self.dims}, got the sizes {self.shape}."
            )
        for before, after in itertools.pairwise((-math.inf, *self.times, math.inf)):
            if not before < after:
                raise ArgumentError(
                    "FieldSpec", "finite, ascending times", f"{after} after {before}"
                )
        named = [c.name for c in self.coordinates]
        sizes = grids
        for c in self.coordinates:
            if named.count(c.name) > 1:
                raise ArgumentError(f"FieldSpec: coordinate {c.name!r} is given twice.")
            if sizes.get(c.dim) != len(c.values):
                raise ArgumentError(
                    f"FieldSpec: coordinate {c.name!r} has {len(c.values)} values "
                    f"along {c.dim!r}, whose size is {sizes.get(c.dim)}."
                )
        if self.dtype != "float32":
            raise ArgumentError("FieldSpec: dtype", "'float32'", repr(self.dtype))

    def _normalise(self) -> None:
        # Equal specs must have equal digests, whether given as 1 or 1.0, list or tuple.
        for name, kind in (
            ("parameters", Parameter),
            ("variables", Variable),
            ("inputs", Variable),
            ("dims", str),
            ("coordinates", Coordinate),
            ("shape", Integral),
            ("times", object),
        ):
            values = getattr(self, name)
            if isinstance(values, Iterable) and not isinstance(values, str):
                values = tuple(values)
            if not (
                isinstance(values, tuple) and all(isinstance(v, kind) for v in values)
            ):
                words = {str: "text", Integral: "whole numbers", object: "numbers"}
                expected = f"a tuple of {words.get(kind, kind.__name__)}"
                raise ArgumentError(f"FieldSpec: {name}", expected, repr(values))
            object.__setattr__(self, name, values)
        for name in ("parameters", "variables", "inputs"):
            components = (quantity.components() for quantity in getattr(self, name))
            object.__setattr__(self, name, tuple(itertools.chain(*components)))
        for dim in self.dims:
            named(dim, self.time_units, "FieldSpec: dim")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        object.__setattr__(self, "times", numbers(self.times, "FieldSpec: times"))
        if self.cells is not None:
            object.__setattr__(self, "cells", self._checked_cells())

    @property
    def staggered(self) -> bool:
        """Whether some variables have dims of their own."""
        return any(v.dims and v.dims != self.dims for v in self.variables)

    def place(self, variable: Variable) -> tuple[slice, ...]:
        """Return where a variable lies in the box of all variables, at its begin."""
        if not self.staggered:
            return tuple(slice(None) for _ in self.dims)
        sizes = sizes_of(self)
        return tuple(slice(sizes[dim]) for dim in variable.dims or self.dims)

    def part(self, fields: Any, channel: int) -> Any:
        """Return a variable of fields ``(..., channel, *space)``, on its own grid."""
        return fields[(..., channel, *self.place(self.variables[channel]))]

    def shape_of(self, variable: Variable) -> tuple[int, ...]:
        """Return the shape of a variable on its own grid."""
        pairs = zip(self.place(variable), self.shape, strict=True)
        return tuple(n if s.stop is None else s.stop for s, n in pairs)

    def _checked_cells(self) -> tuple[tuple[int, ...], ...]:
        if len(self.dims) != 1:
            raise ArgumentError(
                "FieldSpec: cells", "a mesh, whose fields have one dim", self.dims
            )
        assert self.cells is not None
        cells = [c if isinstance(c, Iterable) else (c,) for c in self.cells]
        cells = [tuple(cell) for cell in cells]
        nodes, every = self.shape[0], list(itertools.chain.from_iterable(cells))
        found = np.array(numbers(every, "FieldSpec: cells"))
        wrong = found[~((found >= 0) & (found < nodes) & (found % 1 == 0))]
        if wrong.size or not cells:
            remedy = ""
            if found.min(initial=nodes) == 1 and found.max(initial=0) == nodes:
                remedy = "They begin at 1: subtract 1."
            elif found.min(initial=0) < 0:
                remedy = "Cells may differ in length: leave out what fills them up."
            raise ArgumentError(
                "FieldSpec: cells",
                f"numbers of nodes from 0 to {nodes - 1}",
                f"{wrong[0]:g}" if wrong.size else "no cell",
                remedy,
            )
        for cell in cells:
            if len(set(cell)) != len(cell) or len(cell) < 2:
                what = "cells of different nodes, two or more"
                raise ArgumentError("FieldSpec: cells", what, cell)
        return tuple(tuple(map(int, cell)) for cell in cells)

    @property
    def steps(self) -> int:
        """Number of steps of a simulation."""
        return len(self.times)

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step, ``(channel, *space)``."""
        return (len(self.variables), *self.shape)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step in the stream and in the reservoir."""
        return math.prod(self.step_shape) * np.dtype(self.dtype).itemsize

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input fields of a simulation, ``(input, *space)``."""
        return (len(self.inputs), *self.shape)

    @property
    def input_bytes(self) -> int:
        """Bytes of the input fields of a simulation."""
        return math.prod(self.input_shape) * np.dtype(self.dtype).itemsize

    @property
    def low(self) -> Float[np.ndarray, " parameter"]:
        """Lower bounds of the parameters."""
        return np.array([p.low for p in self.parameters], dtype=np.float64)

    @property
    def high(self) -> Float[np.ndarray, " parameter"]:
        """Upper bounds of the parameters."""
        return np.array([p.high for p in self.parameters], dtype=np.float64)

    def axis(self, dim: str) -> Float[np.ndarray, " point"]:
        """Positions along a dim: of its coordinate, or else 0, 1, 2, ...

        The coordinate is the one of the dim's name, or else the first along the dim.
        """
        along = {c.name: c.values for c in self.coordinates if c.dim == dim}
        size = self.shape[self.dims.index(dim)]
        values = along.get(dim) or next(iter(along.values()), tuple(range(size)))
        return np.array(values, dtype=np.float64)

    def vector(self, parameters: Mapping[str, Any]) -> Float[np.ndarray, " parameter"]:
        """Return the values of named parameters in the order of `parameters`.

        A choice may be its word or its index, a vector whole or by component.

        Raises
        ------
        ArgumentError
            If a name is unknown or missing, or a value is not a finite number.
        """
        names = [p.name for p in self.parameters]
        if not isinstance(parameters, Mapping):
            example = ", ".join(f"{p.name!r}: {p.low:g}" for p in self.parameters)
            raise ArgumentError(
                "parameters", f"a mapping such as {{{example}}}", repr(parameters)
            )
        parameters = apart(self.parameters, parameters)
        for name in parameters:
            if name not in names:
                hint = nearest(name, names)
                raise ArgumentError(f"Unknown parameter {name!r}. {hint}")
        missing = [name for name in names if name not in parameters]
        if missing:
            raise ArgumentError(
                f"Missing parameters {missing}: expected a value for each of "
                f"{names}, got {list(parameters)}."
            )
        try:
            numbers = [p.number(parameters[p.name]) for p in self.parameters]
            vector = np.array(numbers, dtype=np.float64)
        except ArgumentError:
            raise
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"Expected a number for each parameter, got {dict(parameters)}."
            ) from error
        for p, value in zip(self.parameters, vector, strict=True):
            if not math.isfinite(value) or (p.whole and value % 1):
                kind = "whole number" if p.whole else "finite value"
                raise ArgumentError(
                    f"Expected a {kind} for the parameter {p.name!r}, got {value}."
                )
            if p.log and value <= 0:
                raise ArgumentError(
                    f"Parameter {p.name!r}", "a value > 0, as it is log-uniform", value
                )
        return vector

    def arguments(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return named parameters as a solver has them: words, vectors as arrays."""
        if not any(p.choices or p.of for p in self.parameters):
            return parameters
        return arguments(self.parameters, self.vector(parameters))

    def physical(
        self, fields: Float[np.ndarray, "time channel *space"]
    ) -> Float[np.ndarray, "time channel *space"]:
        """Return u of normalised fields ``(u - offset) / scale``.

        In double precision, if there are any offsets and scales.
        """
        if all(v.plain for v in self.variables):
            return fields
        channels = (-1, *(1 for _ in self.dims))
        offset, scale = (
            np.reshape([getattr(v, name) for v in self.variables], channels)
            for name in ("offset", "scale")
        )
        physical: Float[np.ndarray, "time channel *space"] = offset + scale * fields
        return physical

    def dataset(
        self,
        fields: Float[np.ndarray, "*sample time channel *space"],
        times: Sequence[float],
        parameters: Mapping[str, Any],
    ) -> xr.Dataset:
        """Return fields with names, coordinates and units.

        Those of several samples, each with its own parameters, have a dim ``sample``.
        """
        parameters = apart(self.parameters, parameters)
        lead = ("sample",) * (fields.ndim - 2 - len(self.dims))
        coords: dict[str, Any] = {
            "time": ("time", list(times), attributes(self.time_units, "time"))
        }
        for name in lead:
            named = attributes("", "number of the sample")
            coords[name] = (name, np.arange(len(fields), dtype=np.int32), named)
        for c in self.coordinates:
            coords[c.name] = (c.dim, list(c.values), described(c))
        for p in self.parameters:
            given = parameters[p.name]
            values = np.asarray(given if lead else p.number(given), dtype=np.float64)
            coords[p.name] = (lead, values, described(p))
        return xr.Dataset(
            {
                v.name: (
                    (*lead, "time", *(v.dims or self.dims)),
                    self.part(fields, i),
                    described(v),
                )
                for i, v in enumerate(self.variables)
            },
            coords=coords,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the spec as dicts, lists, strings and numbers."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        # Without what it does not use, a spec is what it was before there was any.
        given = (*self.variables, *self.inputs)
        fields = plain["variables"] + plain["inputs"]
        for own, variable in zip(given, fields, strict=True):
            if own.plain:
                del variable["offset"], variable["scale"]
            if not own.masked:
                del variable["masked"]
            for name in ("of", "dims"):
                if not variable[name]:
                    del variable[name]
            del variable["size"]
        if not self.inputs:
            del plain["inputs"]
        for coordinate in plain["coordinates"]:
            if not coordinate["long_name"]:
                del coordinate["long_name"]
        for parameter in plain["parameters"]:
            for name, default in _OPTIONAL.items():
                if parameter[name] == default:
                    del parameter[name]
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> FieldSpec:
        """Return the spec of `to_plain`."""
        try:
            return msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise ArgumentError(f"FieldSpec: {error}.") from error

    def digest(self) -> str:
        """Return a short hash that specs of the same fields share, in any process."""
        text = json.dumps(of_fields(self.to_plain()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_fields(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a plain spec says of the fields.

    That a parameter only makes the initial state says what networks see of it: with or
    without, data sets and checkpoints are of the same simulations.
    """
    parameters = [
        {name: value for name, value in p.items() if name != "initial"}
        for p in plain["parameters"]
    ]
    return {**plain, "parameters": parameters}
