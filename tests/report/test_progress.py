"""Lines of progress where there is no terminal: each state is printed once."""

import io

import pytest
from batch import wait_until
from rich.console import Console
from rich.text import Text

from surrogate_flow.report.console import LiveLine


def ticked(last):
    """Ask for "one" a few times, then end with a line; return what stands there."""
    file, states = io.StringIO(), []

    def line():
        states.append(now)
        return Text(now)

    now = "one"
    live = LiveLine(line, Console(file=file, width=80), every=0.01)
    live.start()
    wait_until(lambda: len(states) > 2)
    now = last
    live.stop()
    return file.getvalue().split()


def test_each_state_is_printed_once():
    """Where nothing has changed since the last line, none is printed, at the end either."""
    assert ticked("one") == ["one"]
    assert ticked("two") == ["one", "two"]


def test_a_log_without_room_ends_no_run(caplog):
    """What is said of it is one line."""
    full = Console(file=open("/dev/full", "w", buffering=1))  # noqa: SIM115
    live = LiveLine(lambda: Text("one"), full, every=0.01)
    live.start()
    wait_until(lambda: "was not written" in caplog.text)
    live.stop()
    live.check()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_defect_of_the_line_is_raised_where_the_run_is(terminal):
    """It ends no thread with a traceback of its own."""
    asked, console = [], Console(file=io.StringIO(), force_terminal=terminal)

    def line():
        asked.append(1)
        raise ArithmeticError("no rate")

    live = LiveLine(line, console, every=0.01)
    live.start()
    wait_until(lambda: asked)
    live.stop()
    with pytest.raises(ArithmeticError, match="no rate"):
        live.check()
