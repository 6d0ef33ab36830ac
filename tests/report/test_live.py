"""The live page shows what it was told: numbers over time, losses, fields, failures."""

import math
import os
import re

import numpy as np
import pytest
from bokeh.document import Document
from bokeh.document.events import ColumnDataChangedEvent
from bokeh.models import ColumnDataSource, Div, HoverTool, Select
from bokeh.plotting import figure
from live_states import PARAMETERS, field, losses, row, state

from surrogate_flow.fields.thinning import cells_of
from surrogate_flow.report.folder.tables import OFTEN
from surrogate_flow.report.live import LiveState
from surrogate_flow.report.live.dashboard import Dashboard, topic_of
from surrogate_flow.report.live.page import document
from surrogate_flow.report.live.reach import tunnel
from surrogate_flow.reservoir.stats import Tally


def page(*states):
    """A document with the page of some runs."""
    doc = Document()
    document(doc, {each.name: each for each in states})
    return doc


def source(doc, name):
    """The data that plots of a name draw, or None if there are no such plots."""
    found = [s for s in doc.select({"type": ColumnDataSource}) if s.name == name]
    return found[0].data if found else None


def again(doc):
    """Have a second pass, of a browser that has painted the first."""
    for callback in doc.session_callbacks:
        paint(doc)
        callback.callback()


def paint(doc):
    """Say what a browser says."""
    doc.get_model_by_name("painted").text = doc.get_model_by_name("sent").text


def text(doc):
    """All that is written on the page."""
    divs = [div.text for div in doc.select({"type": Div})]
    titles = [plot.title.text for plot in doc.select({"type": figure})]
    return "\n".join([*divs, *titles])


def test_each_moment_is_drawn_once():
    """With shares and rates that are differences of totals; a second pass adds what is new."""
    told = state(rows=10)
    doc = page(told)
    drawn = source(doc, "series")
    assert list(drawn["seconds"]) == [*range(10)]
    assert list(drawn["seen"]) == [19 * second for second in range(10)]
    assert drawn["steps_per_second"][9] == pytest.approx(25.0)
    assert drawn["trainer_waits"][9] == pytest.approx(30.0)
    assert math.isnan(drawn["trainer_waits"][0])
    told.update({"rows": [row(10), row(11, loss=math.nan)]})
    again(doc)
    assert list(source(doc, "series")["step"]) == [10 * s for s in range(12)]
    assert "Reservoir: 180 samples, 9 unseen" in text(doc)
    told.update({"state": "ended"})
    again(doc)
    assert source(doc, "validations") == {"step": [60.0], "error": [0.5]}
    assert list(source(doc, "times_seen")["samples"]) == [30, 20, 0, 10]
    assert "Reservoir: 220 samples, 11 unseen" in text(doc)
    assert "Simulations: 2 of 250, 0 failed" in text(doc)
    # What was a rate is none when the run has ended.
    assert "samples/s" not in text(doc)
    assert "1,100 samples trained, 275 steps arrived" in text(doc)
    told.update({"about": {"simulations": 220}})
    told.update({"rows": [row(second) for second in (12, 13, 14)]})
    again(doc)
    assert "Simulations: 3 of 250, 0 failed, 30 held out" in text(doc)


def test_a_long_run_takes_no_more_memory():
    """Older moments become sparse, the first and the newest stay; the page has the same."""
    told = state(rows=0)
    doc = page(told)
    for first in range(0, 5000, 500):
        seconds = range(first, first + 500)
        told.update({"rows": [row(s, validation=1 / (1 + s)) for s in seconds]})
        again(doc)
    for name in ("series", "validations"):
        drawn = source(doc, name)["step"]
        assert len(drawn) <= 1200
        assert (drawn[0], drawn[-1]) == (0.0, 49990.0)
        assert (np.diff(drawn[-500:]) == 10).all()
    assert len(told.series) == len(source(doc, "series")["step"])


def test_rates_are_those_of_the_last_run_of_a_folder():
    """Whose totals begin at 0 again."""
    told = state(rows=10)
    for second in (0, 1):
        told.update({"rows": [row(second) | {"seconds": 10.0 + second}]})
    assert [r["steps_per_second"] for r in told.series[-2:]] == [
        pytest.approx(math.nan, nan_ok=True),
        25.0,
    ]


