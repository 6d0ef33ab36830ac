"""A page as a person sees it: in a headless Chromium, on this machine alone.

    with Browser(folder) as browser, browser.page(url) as page:
        page.wait_for_data("reservoir", "losses")
        page.picture("live.png")

What the console calls an error, and what is asked of another machine, fail at the end of the page.
"""

import base64
import contextlib
import json
import os
import resource
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1000"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-quic", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
# Idle documents, and how many rows each of their sources has, by name or number.
STATE = """
const documents = (window.Bokeh?.documents ?? []).filter(d => d.roots().length > 0);
// Not all models of a document: what a page has replaced stays there for a while.
const drawn = documents.flatMap(d => d.roots()).flatMap(r => [...r.references()]);
const sources = [...new Set(drawn)].filter(m => m.type === "ColumnDataSource");
return {
    idle: documents.length > 0 && documents.every(d => d.is_idle),
    rows: sources.map(s => [s.name ?? s.id, s.get_length() ?? 0]),
};
"""


def missing():
    """Return what a machine lacks for these tests, or an empty string.

    Where NEEDS_BROWSER is set, as CI does, a machine must not lack anything.
    """
    why = _missing()
    assert not (why and os.environ.get("NEEDS_BROWSER")), why
    return why


def _missing():
    if CHROMIUM is None or DRIVER is None:
        return "no Chromium with its driver; apt install chromium chromium-driver"
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return "Chromium reserves more address space than this shell's ulimit -v"
    return ""


class Browser:
    """A Chromium with an empty profile in a folder, which it is given."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __enter__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability(
            "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
        )
        for flag in (*FLAGS, f"--user-data-dir={self.folder / 'profile'}"):
            options.add_argument(flag)
        if os.getuid() == 0:
            options.add_argument("--no-sandbox")
        service = webdriver.ChromeService(
            DRIVER, env={**os.environ, "HOME": str(self.folder)}
        )
        self.driver = webdriver.Chrome(options, service)
        self.driver.set_script_timeout(120)  # of a busy machine, too
        return self

    def __exit__(self, *_):
        self.driver.quit()

    @contextlib.contextmanager
    def page(self, address):
        """Open a page, by its address or as a file."""
        if isinstance(address, Path):
            address = address.resolve().as_uri()
        self.driver.get("about:blank")
        for log in ("browser", "performance"):  # what the last page has left
            self.driver.get_log(log)
        self.driver.get(address)
        page = Page(self.driver)
        page.check()
        yield page
        page.check()


class Page:
    """The page that is open."""

    def __init__(self, driver):
        self.driver = driver

    def wait(self, condition, why, timeout=200):
        """Wait until a condition of this page holds; return what it has returned."""
        try:
            return WebDriverWait(self.driver, timeout, 0.1).until(
                lambda _: condition(self)
            )
        except TimeoutException:
            self.check()
            raise AssertionError(f"{why}: {self.state()}") from None

    def state(self):
        """Return whether its plots are drawn, and the fewest rows of each source."""
        state = self.driver.execute_script(STATE)
        rows = {}
        for name, count in state["rows"]:
            rows[name] = min(count, rows.get(name, count))
        return state["idle"], rows

    def wait_for_data(self, *names, timeout=200):
        """Wait until plots are drawn and sources of these names, or all, have rows."""

        def drawn(page):
            idle, rows = page.state()
            return idle and rows and all(rows.get(name) for name in names or rows)

        self.wait(drawn, f"no data for {names or 'some plots'}", timeout)

    def text(self):
        """Return all that can be read, in shadow trees too, where Bokeh draws."""
        return self.driver.execute_script(
            "const text = n => n.nodeType === 3 ? n.data"
            " : ['SCRIPT', 'STYLE'].includes(n.nodeName) ? '' :"
            " [...(n.shadowRoot?.childNodes ?? []), ...n.childNodes].map(text).join(' ');"
            "return text(document.body);"
        )

    def check(self):
        """Fail on errors of the console and on what is asked of another machine."""
        log = self.driver.get_log("browser")
        errors = [line["message"] for line in log if line["level"] == "SEVERE"]
        assert not errors, errors
        outside = [url for url in self._asked() if _is_elsewhere(url)]
        assert not outside, outside

    def _asked(self):
        """Yield the addresses of what was asked for since the last time."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]
            elif message["method"] == "Network.webSocketCreated":
                yield message["params"]["url"]

    def picture(self, path, height=2600):
        """Leave a picture of the page, so far down."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})
        size = size["cssContentSize"]
        size["height"] = min(size["height"], height)
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"captureBeyondViewport": True, "clip": {**size, "scale": 1}},
        )
        Path(path).write_bytes(base64.b64decode(taken["data"]))


def _is_elsewhere(url):
    parts = urlsplit(url)
    here = ("127.0.0.1", "localhost")
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in here
