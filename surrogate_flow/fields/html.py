"""Objects in a notebook: a title and rows of a name and what it is."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from surrogate_flow.fields.quantities import counted, in_units
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["rows_of", "table"]


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a table; lines of a text stand below each other.

    Examples
    --------
    >>> table("Run", [("loss", "< 1")])
    '<table><caption>Run</caption><tr><th>loss</th><td>&lt; 1</td></tr></table>'
    """
    cells = (
        f"<tr><th>{escape(name)}</th><td>{'<br>'.join(escape(text).splitlines())}</td>"
        "</tr>"
        for name, text in rows
    )
    return f"<table><caption>{escape(title)}</caption>{''.join(cells)}</table>"


def rows_of(spec: FieldSpec) -> list[tuple[str, str]]:
    """Return what a spec says of fields, grid, times and parameters.

    Examples
    --------
    >>> from surrogate_flow.solvers import Lorenz
    >>> rows_of(Lorenz(steps=4).spec)[:2]
    [('fields', 'x, y, z'), ('times', '4 steps, 0.01 to 0.04')]
    """
    fields = (f"{v.name} {_in_brackets(v.units)}".strip() for v in spec.variables)
    grid = f"{' x '.join(map(str, spec.shape))} ({', '.join(spec.dims)})"
    first = f"{spec.times[0]:.4g}"
    last = in_units(spec.times[-1], spec.time_units)
    given = ", ".join(f"{v.name} {_in_brackets(v.units)}".strip() for v in spec.inputs)
    return [
        ("fields", ", ".join(fields) + f", on {grid}" * bool(spec.dims)),
        *[("input fields", given)] * bool(given),
        ("times", f"{counted(spec.steps, 'step')}, {first} to {last}"),
        (
            "parameters",
            "\n".join(f"{p.name}: {p.in_words()}" for p in spec.parameters),
        ),
    ]


def _in_brackets(units: str) -> str:
    return f"[{units}]" if units not in ("", "1") else ""
