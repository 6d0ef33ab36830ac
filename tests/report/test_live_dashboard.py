"""The live page in the dashboard of a scheduler, here and elsewhere, and under ``watch``."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import browser
import pytest
from batch import wait_until
from bokeh.client import pull_session
from bokeh.models import ColumnDataSource, Div, Select
from distributed import Client
from filled import Filled, fit
from live_states import field, losses, row
from pytorch_lightning.callbacks import Callback
from test_monitor import rows_of
from test_run_folder import rows, wrote

from surrogate_flow.report.live.dashboard import NAME, Dashboard, topic_of
from surrogate_flow.report.live.publisher import LivePage
from surrogate_flow.report.monitor import Monitor


def get(link):
    with urllib.request.urlopen(link, timeout=30) as answer:
        return answer.read().decode()


def shown(link):
    """The numbers and the words of a page, as a browser gets them."""
    session = pull_session(url=link)
    try:
        sources = session.document.select({"type": ColumnDataSource})
        words = [div.text for div in session.document.select({"type": Div})]
        return {s.name: s.data for s in sources}, "\n".join(words)
    finally:
        session.close()


def look(link, folder, *names):
    """Open a page in a browser, if there is one: plots hold data, the console has no error."""
    if not browser.missing():
        with browser.Browser(folder) as opened, opened.page(link) as page:
            page.wait_for_data("series", *names)
            page.picture(folder / "page.png")


def test_a_page_of_the_dashboard_that_runs(client, tmp_path):
    """In its navigation bar, with its prefix; eight runs; those that have ended make room."""
    for _ in range(2):
        client.sync(client._register_scheduler_plugin, Dashboard(), NAME, True)
    link = client.dashboard_link.replace("/status", "/surrogate")
    for number in range(10):
        told = {"rows": [row(second + number) for second in range(20)]}
        if number < 2:
            told["state"] = "ended"
        client.log_event(topic_of(f"run/{number}"), told)
    assert "This page is full" not in shown(link)[1]
    client.log_event(topic_of("run/10"), {"rows": [row(1)]})
    columns = {name: column.tobytes() for name, column in losses().items()}
    client.log_event(topic_of("run/9"), {"losses": columns})
    bytes_ = field("2D").to_netcdf(engine="h5netcdf")
    client.log_event(topic_of("run/9"), {"newest": bytes(bytes_)})
    for page in ("surrogate", "workers"):
        assert get(link.replace("surrogate", page)).count('href="surrogate"') == 1
    sources, words = shown(link)
    assert list(sources["series"]["step"]) == [10 * (9 + s) for s in range(20)]
    assert len(sources["parameters"]["loss"]) == 20
    assert sources["newest"]["solver"][0].shape == (6, 8)
    assert "<b>run/9</b>" in words
    assert "This page is full: 1 other run on this scheduler" in words
    gauges = get(link.replace("surrogate", "metrics"))
    assert 'surrogate_flow_population{run="run/9"} 560.0' in gauges
    runs = set(re.findall(r'surrogate_flow_step\{run="(run/\d)"\}', gauges))
    assert runs == {f"run/{k}" for k in range(2, 10)}
    look(link, tmp_path, "parameters", "newest", "times_seen")
    client.log_event(topic_of("run/9"), {"state": "ended"})
    client.log_event(topic_of("run/10"), {"rows": [row(2)]})
    assert "<b>run/10</b>" in shown(link)[1]
    # Nothing piles up in the memory of the scheduler.
    assert not client.get_events(topic_of("run/9"))
    for number in range(11):
        client.log_event(topic_of(f"run/{number}"), {"state": "ended"})


SCHEDULER = (
    *("-m", "dask", "scheduler", "--host=127.0.0.1", "--port=0"),
    "--dashboard-address=127.0.0.1:0",
)


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler in a process of its own, behind a proxy; how to start it otherwise."""
    started = []

    def start(*options, **environ):
        file = tmp_path / f"scheduler{len(started)}.json"
        words = [sys.executable, *SCHEDULER, f"--scheduler-file={file}", *options]
        environ = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environ,
        }
        errors = subprocess.DEVNULL
        started.append(subprocess.Popen(words, stderr=errors, env=environ))
        return Client(scheduler_file=str(file), timeout=60, set_as_default=False)

    start.processes = started
    yield start
    for process in started:
        process.kill()
        process.wait()


