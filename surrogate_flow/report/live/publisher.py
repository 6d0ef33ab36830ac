"""Tells the scheduler of a run what its live page shows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as L
from distributed import Client
from pytorch_lightning.trainer.states import TrainerFn

from surrogate_flow.data.module import RunCallback, Status, data_of
from surrogate_flow.fields.errors import UserError
from surrogate_flow.report.diagnosis import problems_of
from surrogate_flow.report.live.dashboard import NAME, PAGE, Dashboard, topic_of
from surrogate_flow.report.live.follow import Changes
from surrogate_flow.report.live.reach import elsewhere
from surrogate_flow.report.monitor import telemetry
from surrogate_flow.report.records import Pace
from surrogate_flow.report.run_folder import RunFolder, typed

__all__ = ["LivePage"]

logger = logging.getLogger(__name__)

_ANSWER = 5.0  # seconds that the scheduler has to take the page, and the last message
_FILES = 2.0  # seconds between two looks at the files of the run, at least
_PROBLEMS = 10.0  # seconds between two looks for what is wrong
_RECENT = 120  # rows of telemetry that these see
_WAITING = 30  # messages that wait for a scheduler that does not answer


class LivePage(RunCallback):
    """The page of a run in the dashboard of its cluster; its address is logged.

    A listener of the `Monitor`: each `Status` becomes an event on the scheduler, in the
    thread of Dask's client, so that nobody waits for it. Without a cluster, or where
    the scheduler cannot load this package, `surrogate-flow watch` is named instead.

    Parameters
    ----------
    folder : Path
        Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = "/".join(folder.resolve().parts[-2:])
        self._changes = Changes(folder)
        self._client: Client | None = None
        self._rank = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._pace, self._judged = Pace(_FILES), 0.0
        self._unsent: deque[dict[str, Any]] = deque(maxlen=_WAITING)
        self._sends = False

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Add the page to the dashboard, and say where it is."""
        data = data_of(trainer)
        if data is None or (self._client and self._client is data.client):
            return
        self._client, self._rank = data.client, trainer.global_rank
        if self._client is None:
            if trainer.is_global_zero and stage == "fit":
                logger.info("Live page: surrogate-flow watch %s", self.folder)
            return
        if self._rank == 0 and not self._register(self._client):
            self._client = None
            return
        if self._rank == 0:
            self._tell({"client": self._client.id, "state": "running"})

    def _register(self, client: Client) -> bool:
        ask: Any = client
        link = str(client.dashboard_link)
        page = f"{link.rpartition('/')[0]}/{PAGE}"
        try:
            ask.sync(
                *(ask._register_scheduler_plugin, Dashboard(), NAME, True),
                callback_timeout=_ANSWER,
            )
        except Exception as error:
            # Of any type: the scheduler's own. It must not end the run.
            why = str(error).rstrip(".") or type(error).__name__
            logger.warning(
                "No live page on the scheduler (%s); surrogate-flow watch %s shows it. "
                "Dask dashboard: %s",
                why,
                self.folder,
                link,
            )
            return False
        logger.info("Live page: %s; Dask dashboard: %s", page, link)
        if line := elsewhere(page):
            logger.info("%s", line)
        return True

    def __call__(self, status: Status) -> None:
        """Send the state of this second, and what the run has written."""
        if self._client is None:
            return
        row = telemetry(status)
        message: dict[str, Any] = {"rank": self._rank, "rows": [row]}
        self._recent.append(row)
        now = time.monotonic()
        if self._rank == 0 and self._pace.due:
            with self._pace.taking():
                message |= self._of_files(now)
        self._tell(message)

    def _of_files(self, now: float) -> dict[str, Any]:
        try:
            run = RunFolder(self.folder)
        except UserError:
            return {}  # Nothing is written, as on a full disk, which is logged.
        message = self._changes.message(run)
        if now - self._judged >= _PROBLEMS:
            self._judged = now
            # Of the last two minutes, whatever the file has.
            vars(run).update(
                telemetry=typed(pd.DataFrame([*self._recent])), state="running"
            )
            message["problems"] = problems_of(run)
        return message

    def on_fit_end(self, *_: Any) -> None:
        """Say that the run has ended, while the cluster is there."""
        self._end("ended")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Say that a run which only validates has ended."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._end("ended")

    def on_test_end(self, *_: Any) -> None:
        """Say that the run has ended."""
        self._end("ended")

    def on_exception(self, *_: Any) -> None:
        """Say that the run has failed."""
        self._end("stopped")

    def _end(self, state: str) -> None:
        ask: Any = self._client
        if ask is None or self._rank or ask.status != "running":
            return
        self._unsent.append({"state": state})
        try:
            ask.sync(self._send_all, callback_timeout=_ANSWER)
        except Exception as error:
            logger.debug("The page may not show that the run has ended: %r", error)

    def _tell(self, message: dict[str, Any]) -> None:
        client: Any = self._client
        if client.status != "running":
            return
        self._unsent.append(message)
        if not self._sends:
            client.loop.add_callback(self._send)

    async def _send_all(self) -> None:
        await self._send()
        while self._sends:
            await asyncio.sleep(0.01)

    async def _send(self) -> None:
        """Send what waits, one message after the other; in the loop of the client."""
        client: Any = self._client
        if self._sends or client is None:
            return
        self._sends = True
        try:
            while self._unsent:
                message = self._unsent.popleft()
                await client.scheduler.log_event(topic=topic_of(self._run), msg=message)
        except Exception as error:
            # Nothing here ends a run.
            self._client = None
            logger.warning(
                "The live page gets nothing more (%r); surrogate-flow watch %s goes "
                "on.",
                error,
                self.folder,
            )
        finally:
            self._sends = False
