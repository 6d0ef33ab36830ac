"""The document of the live page: the same in Dask's dashboard and under ``watch``."""

from __future__ import annotations

import html
import logging
import shlex
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import distributed
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import (
    CustomJS,
    Div,
    Select,
)
from bokeh.themes import Theme
from jinja2 import Environment

from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.thinning import variables_of
from surrogate_flow.report.live.failures import Failures
from surrogate_flow.report.live.field import NewestField
from surrogate_flow.report.live.parameters import Parameters
from surrogate_flow.report.live.series import Panel, Series, TimesSeen, seconds, shown
from surrogate_flow.report.live.state import LiveState, names_of
from surrogate_flow.report.live.trials import Trials, badge

__all__ = ["CONNECTING", "document", "theme"]

logger = logging.getLogger(__name__)

_EVERY = 1000  # milliseconds
_WIDE: Any = {"sizing_mode": "stretch_width"}
_COLOURS = {"running": "#3f9b6c", "ended": "#3a6ea5", "stopped": "#c0392b"}
_WRAPPED: Any = {"styles": {"flex-wrap": "wrap"}, **_WIDE}  # in a narrow window

#: What a browser shows until the first plots are drawn.
CONNECTING = """
<style>[data-root-id]:has(*) ~ .connecting { display: none; }</style>
<p class="connecting" style="margin: 12px; font: 13px sans-serif">
Connecting ... If this stays, the WebSocket of the page does not get through, as where a
proxy stops it.</p>
"""
_TEMPLATE = (
    "{% extends base %}{% block preamble %}"
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "{% endblock %}{% block contents %}{{ super() }}" + CONNECTING + "{% endblock %}"
)
_LOST = (
    "&#9888; The connection to this page's server is lost: it shows nothing new. That "
    "of a fit ends with it; <code>surrogate-flow watch</code> shows the run then."
)
_LOSES = """
lost.visible = true;
status.text = status.text.replace(">running<", ">not connected<");
"""


# When what came before the mark is painted.
_PAINTED = """
requestAnimationFrame(() => requestAnimationFrame(() => { painted.text = sent.text }))
"""


def theme() -> Theme:
    """Return that of Dask's own pages."""
    # Its module would take a second to import.
    return Theme(str(Path(distributed.__file__).parent / "dashboard" / "theme.yaml"))