def test_samples_that_were_seen_often():
    """The last number is of all that were drawn 64 times or more; the mean is of all draws."""
    assert len(Tally(1).left) == OFTEN + 1
    often = {"inserted": 100, "drawn": 3_600_000, "times_seen": "0 " * OFTEN + "100"}
    doc = page(state(**often))
    assert "Times seen: 36,000.0 on average" in text(doc)
    assert list(source(doc, "times_seen")["label"])[-2:] == ["62 to 63", "64 or more"]


def test_ranks_are_counted_together():
    told = LiveState("run")
    other = row(3, waiting="inlet waits", times_seen="1 0 0 0 5")
    told.update({"rank": 1, "rows": [other]})
    told.update({"rows": [row(3)]})
    assert told.last["waiting"] == "rank 1: inlet waits"
    assert told.last["steps_received"] == 2 * 75
    assert told.last["draw_wait_seconds"] == pytest.approx(0.9)
    assert told.last["step"] == 30
    assert told.times_seen == [31, 20, 0, 10, 5]


@pytest.mark.parametrize("kind", ["2D", "3D", "mesh", "nodes"])
def test_maps_of_a_field(kind):
    """Solver, surrogate and difference; of three dims the middle slice, of a mesh its cells."""
    drawn = source(page(state(kind)), "newest")
    given = field(kind).u.values
    expected = {"3D": given[2] if kind == "3D" else None, "mesh": [1.0, 1.5]}
    solver = drawn["solver"] if kind in ("mesh", "nodes") else drawn["solver"][0]
    np.testing.assert_allclose(solver, expected.get(kind, given), rtol=1e-6)
    np.testing.assert_allclose(
        drawn["surrogate"], np.array(drawn["solver"]) + 0.5, rtol=1e-6
    )
    np.testing.assert_allclose(
        drawn["difference"], np.full_like(drawn["solver"], 0.5), rtol=1e-6
    )
    said = text(page(state(kind)))
    assert ("middle slice z = 0.5 m" in said) == (kind == "3D")
    if kind == "2D":
        # A pixel is centred on its point.
        assert (drawn["x"], drawn["dw"]) == ([-1 / 14], [pytest.approx(8 / 7)])


