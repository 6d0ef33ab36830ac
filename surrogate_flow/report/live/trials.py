"""The trials of a sweep, above the run of one of them."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    DataTable,
    Div,
    FixedTicker,
    HoverTool,
    HTMLTemplateFormatter,
    NumberFormatter,
    NumeralTickFormatter,
    StringFormatter,
    TableColumn,
)

from surrogate_flow.report.live.series import BLUE, GREEN, GREY, ORANGE, RED, panel

__all__ = ["ERRORS", "Trials", "badge"]

#: That an axis of relative errors names.
ERRORS = [n * 10.0**k for k in range(-6, 2) for n in (1, 2, 5)]

_COLOURS = {"complete": BLUE, "running": GREEN, "failed": RED}
_STATE = '<span style="color:<%= colour %>" title="<%- why %>"><%- value %></span>'
_LETTER = 6.6  # pixels of a letter in a cell
_ROW, _ROWS = 25, 12  # pixels of a row, and how many are seen at once
_WIDE: Any = {"sizing_mode": "stretch_width"}


def badge(state: str, colour: str) -> str:
    """Return a state on its colour, in HTML."""
    return (
        f'<span style="background:{colour};color:white;border-radius:3px;'
        f'padding:1px 7px">{html.escape(state)}</span>'
    )


class Trials:
    """The table of a sweep's trials, and their errors over the time of training.

    Parameters
    ----------
    choose : callable
        Called with the number of a trial when its row is clicked on.

    Attributes
    ----------
    root : Column
    """

    def __init__(self, choose: Callable[[int], None]) -> None:
        self._choose = choose
        self._shape: Any = None
        self._shown: tuple[Any, Any] = (None, None)
        self._said = Div(**_WIDE)
        self._rows = ColumnDataSource(name="trials")
        self._rows.selected.on_change("indices", self._clicked)
        self._table: Any = None
        self._curves = ColumnDataSource(
            {n: [] for n in ("xs", "ys", "x", "y", "trial", "colour", "width")},
            name="errors",
        )
        self._plot = panel(
            "Error of each trial",
            "training time [s]",
            "relative L2 error",
            y_axis_type="log",
        )
        self._plot.yaxis.formatter = NumeralTickFormatter(format="0.[000] %")
        self._plot.yaxis.ticker = FixedTicker(ticks=ERRORS)
        drawn = self._plot.multi_line(
            *("xs", "ys"),
            source=self._curves,
            line_color="colour",
            line_width="width",
            line_alpha=0.8,
        )
        # Of one validation there is no line.
        self._plot.scatter("x", "y", source=self._curves, size=5, color="colour")
        said = [("trial", "@trial"), ("error", "$y{0.00 %}"), ("time", "$x{0,0} s")]
        self._plot.add_tools(HoverTool(tooltips=said, renderers=[drawn]))
        self._body = row(styles={"flex-wrap": "wrap"}, **_WIDE)
        self.root = column(self._said, self._body, visible=False, **_WIDE)

    def update(self, sweep: Mapping[str, Any] | None, chosen: int | None) -> None:
        """Show the trials, if they have changed; mark the row of one.

        Parameters
        ----------
        sweep : mapping, optional
            ``name``, ``folder``, ``headline``, ``state``, ``names``, ``best``, the
            number of the best trial, and ``trials``.
        chosen : int, optional
            Number of the trial whose run is shown.
        """
        if self._shown == (sweep, chosen):
            return
        self._shown = sweep, chosen
        self.root.visible = sweep is not None
        if sweep is None:
            self._rows.selected.indices = []
            return
        trials: Sequence[Mapping[str, Any]] = sweep["trials"]
        self._say(sweep)
        optional = [
            name
            for name, least in (("missed", 1), ("attempts", 2))
            if any(trial[name] >= least for trial in trials)
        ]
        data = _columns(sweep["names"], trials, optional)
        shape = [*sweep["names"]], optional, min(len(trials), _ROWS)
        self._rows.data = data
        if shape != self._shape:
            self._shape = shape
            self._build(sweep["names"], optional, data)
        at = [n for n, trial in enumerate(trials) if trial["number"] == chosen]
        if at != [*self._rows.selected.indices]:
            self._rows.selected.indices = at
        self._draw(trials, chosen, sweep["best"])

    def _say(self, sweep: Mapping[str, Any]) -> None:
        state = str(sweep.get("state", "running"))
        colour = {"running": GREEN, "ended": BLUE}.get(state, RED)
        name, headline = html.escape(sweep["name"]), html.escape(sweep["headline"])
        said = f"{badge(state, colour)} <b>Sweep {name}</b> &middot; {headline}"
        if state == "stopped":
            command = f"surrogate-flow sweep resume {shlex.quote(sweep['folder'])}"
            said += f" &middot; to go on: <code>{html.escape(command)}</code>"
        self._said.text = f'<div style="font-size:13px">{said}</div>'

    def _build(
        self, names: Sequence[str], optional: Sequence[str], data: Mapping[str, Any]
    ) -> None:
        count = NumberFormatter(format="0,0")
        formats = {
            # In a narrow window the first are seen.
            "trial": StringFormatter(),
            "error": NumberFormatter(format="0.[00] %"),
            "state": HTMLTemplateFormatter(template=_STATE),
            **{f"value {n}": StringFormatter() for n in range(len(names))},
            **dict.fromkeys(["batches", "training [s]", *optional], count),
        }
        titles = {f"value {n}": name for n, name in enumerate(names)}
        columns = []
        for name, format_ in formats.items():
            title = titles.get(name, name)
            letters = max([len(title) + 2, *(len(str(v)) for v in data[name])])
            if name in ("error", "batches", "training [s]"):
                letters = max(len(title) + 2, 9)
            width = int(16 + _LETTER * min(letters, 40))
            columns.append(
                TableColumn(field=name, title=title, formatter=format_, width=width)
            )
        height = _ROW * (1 + min(len(data["trial"]), _ROWS)) + 18
        wide = sum(made.width for made in columns) + 20
        self._table = DataTable(
            source=self._rows,
            columns=columns,
            index_position=None,
            reorderable=False,
            autosize_mode="none",
            row_height=_ROW,
            height=height,
            styles={"flex": f"0 1 {wide}px", "min-width": "min(100%, 320px)"},
            **_WIDE,
        )
        self._plot.height = max(height, 200)
        self._plot.styles = {"flex": "1 1 320px"}
        self._body.children = [self._table, self._plot]

    def _draw(
        self,
        trials: Sequence[Mapping[str, Any]],
        chosen: int | None,
        best: int | None,
    ) -> None:
        known = [trial for trial in trials if trial["curve"]]
        # Above the others.
        known.sort(key=lambda trial: trial["number"] == chosen)

        def colour(number: int) -> str:
            return ORANGE if number == chosen else BLUE if number == best else GREY

        self._curves.data = {
            "xs": [[at for at, _ in trial["curve"]] for trial in known],
            "ys": [[error for _, error in trial["curve"]] for trial in known],
            "x": [trial["curve"][-1][0] for trial in known],
            "y": [trial["curve"][-1][1] for trial in known],
            "trial": [trial["number"] for trial in known],
            "colour": [colour(trial["number"]) for trial in known],
            "width": [
                2.5 if trial["number"] in (chosen, best) else 1.2 for trial in known
            ],
        }
        said = [f"trial {chosen} orange"] * (chosen is not None)
        said += [f"the best, trial {best}, blue"] * (best not in (None, chosen))
        self._plot.title.text = ": ".join(filter(None, ["Errors", "; ".join(said)]))

    def _clicked(self, attr: str, old: Sequence[int], new: Sequence[int]) -> None:
        sweep, chosen = self._shown
        if len(new) == 1 and sweep is not None and new[0] < len(sweep["trials"]):
            number = int(sweep["trials"][new[0]]["number"])
            if number != chosen:
                self._choose(number)


def _columns(
    names: Sequence[str],
    trials: Sequence[Mapping[str, Any]],
    optional: Sequence[str],
) -> dict[str, list[Any]]:
    def known(name: str) -> list[Any]:
        return [nan if trial[name] is None else trial[name] for trial in trials]

    failed = [trial["state"] == "failed" for trial in trials]
    return {
        "trial": known("number"),
        **{f"value {n}": [t["values"][n] for t in trials] for n in range(len(names))},
        "error": known("error"),
        "state": [
            f"{trial['words']}: {trial['why']}" if gone else trial["words"]
            for trial, gone in zip(trials, failed, strict=True)
        ],
        "batches": known("steps"),
        "training [s]": known("seconds"),
        **{name: known(name) for name in optional},
        "why": known("why"),
        "colour": [_COLOURS.get(trial["state"], "#777") for trial in trials],
    }
