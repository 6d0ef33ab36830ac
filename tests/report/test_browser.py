"""What a person sees: pages with data in them, without an error of the browser."""

import browser as chromium
import pytest
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure, output_file, save
from bokeh.resources import INLINE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if why := chromium.missing():
        pytest.skip(why)
    with chromium.Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


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