def document(
    doc: Document,
    runs: Mapping[str, LiveState],
    others: Collection[str] = (),
    sweeps: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Page:
    """Fill a document of Bokeh with the page, and keep it up to date; return the page.

    Parameters
    ----------
    doc : Document
    runs : mapping of str to LiveState
        The newest last, which is shown first; others are chosen on the page. It may
        change meanwhile.
    others : collection of str
        Runs that are not shown. It may change meanwhile.
    sweeps : mapping of str to mapping
        As `Trials.update` takes them, the newest last. It may change meanwhile.
    """
    page = Page(runs, others, sweeps)
    doc.title = "Surrogate"
    doc.theme = theme()
    doc.template = Environment().from_string(_TEMPLATE)
    doc.add_root(page.root)
    # In the place of a notice of Bokeh, which would hide the status.
    doc.config.notify_connection_status = False
    notice = {"lost": page.lost, "status": page.status}
    doc.js_on_event("connection_lost", CustomJS(args=notice, code=_LOSES))
    found = CustomJS(args=notice, code="lost.visible = false")
    doc.js_on_event("client_reconnected", found, page.answer)
    doc.js_on_event("document_ready", page.answer)
    doc.add_periodic_callback(page.keep_up, _EVERY)
    return page


class Page:
    """Status, panels and choices; what a run does not have is left out.

    Parameters
    ----------
    runs : mapping of str to LiveState
    others : collection of str
        Runs that are not shown.
    sweeps : mapping of str to mapping

    Attributes
    ----------
    root : Column
    status : Div
    lost : Div
        That a browser shows while it has no connection.
    panels : list of Panel
    answer : CustomJS
        Lets a browser say what it has painted.
    """

    def __init__(
        self,
        runs: Mapping[str, LiveState],
        others: Collection[str] = (),
        sweeps: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        self._runs, self._others, self._sweeps = runs, others, sweeps
        self._chosen = self._variable = ""
        #: The number of a trial that was chosen.
        self._trial: int | None = None
        self._trials = Trials(self._choose_trial)
        self._options: list[tuple[str, str]] = []
        self._shape: Any = None
        self._broken, self._failed = False, list[str]()
        self.status = Div(**_WIDE)
        self._run = Select(title="", width=330, visible=False)
        self._run.on_change("value", self._choose_run)
        self._variables = Select(title="", width=180)
        self._variables.on_change("value", self._choose_variable)
        self._body = column(**_WIDE)
        self.lost = Div(
            **{"text": _LOST, "name": "lost", "visible": False},
            styles={"color": "#a33", "font-size": "13px"},
        )
        head = row(self.status, self._run, **_WRAPPED)
        self.panels: list[Panel] = []
        self._sent = Div(name="sent", visible=False)
        self._painted = Div(name="painted", visible=False)
        marks = {"sent": self._sent, "painted": self._painted}
        self.answer = CustomJS(args=marks, code=_PAINTED)
        self._sent.js_on_change("text", self.answer)
        self._missing = Div(styles={"color": "#777", "font-size": "12px"}, **_WIDE)
        self.root = column(
            *(self.lost, self._trials.root, head, self._body, self._missing),
            *(self._sent, self._painted),
            name="surrogate",
            **_WIDE,
        )
        self.root.margin = (4, 10, 4, 10)
        self.update()

    def keep_up(self) -> None:
        """Update a browser that has painted the last update; one that is slow, later.

        What it cannot paint would wait there, and the page would answer no click. A
        tab that is hidden paints nothing until somebody looks.
        """
        if self._painted.text != self._sent.text:
            return
        self.update()
        self._sent.text = str(int(self._sent.text or 0) + 1)

    def update(self) -> None:
        """Show what has changed; an error is logged once, and ends this page alone."""
        if self._broken:
            return
        try:
            self._update()
        except Exception:
            self._broken = True
            logger.exception("The live page is not updated any more.")
            self.status.text = "This page has failed: see the log. The run goes on."

    def _update(self) -> None:
        names, options = [*self._runs], [*names_of(self._runs).items()]
        if options != self._options:
            follows = self._chosen in (*[key for key, _ in self._options[-1:]], "")
            follows = follows or self._chosen not in names
            self._run.options, self._options = [*options], options
            if names and follows and self._trial is None:
                self._chosen, self._variable = names[-1], ""
                self._run.value = self._chosen
        if self._absent():
            return
        if not names:
            self.status.text = (
                "No run yet. A <code>surrogate-flow fit</code> on this scheduler "
                "appears here by itself."
            )
            return
        state = self._runs[self._chosen]
        state.looked = time.monotonic()
        if (shape := self._shape_of(state)) != self._shape:
            self._shape = shape
            self._build(state)
        self._draw(state)
        if (text := _status(state, len(self._others))) != self.status.text:
            self.status.text = text
        words = [*state.missing, *self._failed]
        missing = "".join(f"<div>{html.escape(each)}</div>" for each in words)
        if missing != self._missing.text:
            self._missing.text = missing

    def _absent(self) -> bool:
        """Show the sweep of the run; return whether a trial without run is chosen."""
        folders = {key: state.folder for key, state in self._runs.items()}
        folder = folders.get(self._chosen, "")
        above = {s["folder"]: s for s in self._sweeps.values() if not folders}
        above |= {s["folder"]: s for s in self._sweeps.values() if _within(folder, s)}
        sweep = next(reversed(above.values()), None)
        trials = sweep["trials"] if sweep else ()
        wanted = next((t for t in trials if t["number"] == self._trial), None)
        key = next((k for k, f in folders.items() if wanted and f == wanted["run"]), "")
        if key and key != self._chosen:
            self._chosen = self._run.value = key
            self._variable = ""
        shown = folders.get(self._chosen, "")
        at = next((t["number"] for t in trials if shown and t["run"] == shown), None)
        self._trials.update(sweep, wanted["number"] if wanted else at)
        inside = {sweep is not None and _within(f, sweep) for f in folders.values()}
        self._run.visible = len(folders) > 1 and inside != {True}
        if wanted is None or key:
            return False
        self._shape, self._body.children, self.panels = None, [], []
        self.status.text = f"Trial {wanted['number']} has no run yet."
        if wanted["run"]:
            command = f"surrogate-flow watch {shlex.quote(wanted['run'])}"
            self.status.text = (
                f"The run of trial {wanted['number']} is not on this page any more: "
                f"<code>{html.escape(command)}</code> shows it."
            )
        return True

    def _choose_trial(self, number: int) -> None:
        self._trial = number
        self.update()

    def _draw(self, state: LiveState) -> None:
        """Update all panels; one that fails is logged, and stays as it is."""
        for part in [*self.panels]:
            try:
                part.update(state)
            except Exception:
                self.panels.remove(part)
                self._failed = ["A plot of this page has failed: see the log."]
                logger.exception("A plot of the live page is not updated any more.")

    def _choose_run(self, attr: str, old: str, new: str) -> None:
        if new != self._chosen:
            self._chosen, self._variable, self._trial = new, "", None
            self.update()

    def _choose_variable(self, attr: str, old: str, new: str) -> None:
        if new != self._variable:
            self._variable = new
            self.update()

    def _build(self, state: LiveState) -> None:
        self._failed = []
        series = Series(state)
        figures, self.panels = [*series.figures], [series]
        if state.times_seen:
            seen = TimesSeen()
            figures.insert(max(0, len(figures) - 3), seen.root)
            self.panels.append(seen)
        above, below = figures[:-3], figures[-3:]
        rows = [row(*below, **_WRAPPED)]
        newest = state.newest
        if newest is not None and (names := variables_of(newest)):
            field = NewestField(newest, variable := self._variable)
            self.panels.append(field)
            if len(names) > 1:
                self._variables.options, self._variables.value = [*names], variable
                out = newest.attrs.get("variables_left_out")
                self._variables.title = f"{out} more are not shown" if out else ""
                rows.append(row(self._variables, **_WIDE))
            rows.append(row(*field.figures, **_WRAPPED))
            figures += field.figures
        left = column(*rows, styles={"min-width": "min(780px, 100%)"}, **_WIDE)
        parts = [row(*above, **_WRAPPED)] if above else []
        if state.parameters:
            matrix = Parameters(state)
            self.panels.append(matrix)
            parts.append(row(left, matrix.root, **_WRAPPED))
            figures.append(matrix.root)
        else:
            parts.append(left)
        failures = Failures()
        self.panels.append(failures)
        parts.append(failures.root)
        # With data, since a glyph without its columns counts as a mistake.
        self._draw(state)
        # Each message names all models of the page: what is alike stands once.
        views: dict[str, Any] = {}
        for drawn in (each for made in figures for each in made.renderers):
            drawn.view = views.setdefault(drawn.data_source.id, drawn.view)
            drawn.nonselection_glyph = drawn.muted_glyph = None
        self._body.children = parts

    def _shape_of(self, state: LiveState) -> Any:
        """Return what decides which panels there are; choose a variable."""
        now = state.series[-1] if state.series else {}
        fields: Any = ()
        if (newest := state.newest) is not None and (names := variables_of(newest)):
            if self._variable not in names:
                self._variable = names[0]
            fields = (
                self._variable,
                [(n, newest[n].dims, len(newest[n].coords)) for n in names],
            )
        return (
            *(self._chosen, fields, [now.get(n) == now.get(n) for n in _DECIDING]),
            *(bool(state.times_seen), [*state.parameters]),
        )


_DECIDING = (
    *("population", "simulations_done", "simulations_planned", "jobs_wanted"),
    *("trainer_waits", "steps_per_second", "megabytes_per_second"),
)


def _within(folder: str, sweep: Mapping[str, Any]) -> bool:
    return folder.startswith(f"{sweep['folder']}/")


def _status(state: LiveState, others: int) -> str:
    """Return the line on top, and the problems below it, in HTML."""
    tag = badge(state.state, _COLOURS.get(state.state, "#888"))
    parts = [f"{tag} <b>{html.escape(state.name)}</b>"]
    if state.series:
        now = state.series[-1]
        parts += [seconds(now["seconds"]), f"batch {shown(now['step'])}"]
        if now["loss"] == now["loss"]:
            parts.append(f"loss {now['loss']:.3g}")
        goes_on = state.state == "running"
        if goes_on:
            parts.append(f"{shown(now['samples_per_second'])} samples/s")
        if state.validations:
            parts.append(f"validation error {state.validations[-1][1]:.2%}")
        if goes_on and (waiting := state.last.get("waiting")):
            parts.append(html.escape(str(waiting)))
    problems = [*state.problems]
    if silent := state.silent:
        at = time.strftime("%H:%M", time.localtime(time.time() - silent))
        problems.insert(
            0, f"No message from the run since {at}: it may have been killed."
        )
    if others:
        problems.append(
            f"This page is full: {counted(others, 'other run')} on this scheduler "
            "can be seen with surrogate-flow watch."
        )
    warned = "".join(
        f'<div style="color:#a33;margin-top:2px">&#9888; {html.escape(each)}</div>'
        for each in problems
    )
    paid = f"<br>{html.escape(state.cost)}" if state.cost else ""
    return f'<div style="font-size:13px">{" &middot; ".join(parts)}{paid}{warned}</div>'
