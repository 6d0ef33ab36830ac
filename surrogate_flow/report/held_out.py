"""The held-out simulations of a run at its end: validation.csv and cases.nc."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as L
import xarray as xr

from surrogate_flow.data.module import RunCallback, SurrogateData, data_of
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.names import apart
from surrogate_flow.fields.quantities import attributes
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.staggered import boxed
from surrogate_flow.fields.thinning import Thinning
from surrogate_flow.files import leave, observing
from surrogate_flow.report.records import cut_dims
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["HeldOut", "chosen", "thinned"]

_LIMIT = 1_900_000  # bytes of the fields in cases.nc
_MOST, _LEAST = 40, 12  # times in it

#: Truth and prediction, (time, channel, *space), and the parameters.
_Case = tuple[np.ndarray, np.ndarray, list[float]]


class HeldOut(RunCallback):
    """Writes the errors of each held-out simulation, and the fields of three.

    validation.csv, at the end of a fit and of a test, has a row a simulation of all
    ranks, with the errors of the last validation. cases.nc, at the end of a fit, has
    the best, the median and the worst of them by ``relative_l2``, which autoregressive
    surrogates roll out. What fails is logged, and ends no run.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write both files."""
        data = data_of(trainer)
        if data is not None and not data.ended_untrained(self.trained):
            with observing(f"validation.csv or cases.nc of {self.folder}"):
                table = self._table("val", data, pl_module)
                if table is not None and isinstance(pl_module, Surrogate):
                    self._fields(table, data, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the errors."""
        if (data := data_of(trainer)) is not None:
            with observing(f"validation.csv of {self.folder}"):
                self._table("test", data, pl_module)

    def _table(
        self, stage: str, data: SurrogateData, module: L.LightningModule
    ) -> pd.DataFrame | None:
        """Write the errors of all ranks, which call this together; return them."""
        if not isinstance(module, Surrogate) or (held_out := data.validation) is None:
            return None
        spread: Any = module.spreads[stage]
        points = data.ranks.gather(
            {
                held_out.number(row): held_out.parameters[row].tolist()
                for row in held_out.finished
            }
        )
        if spread.by_simulation is None:
            return None
        known = {number: point for share in points for number, point in share.items()}
        table = _errors(data.spec, spread.by_simulation, known)
        if data.ranks.rank == 0:
            leave(
                self.folder / "validation.csv",
                lambda part: table.to_csv(part, index=False, float_format="%.7g"),
            )
        return table

    def _fields(
        self, table: pd.DataFrame, data: SurrogateData, surrogate: Surrogate
    ) -> None:
        """Write the fields of the chosen simulations; ranks call this together."""
        cases, spec = chosen(table), data.spec
        thin, steps = thinned(spec, len(cases), surrogate.window.inputs)
        mine: dict[str, _Case] = {}
        # A network that fails here leaves the other ranks theirs.
        with observing("What cases.nc has of this process"):
            if (held_out := data.validation) is not None:
                mine = {
                    name: _predicted(surrogate, held_out, held_out.row(k), thin, steps)
                    for name, k in cases.items()
                    if k in held_out and held_out.row(k) in held_out.finished
                }
        shares = data.ranks.gather(mine)
        found = {name: case for share in shares for name, case in share.items()}
        if data.ranks.rank == 0 and found:
            dataset = _dataset(spec, thin, steps, cases, found, table)
            leave(
                self.folder / "cases.nc",
                lambda part: dataset.to_netcdf(part, engine="h5netcdf"),
            )


