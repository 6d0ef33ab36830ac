"""The page ``/surrogate`` of Dask's dashboard, which lives on the scheduler."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from distributed import SchedulerPlugin

from surrogate_flow.report.folder.tables import COLUMNS
from surrogate_flow.report.live.state import LiveState, names_of, number

__all__ = ["NAME", "PAGE", "Dashboard", "NoDashboard", "topic_of"]

logger = logging.getLogger(__name__)

NAME = "surrogate-flow-page"
PAGE = "surrogate"
_TOPIC = "surrogate-flow/"
_RUNS = 8  # that are shown; those that have ended make room for others


class NoDashboard(RuntimeError):
    """The scheduler shows no pages, so there is none to add to."""


def topic_of(run: str, start: str = "") -> str:
    """Return the topic of Dask's events about a run, which begins at the start."""
    return f"{_TOPIC}{run}#{start}"


class Dashboard(SchedulerPlugin):
    """Adds a page to the dashboard that runs, and shows what events say of runs.

    One a scheduler, however many runs register it.

    Attributes
    ----------
    runs : dict of str to LiveState
        By topic, the newest last.
    sweeps : dict of str to dict
        Their tables by topic, as `Trials.update` takes them, the newest last.
    others : set of str
        Topics of runs that there is no room for, since each of `runs` goes on.
    pages : set of Page
        Those that are open.
    """

    def __init__(self) -> None:
        self.name = NAME
        self.others: set[str] = set()
        self.runs: dict[str, LiveState] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.pages: weakref.WeakSet[Any] = weakref.WeakSet()
        self._clients: dict[str, str] = {}

    async def start(self, scheduler: Any) -> None:
        """Add the page.

        Raises
        ------
        NoDashboard
            If Bokeh is not installed there, or the dashboard switched off.
        """
        self._scheduler = scheduler
        try:
            from bokeh.server.tornado import BokehTornado
            from distributed.dashboard.core import BokehApplication
            from distributed.dashboard.scheduler import template_variables
            from tornado.ioloop import IOLoop
        except ImportError as error:
            raise NoDashboard(f"it has no dashboard: {error}") from None
        applications = scheduler.http_application.applications
        # The prefix is that of Dask's own pages, which Dask does not keep elsewhere.
        known = [each for each in applications if isinstance(each, BokehTornado)]
        if not known:
            raise NoDashboard("it has no dashboard")
        variables = template_variables(scheduler)
        if PAGE not in variables["pages"]:
            variables["pages"].append(PAGE)
        added = BokehApplication(
            {f"/{PAGE}": functools.partial(_show, self)},
            scheduler,
            prefix=known[0].prefix,
            template_variables=variables,
        )
        scheduler.http_application.add_application(added)
        added.initialize(IOLoop.current())
        added.start()
        _Gauges.of(self)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take what an event says of a run."""
        if not (topic.startswith(_TOPIC) and isinstance(msg, Mapping)):
            return
        if client := msg.get("client"):
            self._clients[topic] = str(client)
        over = msg.get("state", "running") != "running"
        if "sweep" in msg or topic in self.sweeps:
            self._take_sweep(topic, msg)
        elif state := self._state_of(topic):
            state.update(msg)
            if over:
                # At once, since the scheduler may end with the run.
                for page in [*self.pages]:
                    if doc := page.root.document:
                        doc.add_next_tick_callback(page.update)
        elif over:
            self._forget(topic)
        # Fields of several runs would fill the scheduler's memory: the state has what
        # they say, and nobody asks for these events.
        with suppress(AttributeError):
            self._scheduler._broker.truncate(topic)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Note that runs have stopped without a last message."""
        for topic in [t for t, its in self._clients.items() if its == client]:
            state = self.runs.get(topic)
            if sweep := self.sweeps.get(topic):
                if sweep["state"] == "running":
                    self._take_sweep(topic, {"state": "stopped"})
            elif state is None:
                self._forget(topic)
            elif state.state == "running":
                state.update({"state": "stopped"})

    def _take_sweep(self, topic: str, msg: Mapping[str, Any]) -> None:
        known = {"state": "running", **self.sweeps.get(topic, {})}
        said = {"state": msg.get("state", known["state"])}
        self.sweeps[topic] = known | dict(msg.get("sweep", {})) | said
        while len(self.sweeps) > _RUNS:
            self._clients.pop(oldest := next(iter(self.sweeps)), None)
            del self.sweeps[oldest]

    def _state_of(self, topic: str) -> LiveState | None:
        """Return that of a run, of a new one if there is room."""
        if topic in self.runs:
            return self.runs[topic]
        over = [t for t, state in self.runs.items() if state.state != "running"]
        while len(self.runs) >= _RUNS and over:
            self._forget(over.pop(0))
        if len(self.runs) >= _RUNS:
            self.others.add(topic)
            return None
        self.others.discard(topic)
        name = topic.removeprefix(_TOPIC).rpartition("#")[0]
        return self.runs.setdefault(topic, LiveState(name))

    def _forget(self, topic: str) -> None:
        self.runs.pop(topic, None)
        self.others.discard(topic)
        self._clients.pop(topic, None)


def _show(
    dashboard: Dashboard, scheduler: Any, extra: Mapping[str, Any], doc: Any
) -> None:
    """Fill a document in the style of Dask's own pages."""
    from distributed.dashboard.components.scheduler import env

    from surrogate_flow.report.live.page import CONNECTING, document

    runs, others, sweeps = dashboard.runs, dashboard.others, dashboard.sweeps
    dashboard.pages.add(document(doc, runs, others, sweeps))
    doc.template = env.from_string(
        '{% extends "simple.html" %}{% block content %}{{ super() }}'
        f"{CONNECTING}{{% endblock %}}"
    )
    doc.template_variables.update(extra)


class _Gauges:
    """The numbers of the last rows, among Dask's own metrics for Prometheus."""

    _only: _Gauges | None = None

    def __init__(self) -> None:
        self.dashboards: weakref.WeakSet[Dashboard] = weakref.WeakSet()

    @classmethod
    def of(cls, dashboard: Dashboard) -> None:
        """Add the runs of a dashboard, if the client library is installed."""
        try:
            from prometheus_client import REGISTRY
        except ImportError:
            return
        if cls._only is None:
            # One a process, whose schedulers share the registry as Dask's own do.
            cls._only = cls()
            REGISTRY.register(cls._only)
        cls._only.dashboards.add(dashboard)

    def collect(self) -> Iterator[Any]:
        """Yield a gauge for each column, with a sample for each run that goes on."""
        from prometheus_client.core import GaugeMetricFamily

        runs = [
            (name, dashboard.runs[topic])
            for dashboard in self.dashboards
            for topic, name in names_of(dashboard.runs).items()
            if dashboard.runs[topic].state == "running"
        ]
        for name, column in COLUMNS.items():
            gauge = GaugeMetricFamily(
                f"surrogate_flow_{name}", column.meaning, labels=["run"]
            )
            for run, state in runs:
                value = number(state.last.get(name))
                if value == value:
                    gauge.add_metric([run], value)
            if gauge.samples:
                yield gauge