def run(client, folder):
    """Fit, and tell the scheduler of it."""
    data, page = Filled(), LivePage(folder)
    data.client = client
    fit(data, folder, Monitor(folder, [page]), page)
    return page


def test_a_scheduler_elsewhere_shows_the_run_and_its_end(scheduler, tmp_path, caplog):
    """Behind a proxy, too: its address is that of Dask's own pages."""
    caplog.set_level("INFO")
    with scheduler("--dashboard-prefix=/user/ada/proxy") as client:
        folder = tmp_path / "filled" / "now"
        run(client, folder)
        (link,) = wait_until(lambda: re.findall(r"Live page: (\S+) ", caplog.text))
        link = link.replace("/surrogate", "/user/ada/proxy/surrogate")
        body = get(link)
        assert 'href="surrogate"' in body
        assert re.search(r'src="(/user/ada/proxy/)?static/js/bokeh', body), body
        wait_until(lambda: "ended" in shown(link)[1])
        sources, words = shown(link)
        (*_, last) = rows_of(folder / "telemetry.csv")
        assert sources["series"]["step"][-1] == int(last["step"]) > 0
        assert "<b>filled/now</b>" in words
        # One that is killed is said to have stopped, when its connection ends.
        address = client.scheduler_info()["address"]
        with Client(address, set_as_default=False) as other:
            told = {"rows": [row(1)], "client": other.id}
            other.log_event(topic_of("killed"), told)
            assert "running" in shown(link)[1]
        wait_until(lambda: "stopped" in shown(link)[1])


def test_a_scheduler_without_pages_costs_a_line(scheduler, tmp_path, caplog):
    """The run goes on, and watch is named instead."""
    with scheduler("--no-dashboard") as client:
        run(client, tmp_path)
        # The scheduler may take longer to load the page than the run.
        wait_until(lambda: "No live page" in caplog.text)
        (record,) = (
            r for r in caplog.records if r.levelname == "WARNING" and "live" in r.name
        )
        assert "No live page on the scheduler (it has no dashboard)" in record.message
        assert f"surrogate-flow watch {tmp_path} shows it" in record.message
        with pytest.raises(HTTPError):
            get(client.dashboard_link.replace("/status", "/surrogate"))


class Kills(Callback):
    """Kills a scheduler after the first batch, and has two more messages sent."""

    def __init__(self, process, client, monitor, caplog):
        self.process, self.client, self.monitor = process, client, monitor
        self.caplog = caplog

    def on_train_batch_end(self, *_):
        if self.process.poll() is None:
            wait_until(lambda: "Live page: http" in self.caplog.text)
            self.process.kill()
            self.process.wait()
            wait_until(lambda: self.client.status != "running")
            self.monitor.sample()
            self.monitor.sample()


def test_a_scheduler_that_is_killed_ends_no_run(scheduler, tmp_path, caplog):
    """It is said once that the page gets nothing."""
    client, data, page = scheduler(), Filled(), LivePage(tmp_path)
    data.client = client
    monitor = Monitor(tmp_path, [page])
    caplog.set_level("INFO")
    kills = Kills(scheduler.processes[0], client, monitor, caplog)
    try:
        _, trainer = fit(data, tmp_path, monitor, page, kills)
    finally:
        with suppress(TimeoutError):
            client.close(timeout=1)
    assert trainer.global_step > 1
    assert caplog.text.count("The live page gets nothing") == 1
    assert f"surrogate-flow watch {tmp_path} goes on" in caplog.text
    assert "gets no further status" not in caplog.text