def chosen(table: pd.DataFrame) -> dict[str, int]:
    """Return the best, the median and the worst simulation, each once.

    Examples
    --------
    >>> table = pd.DataFrame({"simulation": [3, 4, 5], "relative_l2": [0.2, 0.3, 0.1]})
    >>> chosen(table)
    {'best': 5, 'median': 3, 'worst': 4}
    >>> chosen(table[:1])
    {'median': 3}
    """
    finite = table[np.isfinite(table.relative_l2)].sort_values("relative_l2")
    numbers = [int(number) for number in finite.simulation]
    if len(numbers) < 3:
        names = {0: [], 1: ["median"], 2: ["best", "worst"]}[len(numbers)]
        return dict(zip(names, numbers, strict=True))
    middle = numbers[(len(numbers) - 1) // 2]
    return {"best": numbers[0], "median": middle, "worst": numbers[-1]}


def thinned(spec: FieldSpec, cases: int, first: int) -> tuple[Thinning, list[int]]:
    """Return the cells and the steps that there is room for, from the `first` step on.

    Rather fewer times than fewer cells, but at least twelve of them.
    """
    of_cell = max(cases, 1) * 2 * len(spec.variables)
    of_cell *= 4 if all(v.plain for v in spec.variables) else 8
    room = _LIMIT // of_cell
    cut = cut_dims(spec)
    sizes = zip(spec.dims, spec.shape, strict=True)
    cells = math.prod(size for dim, size in sizes if dim not in cut)
    # A node of a mesh has its place, and about two triangles.
    room -= cells // _LEAST if spec.cells is not None else 0
    times = min(max(room // cells, _LEAST), _MOST, spec.steps - first)
    steps = np.linspace(first, spec.steps - 1, times).round().astype(int)
    return Thinning.of(spec, max(room // times, 1), cut), [*map(int, np.unique(steps))]


def _errors(
    spec: FieldSpec, by_simulation: np.ndarray, points: Mapping[int, Sequence[float]]
) -> pd.DataFrame:
    numbers = by_simulation[:, 0].astype(int)
    scales = [v.scale for v in spec.variables]
    columns: dict[str, Any] = {"simulation": numbers}
    unknown = [math.nan] * len(spec.parameters)
    values = np.array([points.get(int(number), unknown) for number in numbers])
    rmse = by_simulation[:, 2:] * scales
    errors = {"relative_l2": by_simulation[:, 1]}
    errors |= {f"rmse_{v.name}": rmse[:, k] for k, v in enumerate(spec.variables)}
    names = apart([p.name for p in spec.parameters], {*columns, *errors})
    columns |= {name: values[:, k] for k, name in enumerate(names)}
    return pd.DataFrame(columns | errors)


def _predicted(
    surrogate: Surrogate,
    held_out: ValidationSet,
    row: int,
    thin: Thinning,
    steps: Sequence[int],
) -> _Case:
    """Return solver and surrogate at some steps of a held-out simulation, thin."""
    spec, inputs = held_out.spec, surrogate.window.inputs
    point = held_out.parameters[row].astype(float).tolist()
    named = dict(zip((p.name for p in spec.parameters), point, strict=True))
    history = held_out.simulation(row, slice(inputs)) if inputs else None
    times = [spec.times[step] for step in steps]
    guess = surrogate.predict(named, times, history, inputs=held_out.given(row))
    fields = [boxed(spec, v, guess[v.name].values) for v in spec.variables]
    predicted = np.stack(fields, axis=1)
    truth = held_out.fields[row, list(steps)]
    shape = (len(steps), *thin.spec.step_shape)
    cells = (slice(None), slice(None), *thin.index)
    truth = thin.spec.physical(truth[cells].reshape(shape))
    predicted = predicted[cells].reshape(shape)
    return truth, np.where(np.isnan(truth), np.nan, predicted), point


def _dataset(
    spec: FieldSpec,
    thin: Thinning,
    steps: Sequence[int],
    cases: Mapping[str, int],
    found: Mapping[str, _Case],
    table: pd.DataFrame,
) -> xr.Dataset:
    thin = thin.apart({"case", "time", "simulation", "relative_l2"})
    names = [name for name in cases if name in found]
    truth, guess = (np.stack([found[name][k] for name in names]) for k in range(2))
    points = np.array([found[name][2] for name in names])
    errors = table.set_index("simulation").relative_l2
    numbers = [cases[name] for name in names]
    coordinates: dict[str, Any] = {
        "case": ("case", names),
        "time": (
            *("time", [spec.times[step] for step in steps]),
            attributes(spec.time_units, "time"),
        ),
        "simulation": ("case", numbers),
        "relative_l2": ("case", [float(errors[number]) for number in numbers]),
        **{
            p.name: ("case", points[:, k], attributes(p.units))
            for k, p in enumerate(thin.spec.parameters)
        },
    }
    return thin.dataset(truth, guess, ("case", "time"), coordinates)
