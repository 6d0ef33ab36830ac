"""What records and the live page cost a run: samples/s with and without, in turn.

Fits of the demo and of a mesh, whose newest losses and fields are written and sent to
the page, open in a session of Bokeh in another process, for some seconds, and none of
it for as many; then one of the demo with a page that nobody looks at. Each window is
compared with the mean of the two around it; the value is the median of the rates with
the page, the peer that of those without. The solvers run on the same cores meanwhile.
*processor* is the time that the loop of Dask's scheduler takes with the page, in
percent of a core, beside what it takes without: both are in the process that trains.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as L
from distributed import Scheduler
from row import Row, report

from surrogate_flow.cli.lightning import build
from surrogate_flow.data.module import Status
from surrogate_flow.report.live.publisher import LivePage
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.records import Records

SETTLE = 0.2  # share of a window that does not count


def view(link: str, commands: Connection) -> None:
    """Have the page open while the other side says so, as a browser would."""
    from bokeh.client import pull_session

    os.nice(19)  # elsewhere, it would take nothing here

    session: Any = None
    while (command := commands.recv() if commands.poll(2.0) else "") != "end":
        if command == "open":
            session = pull_session(url=link)
        elif command == "close" and session:
            session.close()
            session = None
        if session:
            session.force_roundtrip()  # takes what the server has sent


class InTurn(LivePage):
    """A page that is there in every second window; rates of both kinds of windows."""

    def __init__(
        self, records: Records, seconds: float, windows: int, opens: bool
    ) -> None:
        super().__init__(records.folder)
        self._records, self._opens = records, opens
        self._window, self._windows = seconds, windows
        self.on = False
        self.rates: list[float] = []
        self.shares: list[float] = []
        self._begin = 0.0
        self._counted: tuple[float, int, float] | None = None
        self._samples = 0
        self._clock = 0
        self._viewer: Any = None

    def __call__(self, status: Status) -> None:
        """Write what the page needs, and send it, in its windows."""
        if self.on:
            self._records(status)
            super().__call__(status)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the process that looks."""
        if self._viewer is not None:
            return
        client: Any = self._client
        link = str(client.dashboard_link).replace("/status", "/surrogate")
        self._commands, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._viewer = context.Process(target=view, args=(link, theirs), daemon=True)
        self._viewer.start()
        loop = threading.Event()

        def note() -> None:
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
            loop.set()

        address = client.scheduler.address
        (scheduler,) = (s for s in Scheduler._instances if s.address == address)
        scheduler.loop.add_callback(note)
        loop.wait()
        self._begin = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count; begin the next window when it is time."""
        self._samples += len(batch.step)
        now, loop = time.monotonic(), time.clock_gettime(self._clock)
        age = now - self._begin
        if self._counted is None and age >= SETTLE * self._window:
            self._counted = now, self._samples, loop
        if age < self._window or self._counted is None:
            return
        since, samples, before = self._counted
        self.rates.append((self._samples - samples) / (now - since))
        self.shares.append(100 * (loop - before) / (now - since))
        self.on = not self.on
        if self._opens:
            self._commands.send("open" if self.on else "close")
        self._begin, self._counted = now, None
        if len(self.rates) >= self._windows:
            self._commands.send("end")
            trainer.should_stop = True


def measure(
    seconds: float, windows: int, data: str, opens: bool, words: list[str]
) -> list[Row]:
    """Fit until there were so many windows."""
    words = [f"--data={data}", "--data.simulations=null", *words]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "page" / "now"
        source, surrogate = build(["fit", "--model=fully_connected", *words])
        records = Records(folder)
        page = InTurn(records, seconds, windows, opens)
        monitor = Monitor(folder, [page])
        trainer = L.Trainer(
            callbacks=[monitor, records, page],
            logger=False,
            max_epochs=-1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(surrogate, source)
    ratios = [
        2 * page.rates[k] / (page.rates[k - 1] + page.rates[k + 1])
        for k in range(1, len(page.rates) - 1, 2)
    ]
    print(
        f"with the page {statistics.median(ratios):.4f} of the rate without "
        f"({min(ratios):.4f} to {max(ratios):.4f}, {len(ratios)} windows)"
    )
    made, state = [], "open" if opens else "closed"
    for case, unit, values in (
        (f"{data}, training, page {state}", "samples/s", page.rates),
        (f"{data}, processor, page {state}", "% of a core", page.shares),
    ):
        on, off = statistics.median(values[1::2]), statistics.median(values[::2])
        made.append(Row(case, on, unit, "no page", off))
    return made


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a window")
    parser.add_argument("--windows", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="windows of two seconds")
    parser.add_argument("--json", type=Path)
    options, words = parser.parse_known_args()
    if options.quick:
        options.seconds, options.windows = 2.0, 5
    cases = ("heat2d", True), ("heat_plate", True), ("heat2d", False)
    rows = [
        row
        for data, opens in cases
        for row in measure(options.seconds, options.windows, data, opens, words)
    ]
    report(rows, options.json)


if __name__ == "__main__":
    main()