def test_no_mistake_of_the_page_ends_a_run(client, tmp_path, caplog, monkeypatch):
    """Whatever fails as the page is added, as the name of a user that has none."""

    def fails(page):
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("surrogate_flow.report.live.publisher.elsewhere", fails)
    page = run(client, tmp_path)
    wait_until(lambda: "No live page on the scheduler" in caplog.text)
    assert "uid not found: 4711" in caplog.text
    asyncio.run(page._register(SimpleNamespace()))
    assert "has no attribute 'dashboard_link'" in caplog.text


def test_two_runs_of_one_name_are_two(client, tmp_path):
    """Such as those of two users, each in a folder of their own."""
    for user in ("ada", "bob"):
        run(client, tmp_path / user / "runs" / "1")
    link = client.dashboard_link.replace("/status", "/surrogate")

    def names():
        session = pull_session(url=link)
        (select,) = session.document.select({"type": Select})
        session.close()
        return {name for _, name in select.options if name.startswith("runs/1, ")}

    wait_until(lambda: len(names()) == 2)
    with urllib.request.urlopen(link.replace("surrogate", "metrics"), timeout=30):
        pass  # No gauge is there twice.


def test_what_waits_for_a_slow_scheduler_is_bounded_and_keeps_failures(tmp_path):
    """The newest rows, and all failures that the page shows."""
    sent = []

    class Scheduler:
        async def log_event(self, topic, msg):
            if not sent:
                sent.append("lost")
                raise OSError("the connection is lost")
            sent.append(msg)

    client = SimpleNamespace(
        scheduler=Scheduler(), status="running", loop=SimpleNamespace()
    )
    page = LivePage(tmp_path)
    client.loop.add_callback = lambda send, to: asyncio.run(send(to))
    page._post(client, {"failures": [{"simulation": 3}]})
    for second in range(50):
        page._post(client, {"rows": [row(second)], "state": "running"})
    page._client = client
    # At the end of a run nobody waits for a page that is not there yet.
    asyncio.run(asyncio.wait_for(page._send_all(client), 5))
    assert not sent
    page._ready = True
    page._post(client, {"rows": [row(50)]})
    page._post(client, {"rows": [row(51)]})
    (_, message) = sent
    assert message["failures"] == [{"simulation": 3}]
    assert [r["seconds"] for r in message["rows"]] == [*range(22, 52)]


def test_watch_shows_a_folder_that_nobody_writes(tmp_path):
    """Without a run, a cluster or a home to write in; on another port if one is taken."""
    folder = tmp_path / "runs" / "heat2d" / "now"
    folder.parent.mkdir(parents=True)
    wrote(folder, rows(30, loss=float("nan")))
    field("1D").to_netcdf(folder / "newest.nc", engine="h5netcdf")
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environ |= {
        "HOME": "/proc",
        "SSH_CONNECTION": "10.0.0.9 5 10.0.0.1 22",
        "USER": "ada",
    }
    words = [sys.executable, "-m", "surrogate_flow", "watch", "--port"]
    watching = [
        subprocess.Popen(
            [*words, "0"], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True
        )
    ]
    try:
        line = watching[0].stdout.readline()
        assert line.startswith("Live page of runs/heat2d/now: ")
        link = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert f"ssh -N -L {link[1]}:127.0.0.1:" in watching[0].stdout.readline()
        sources, told = shown(link[0])
        assert len(sources["series"]["step"]) == 30
        assert len(sources["newest"]["solver"]) == 8
        assert "stopped" in told
        assert "The loss is NaN" in told
        assert "metrics.csv is not there" in told
        look(link[0], tmp_path, "newest")
        watching.append(
            subprocess.Popen(
                [*words, link[1], "runs/heat2d"],
                **{"cwd": tmp_path, "env": environ, "text": True},
                stdout=subprocess.PIPE,
            )
        )
        assert "is taken" in watching[1].stdout.readline()
        line = watching[1].stdout.readline()
        assert line.startswith("Live page of runs/heat2d/now: ")
        assert link[0] not in line
        for process in watching:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
    finally:
        for process in watching:
            process.kill()
            process.wait()
