"""The picture of a run: solver, surrogate and difference."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.report.pictures.drawing import Row, draw, flat, titled
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["picture"]

# Rows of the picture: another simulation, and another share of the time axis, each.
_MOMENTS = (0.03, 0.1, 0.5)


def picture(surrogate: Surrogate, held_out: ValidationSet) -> Figure:
    """Draw solver, surrogate and difference for three held-out simulations.

    An autoregressive surrogate is rolled out from the first steps to the last one.
    Two dims and meshes are drawn as maps, one dim as a map over time, none as curves
    over time. Of three, one is cut in its middle: z, or the first.
    """
    spec = surrogate.spec
    rows = [
        row
        for number, moment in zip(held_out.finished, _MOMENTS, strict=False)
        for row in _rows(surrogate, held_out, number, moment)
    ]
    return draw(rows, spec.cells if len(spec.coordinates) == 2 else None)


def _rows(
    surrogate: Surrogate, held_out: ValidationSet, row: int, moment: float
) -> Iterator[Row]:
    """Yield what is drawn of each variable of a simulation."""
    spec = surrogate.spec
    values = [float(v) for v in held_out.parameters[row]]
    parameters = {p.name: v for p, v in zip(spec.parameters, values, strict=True)}
    count = held_out.steps(row)
    step = min(int(moment * count), count - 1)
    inputs = surrogate.window.inputs
    history = held_out.simulation(row, slice(inputs)) if inputs else None
    step = count - 1 if inputs else step
    # One time of a map, all times where there is room for an axis of time.
    still = len(spec.dims) > 1 or spec.cells is not None
    shown = slice(step, step + 1) if still else slice(inputs, count)
    times = spec.times[shown]
    shown_fields = spec.physical(held_out.fields[row, shown])
    truths = spec.dataset(shown_fields, times, parameters)
    given = held_out.given(row)
    guesses = surrogate.predict(parameters, times, history, inputs=given)
    named = {p.name: (parameters[p.name], p.units) for p in spec.parameters}
    for name in (v.name for v in spec.variables):
        guess = guesses[name].where(truths[name].notnull())
        truth, guess, place = flat(truths[name], guess)
        yield Row(
            truth, guess, titled(f"simulation {held_out.number(row)}{place}", named)
        )
