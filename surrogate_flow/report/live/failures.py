"""The table of attempts that failed, below the plots of the live page."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bokeh.models import Div

from surrogate_flow.fields.errors import kind_of
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.live.state import LiveState

__all__ = ["Failures"]

_TABLE = ("attempts", "outcome", "simulations", "worker", "error", "message")
_SIMULATIONS = 5  # that are named in a row


class Failures:
    """The attempts that failed, a row a reason; the newest first."""

    def __init__(self) -> None:
        self._changes = 0
        styles = {"max-height": "260px", "overflow": "auto"}
        self.root = Div(visible=False, styles=styles, sizing_mode="stretch_width")

    def update(self, state: LiveState) -> None:
        """Fill the table, if more have failed."""
        if state.changes["failures"] == self._changes:
            return
        self._changes = state.changes["failures"]
        reasons: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for each in reversed(state.failures):
            said = kind_of(str(each.get("message", "")))
            reasons.setdefault((str(each.get("error", "")), said), []).append(each)
        names = dict.fromkeys(n for each in state.failures for n in _point(each))
        spec = state.about.get("spec") or {}
        units = {p["name"]: p.get("units", "") for p in spec.get("parameters", ())}
        head = [f"{n} [{u}]" if (u := units.get(n)) and u != "1" else n for n in names]
        rows = [[*_TABLE, *head], *(_reason(r, names) for r in reasons.values())]
        cells = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in rows
        )
        self.root.visible = bool(state.failures)
        last = "the last " if len(state.failures) == state.failures.maxlen else ""
        self.root.text = (
            "<style>td { padding: 2px 12px 2px 0; vertical-align: top;"
            " font-size: 12px; white-space: nowrap; } tr:first-child { color: #777; }"
            " td:nth-child(6) { white-space: normal; min-width: 260px;"
            " overflow-wrap: anywhere; }</style><b>Attempts that failed, and why</b> "
            f"({last}{len(state.failures)} of failures.csv)<table>{cells}</table>"
        )


def _point(failure: Mapping[str, Any]) -> Mapping[str, Any]:
    return failure.get("parameters") or {}


def _reason(alike: Sequence[Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Return the row of attempts that failed alike, the newest first."""

    def known(name: str) -> list[str]:
        return [*dict.fromkeys(str(each.get(name, "")) for each in alike)]

    simulations, workers = known("simulation"), known("worker")
    more = len(simulations) - _SIMULATIONS
    named = ", ".join(simulations[:_SIMULATIONS])
    bounds = []
    for name in names:
        values = [p[name] for each in alike if name in (p := _point(each))]
        ends = dict.fromkeys([min(values), max(values)] if values else [])
        bounds.append(
            " to ".join(v if isinstance(v, str) else f"{v:.4g}" for v in ends)
        )
    outcomes = Counter(str(each.get("outcome", "")) for each in alike)
    return [
        str(len(alike)),
        ", ".join(
            f"{n} {word}" if len(alike) > 1 else word for word, n in outcomes.items()
        ),
        f"{named} and {more} more" if more > 0 else named,
        workers[0] if len(workers) == 1 else counted(len(workers), "worker"),
        str(alike[0].get("error", "")),
        str(alike[0].get("message", "")),
        *bounds,
    ]