def test_a_parameter_called_cells_is_no_mesh():
    """On a grid it may be called so; on a mesh the spec refuses it."""
    told, fields = state(None), field("2D")
    told.update({"newest": fields.assign_coords(cells=64.0)})
    assert source(page(told), "newest")["solver"][0].shape == (6, 8)
    assert cells_of(fields.assign_coords(cells=("case", [1.0, 2.0]))) is None
    assert cells_of(field("mesh")) == [[0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("kind", ["1D", "times", "samples", "number"])
def test_curves_of_a_field_and_plain_numbers(kind):
    drawn = source(page(state(kind)), "newest")
    given = np.atleast_1d(field(kind).u.values)
    np.testing.assert_allclose(drawn["solver"], given)
    np.testing.assert_allclose(drawn["surrogate"], given + 0.5)
    count = len(given)
    x = np.arange(count) if kind == "number" else np.linspace(0, 1, count)
    np.testing.assert_allclose(drawn["x"], x)
    pairs = "u, 8 samples of the last batch" in text(page(state(kind)))
    assert pairs == (kind == "samples")


def test_a_field_on_uneven_points_is_drawn_where_it_is():
    """Descending or stretched coordinates: a pixel has the value of the nearest point."""
    told, fields = state(None), field("2D").isel(x=slice(None, None, -1))
    told.update({"newest": fields.assign_coords(y=[0.0, 0.1, 0.2, 0.3, 0.4, 2.0])})
    image = source(page(told), "newest")["solver"][0]
    np.testing.assert_allclose(image[0], field("2D").u[0], rtol=1e-6)
    np.testing.assert_allclose(image[2], fields.u[4, ::-1], rtol=1e-6)


def test_one_of_several_variables_is_chosen():
    told, fields = state(None), field("1D")
    told.update({"newest": fields.assign(v=2 * fields.u, v_surrogate=fields.u)})
    doc = page(told)
    (select,) = (s for s in doc.select({"type": Select}) if "v" in s.options)
    assert select.options == ["u", "v"]
    select.value = "v"
    np.testing.assert_allclose(source(doc, "newest")["solver"], 2 * fields.u)
    assert "v, simulation 137, step 3" in text(doc)


def test_the_parameter_space_in_the_colours_of_the_loss():
    """All pairs of the first six, each point within its cell; losses that are none are grey."""
    told, names = state(None), [f"p{k}" for k in range(8)]
    told.update({"losses": losses(20, names) | {"loss": np.full(20, np.nan)}})
    doc = page(told)
    drawn = source(doc, "parameters")
    assert {k for k in drawn if k[0] == "x"} == {f"x{k}" for k in range(6)}
    assert all((k < drawn[f"x{k}"]).all() for k in range(6))
    assert all((drawn[f"x{k}"] < k + 1).all() for k in range(6))
    assert "20 simulations, sampled once a second (the first 6 of 8 " in text(doc)
    told.update({"losses": losses(30, names)})
    again(doc)
    assert len(source(doc, "parameters")["loss"]) == 30


def test_what_a_run_does_not_have_is_left_out():
    """A stored data set has no reservoir, simulations and jobs; a run that begins has nothing."""
    stored = {"epoch": 0, "bytes_read": 1e6}
    lacks = ("population", "simulations_done", "steps_received", "draw_wait_seconds")
    lacks = dict.fromkeys((*lacks, "put_wait_seconds", "times_seen"))
    doc = page(state(None, **stored, **lacks))
    assert "Reservoir" not in text(doc)
    assert "Simulations" not in text(doc)
    assert "100 samples/s trained" in text(doc)
    assert source(doc, "times_seen") is source(doc, "newest") is None
    assert "running" in text(page(LiveState("begins")))
    assert "No run yet" in text(page())


def test_jobs_wanted_and_at_work():
    doc = page(state(jobs_wanted=4, jobs_at_work=3))
    assert "Jobs: 3 of 4 at work; 2 simulations" in text(doc)


def test_what_is_wrong_is_said_on_top_and_nothing_is_run():
    """Problems and reasons of failures are text, whatever they contain."""
    told = state()
    told.update({"problems": ["The loss is <b>nan</b>."], "state": "stopped"})
    failed = {"simulation": 3, "outcome": "failed permanently", "message": "<i>no</i>"}
    told.update({"failures": [failed]})
    doc = page(told)
    assert "The loss is &lt;b&gt;nan&lt;/b&gt;." in text(doc)
    assert "stopped" in text(doc)
    assert "&lt;i&gt;no&lt;/i&gt;" in text(doc)
    for kind in ("2D", "1D", "samples"):
        fields = field(kind)
        fields.u.attrs["units"] = "<img src=x onerror=alert(1)>"
        told.update({"newest": fields})
        doc = page(told)
        # Of a tooltip the label is text, but the value is HTML.
        tips = [
            tip for hover in doc.select({"type": HoverTool}) for tip in hover.tooltips
        ]
        assert any("<img" in label for label, _ in tips)
        assert not any("<" in value for _, value in tips)


def test_attempts_that_failed_alike_are_a_row():
    """With the bounds of their parameters, and as many simulations as there is room for."""
    told, failed = state(), {"outcome": "retried", "error": "FloatingPointError"}
    for k in range(8):
        said, point = f"infinite at step {k}", {"left": 100.0 + k, "top": 7.0}
        failed |= {"simulation": k, "message": said, "parameters": point}
        told.update({"failures": [failed.copy()]})
    told.update({"failures": [{"simulation": 9, "error": "WorkerDied"}]})
    rows = re.findall("<tr>(.*?)</tr>", text(page(told)))
    assert len(rows) == 3
    for cell in ("8", "8 retried", "7, 6, 5, 4, 3 and 3 more", "100 to 107", "7"):
        assert f"<td>{cell}</td>" in rows[2]
    assert "<td>infinite at step 7</td>" in rows[2]
    assert "<td>left [K]</td>" in rows[0]


def test_each_newest_field_is_the_one_that_was_told():
    """Of a file with other numbers only these are read; one of another form is read whole."""
    told = state(None)
    doc = page(told)
    kinds = ((0, "2D"), (5, "2D"), (0, "1D"), (3, "1D"), (0, "mesh"), (4, "mesh"))
    events = []
    doc.on_change(events.append)
    for shift, kind in kinds:
        fields = field(kind)
        fields = fields.assign(u=fields.u + shift).assign_attrs(simulation=shift)
        told.update({"newest": bytes(fields.to_netcdf(engine="h5netcdf"))})
        again(doc)
        drawn = source(doc, "newest")["solver"]
        shown = drawn[0] if kind == "2D" else drawn
        cells = np.array([1.0, 1.5]) + shift  # the means of their nodes
        expected = cells if kind == "mesh" else fields.u
        np.testing.assert_allclose(shown, expected, rtol=1e-6)
        assert f"u, simulation {shift}, step 3" in text(doc)
    sent = [e.cols for e in events if isinstance(e, ColumnDataChangedEvent)]
    assert sorted(sent[-1]) == ["difference", "solver", "surrogate"]  # no places again


def test_a_damaged_picture_is_said_and_the_rest_shown():
    told = state(None)
    told.update({"newest": b"half of a file"})
    doc = page(told)
    again(doc)
    assert "newest.nc cannot be read as netCDF" in text(doc)
    assert len(source(doc, "series")["step"]) == 10


def test_a_run_that_begins_later_is_shown_unless_another_was_chosen():
    first, runs = state(name="first"), {}
    doc = Document()
    document(doc, runs)
    for name in ("first", "second"):
        runs[name] = state(name=name) if name == "second" else first
        again(doc)
        assert f"<b>{name}</b>" in text(doc)
    (select,) = (
        s for s in doc.select({"type": Select}) if ("first", "first") in s.options
    )
    select.value = "first"
    runs["third"] = state(name="third")
    again(doc)
    assert "<b>first</b>" in text(doc)
    assert select.options == [(n, n) for n in ("first", "second", "third")]


def sweep(*states, name="s", **changed):
    """What a sweep says: its first trial is the best, of each the run is in its folder."""
    plain = {"values": [0.1, "[64]"], "why": "", "missed": 0, "attempts": 1}
    plain |= {"error": 0.02, "steps": 1200, "seconds": 60.0}
    trials = [
        {
            **{"number": n, "state": each.partition(",")[0], "words": each, **plain},
            **{"curve": [[9.0, 0.3], [60.0, 0.02]], "run": f"/{name}/trials/{n}/run"},
            **(changed if n == len(states) - 1 else {}),
        }
        for n, each in enumerate(states)
    ]
    said = {
        "name": name,
        "folder": f"/{name}",
        "headline": "1 of 3 trials are complete",
    }
    said["best"] = 0 if trials[0]["state"] == "complete" else None
    return {**said, "names": ["lr", "widths"], "trials": trials}


def chosen(doc):
    """The number of the trial whose row is marked."""
    (rows,) = (s for s in doc.select({"type": ColumnDataSource}) if s.name == "trials")
    return [rows.data["trial"][n] for n in rows.selected.indices], rows


def test_the_trials_of_a_sweep_are_listed_and_a_click_shows_the_run_of_one():
    """Above the run of one of them; those of another sweep, and other runs, are apart."""
    dashboard, doc = Dashboard(), Document()
    document(doc, dashboard.runs, dashboard.others, dashboard.sweeps)
    topic, other = topic_of("s", "1"), topic_of("t", "2")
    dashboard.log_event(topic, {"sweep": sweep("waiting"), "client": "one"})
    again(doc)
    assert "Sweep s</b> &middot; 1 of 3 trials are complete" in text(doc)
    for n in (0, 1):
        told = {"rows": [row(9)], "folder": f"/s/trials/{n}/run"}
        dashboard.log_event(topic_of(f"trial {n}"), told)
    states = ("complete", "running, held up by trial 0", "failed")
    told = sweep(*states, why="a rate <is> positive", run="", missed=7, curve=[])
    dashboard.log_event(topic, {"sweep": told})
    dashboard.log_event(other, {"sweep": sweep("running", name="t")})
    again(doc)
    number, rows = chosen(doc)
    assert number == [1]
    assert "<b>trial 1</b>" in text(doc)
    assert list(rows.data["state"]) == [*states[:2], "failed: a rate <is> positive"]
    assert list(rows.data["missed"]) == [0, 0, 7]
    assert "attempts" not in rows.data
    assert list(source(doc, "errors")["trial"]) == [0, 1]
    assert "trial 1 orange; the best, trial 0, blue" in text(doc)
    (select,) = (s for s in doc.select({"type": Select}) if s.options)
    assert not select.visible
    rows.selected.indices = [0]
    assert "<b>trial 0</b>" in text(doc)
    # It stays, whatever begins after it.
    dashboard.log_event(topic_of("heat2d/now"), {"rows": [row(1)], "folder": "/now"})
    again(doc)
    assert "<b>trial 0</b>" in text(doc)
    assert chosen(doc)[0] == [0]
    assert select.visible
    rows.selected.indices = [2]
    assert "Trial 2 has no run yet" in text(doc)
    assert source(doc, "series") is None
    told["trials"][2]["run"] = "/s/trials/2/run"
    dashboard.log_event(topic, {"sweep": told})
    again(doc)
    assert "surrogate-flow watch /s/trials/2/run" in text(doc)
    select.value = topic_of("heat2d/now")
    assert "<b>heat2d/now</b>" in text(doc)
    assert not chosen(doc)[0]
    dashboard.remove_client(None, "one")
    assert {s["state"] for s in dashboard.sweeps.values()} == {"stopped", "running"}
    select.value = topic_of("trial 0")
    assert "surrogate-flow sweep resume /s" in text(doc)


def test_the_end_of_a_run_is_shown_before_its_scheduler_is_gone():
    """Without a wait for the next look of the page."""
    dashboard, doc, topic = Dashboard(), Document(), topic_of("run")
    dashboard.log_event(topic, {"rows": [row(1)]})
    dashboard.pages.add(document(doc, dashboard.runs))
    assert len(doc.session_callbacks) == 1
    dashboard.log_event(topic, {"state": "ended"})
    _, soon = doc.session_callbacks
    soon.callback()
    assert ">ended<" in text(doc)


def test_a_browser_that_is_slow_is_not_sent_more():
    """Until it has painted what it has."""
    told, doc = state(), Document()
    look = document(doc, {told.name: told}).keep_up

    def behind():
        told.update({"rows": [row(len(told.series) + 1)]})
        look()
        return len(told.series) - len(source(doc, "series")["step"])

    assert [behind(), behind(), behind()] == [0, 1, 2]
    paint(doc)
    assert [behind(), behind()] == [0, 1]


def test_an_error_of_the_page_is_logged_once(caplog):
    told = state()
    doc = page(told)
    told.losses["loss"] = None
    told.changes["losses"] += 1
    told.update({"rows": [row(10)]})
    again(doc)
    again(doc)
    assert caplog.text.count("A plot of the live page is not updated any more") == 1
    assert "A plot of this page has failed: see the log." in text(doc)
    assert len(source(doc, "series")["step"]) == 11
    told.series.append({})
    told.rows += 1
    again(doc)
    again(doc)
    assert caplog.text.count("The live page is not updated any more") == 1
    assert "The run goes on" in text(doc)


LOOPBACK = "http://127.0.0.1:8787/status"


@pytest.mark.parametrize(
    ("link", "environ", "line"),
    [
        (LOOPBACK, {}, ""),
        (
            LOOPBACK,
            {"SSH_CONNECTION": "10.0.0.9 5000 10.0.0.1 22"},
            "ssh -N -L 8787:127.0.0.1:8787 ada@10.0.0.1",
        ),
        (
            "http://10.0.0.7:8787/status",
            {"SSH_CONNECTION": "10.0.0.9 5000 10.0.0.1 22"},
            "ssh -N -L 8787:10.0.0.7:8787 ada@10.0.0.1",
        ),
        (
            LOOPBACK,
            {"SLURM_SUBMIT_HOST": "login3", "SSH_CONNECTION": "a 1 b 2"},
            "ssh -N -L 8787:127.0.0.1:8787 -J ada@login3 ada@node7",
        ),
        (
            LOOPBACK,
            {"PBS_O_HOST": "login3.site"},
            "ssh -N -L 8787:127.0.0.1:8787 -J ada@login3.site ada@node7",
        ),
        ("/user/ada/proxy/8787/status", {"SSH_CONNECTION": "a 1 b 2"}, ""),
    ],
)
def test_the_line_to_reach_a_page_elsewhere(link, environ, line, monkeypatch):
    """Through the login node to a compute node; behind a proxy none is needed."""
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    assert tunnel(link, {"USER": "ada", **environ}) == line


def test_a_user_without_a_name_has_a_number(monkeypatch):
    """As in a container; a line that needs none asks for none."""

    def fails():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", fails)
    assert tunnel(LOOPBACK, {}) == ""
    line = tunnel(LOOPBACK, {"SSH_CONNECTION": "10.0.0.9 5000 10.0.0.1 22"})
    assert line.endswith(f" {os.getuid()}@10.0.0.1")


def test_all_parameters_are_those_of_the_spec():
    assert state().parameters == dict.fromkeys(PARAMETERS, "K")
