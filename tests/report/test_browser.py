"""What a person sees: pages with data in them, without an error of the browser."""

import json
import os
import re
import signal
from pathlib import Path

import browser as chromium
import moments
import programs
import pytest
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure, output_file, save
from bokeh.resources import INLINE

from surrogate_flow.cli.sweep.page import sweep_page

# A browser on a busy machine has a tenth of a core for plots that take seconds of one.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(800)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if why := chromium.missing():
        pytest.skip(why)
    with chromium.Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def keep(page, name):
    """Leave a picture, where somebody wants them."""
    if folder := os.environ.get("PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.picture(Path(folder) / name)


# Of a page that is drawn: the hint before, and whether the notice of a lost connection is seen.
CONNECTING = "return document.querySelector('.connecting').offsetHeight"
LOST = "return Bokeh.documents[0].get_model_by_name('lost').visible"
WIDE = "return document.documentElement.scrollWidth - window.innerWidth"
PHONE = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}


def address(program):
    """Return the first address that a program prints."""
    for line in program.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+[\w/]*", line):
            return found[0]
    raise AssertionError("it has printed none")


def test_a_run_is_seen_from_its_start_to_its_report(browser, tmp_path):
    """In the dashboard, beside the run, and when it has ended: one run, three pages.

    `make pictures` has the demo in the place of a tiny workflow.
    """
    env = {**programs.environment(), "SURROGATE_FLOW_REPORT": ""}
    if demo := os.environ.get("PICTURES_OF"):
        words = ("--data", demo, "--model", "fully_connected")
        fit, validations = programs.start("fit", *words, cwd=tmp_path, env=env), 6
    else:
        endless = {**programs.WORKFLOW, "simulations": None}
        fit, validations = (
            programs.fit(tmp_path, endless, "--trainer.val_check_interval=50", env=env),
            2,
        )
    drawn = ("series", "validations", "newest", "parameters", "times_seen")
    with browser.page(address(fit)) as page:
        page.wait(
            lambda page: page.state()[1].get("validations", 0) >= validations,
            "too few validations",
        )
        page.wait_for_data(*drawn)
        assert browser.driver.execute_script(CONNECTING) == 0
        keep(page, "live.png")
    (run,) = tmp_path.glob("runs/*/*")
    watch = programs.start("watch", run, "--port", 0, cwd=tmp_path)
    with browser.page(address(watch)) as page:
        page.wait_for_data(*drawn)
        keep(page, "watch.png")
        fit.send_signal(signal.SIGINT)
        said = fit.communicate(timeout=200)
        page.wait(lambda page: "ended" in page.text(), "it does not tell the end")
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        page.wait(lambda _: browser.driver.execute_script(WIDE) == 0, "too wide")
        keep(page, "phone.png")
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert browser.driver.execute_script(CONNECTING) == 0
        assert not browser.driver.execute_script(LOST)
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=200)
    page.wait(
        lambda _: browser.driver.execute_script(LOST), "it looks as if it went on"
    )
    with browser.page(run / "report.html") as page:
        page.wait_for_data()
        error = json.loads((run / "outcome.json").read_text())["errors"]
        shown = re.search(r"has an error of ([\d.]+) %", page.text())
        assert shown, said
        assert float(shown[1]) == pytest.approx(
            100 * error["val_relative_l2"], rel=0.01
        )
        keep(page, "report.png")
    assert (run / "report.html").stat().st_size < 5e6


def test_a_sweep_is_seen_in_its_report(browser, tmp_path):
    """`make pictures` has a shipped one in the place of trials that nobody trained."""
    folder = tmp_path / "sweeps" / "learning_rate"
    if os.environ.get("PICTURES_OF"):
        count = 6
        short = ("--trainer.max_steps", 200, "--trainer.val_check_interval", 50)
        words = ("sweep", "learning_rate", "--trials", count, *short)
        programs.run(*words, cwd=tmp_path, timeout=850)
    else:
        count, made = 12, moments.many_trials(folder)
        (folder / "report.html").write_text(sweep_page(made, made.rows()))
    with browser.page(folder / "report.html") as page:
        page.wait_for_data()
        assert f"{count} of {count} trials are complete" in page.text()
        keep(page, "sweep.png")
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        page.wait(lambda _: browser.driver.execute_script(WIDE) == 0, "too wide")
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def plot(path, rows, more=""):
    source = ColumnDataSource({"x": list(range(rows))}, name="numbers")
    plot = figure(height=200)
    plot.scatter("x", "x", source=source)
    output_file(path, mode="inline")
    save(plot, resources=INLINE, title="numbers")
    path.write_text(path.read_text().replace("</body>", f"{more}</body>"))


def test_a_plot_without_data_is_told_from_one_with(browser, tmp_path):
    plot(tmp_path / "full.html", 5)
    with browser.page(tmp_path / "full.html") as page:
        page.wait_for_data()
        page.wait_for_data("numbers")
        page.picture(tmp_path / "full.png")
        assert page.state() == (True, {"numbers": 5})
    assert (tmp_path / "full.png").read_bytes().startswith(b"\x89PNG")
    plot(tmp_path / "empty.html", 0)
    empty = browser.page(tmp_path / "empty.html")
    with empty as page, pytest.raises(AssertionError, match="no data"):
        page.wait_for_data(timeout=1)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("<script>undefined_function()</script>", "undefined_function"),
        ("<img src='http://192.0.2.1/a.png'>", "192.0.2.1"),
        ("<img src='https://cdn.bokeh.org/a.png'>", "cdn.bokeh.org"),
    ],
    ids=["error", "address", "name"],
)
def test_errors_and_other_machines_are_not_missed(script, said, browser, tmp_path):
    plot(tmp_path / "bad.html", 5, script)
    bad = browser.page(tmp_path / "bad.html")
    with pytest.raises(AssertionError, match=said), bad as page:
        page.wait_for_data()
