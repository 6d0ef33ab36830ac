"""Sends the scheduler of a run what its live page shows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as L
from distributed import Client
from pytorch_lightning.trainer.states import TrainerFn

from surrogate_flow.data.module import RunCallback, Status, SurrogateData, data_of
from surrogate_flow.fields.errors import UserError
from surrogate_flow.files import observing
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.tables import typed
from surrogate_flow.report.live.dashboard import NAME, PAGE, Dashboard, topic_of
from surrogate_flow.report.live.follow import Changes, name_of
from surrogate_flow.report.live.reach import elsewhere
from surrogate_flow.report.monitor import telemetry
from surrogate_flow.report.records import Throttle

__all__ = ["LivePage", "new_topic"]

logger = logging.getLogger(__name__)

_ANSWER = 5.0  # seconds that the scheduler has to take the last message
_START = 120.0  # seconds that it has to import and add the page, in the background
_FILES = 2.0  # seconds between two looks at the files of the run, at least
_PROBLEMS = 10.0  # seconds between two looks for what is wrong
_RECENT = 120  # rows of telemetry that these see
_WAITING = {"rows": 30, "failures": 100}  # that wait for a scheduler; the newest


class LivePage(RunCallback):
    """The page of a run in the dashboard of its cluster; its address is logged.

    A listener of the `Monitor`: each `Status` becomes an event on the scheduler, in the
    thread of Dask's client, so that nobody waits for it. Without a cluster, or where
    the scheduler cannot load this package, `surrogate-flow watch` is named instead.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._topic = ""
        self._changes = Changes(folder)
        self._client: Client | None = None
        self._rank = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._begun: dict[str, Any] = {}
        self._pace, self._judged = Throttle(_FILES), 0.0
        self._unsent: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._ready = self._sends = self._over = self._warned = False
        self._trains = True

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Add the page to the dashboard, in the background, and log its address."""
        self._over, self._trains = False, True
        # The other ranks send to the page of the first.
        topic = trainer.strategy.broadcast(new_topic(self.folder))
        data = data_of(trainer)
        if data is None or (self._client and self._client is data.client):
            return
        with observing("The live page"):
            self._show(trainer, data, stage, topic)

    def _show(
        self, trainer: L.Trainer, data: SurrogateData, stage: str, topic: str
    ) -> None:
        self._client, self._rank = data.client, trainer.global_rank
        self._topic, self._ready = topic, self._rank > 0
        if self._client is None:
            if trainer.is_global_zero and stage == "fit":
                logger.info("Live page: surrogate-flow watch %s", self.folder)
            return
        if self._rank == 0:
            self.open(self._client, topic, {"folder": str(self.folder.resolve())})

    def open(self, client: Any, topic: str, message: dict[str, Any]) -> None:
        """Begin to send, whatever it is of; the page is added in the background."""
        self._client, self._topic = client, topic
        self._post(client, {"client": client.id, "state": "running", **message})
        client.loop.add_callback(self._register, client)

    def send(self, message: dict[str, Any]) -> None:
        """Have a message sent, unless nobody takes it."""
        if self._client is not None:
            self._post(self._client, message)

    async def _register(self, client: Any) -> None:
        link = "not known"
        try:
            link = str(client.dashboard_link)
            page = f"{link.rpartition('/')[0]}/{PAGE}"
            line = elsewhere(page)
            added = client._register_scheduler_plugin(Dashboard(), NAME, True)
            await asyncio.wait_for(added, _START)
        except Exception as error:
            # Of any type: the scheduler's own. It must not end the run.
            self._client = None
            why = str(error).rstrip(".") or type(error).__name__
            logger.warning(
                "No live page on the scheduler (%s); surrogate-flow watch %s shows it. "
                "Dask dashboard: %s",
                why,
                self.folder,
                link,
            )
            return
        logger.info("Live page: %s (Dask dashboard: %s)", page, link)
        if line:
            logger.info("%s", line)
        self._ready = True
        await self._send(client)

    def __call__(self, status: Status) -> None:
        """Send the state of this second, and what the run has written."""
        client: Any = self._client
        if client is None:
            return
        if client.status != "running" and not self._over:
            self._warn("its scheduler cannot be reached")
        row = telemetry(status)
        message: dict[str, Any] = {"rank": self._rank, "rows": [row]}
        if self._trains:
            if row.get("step") != self._begun.get("step"):
                self._begun = row
            self._recent.append(row)
        now = time.monotonic()
        if self._rank == 0 and self._pace.due:
            with self._pace.taking():
                message |= self._of_files(now)
        self._post(client, message)

    def _of_files(self, now: float) -> dict[str, Any]:
        try:
            run = RunFolder(self.folder)
        except UserError:
            return {}  # Nothing is written, as on a full disk, which is logged.
        message = self._changes.message(run)
        if now - self._judged >= _PROBLEMS:
            self._judged = now
            # Of the last two minutes, whatever the file has, and of the last batch.
            rows = [*self._recent]
            if rows and self._begun["seconds"] < rows[0]["seconds"]:
                rows.insert(0, self._begun)
            vars(run).update(telemetry=typed(pd.DataFrame(rows)), state="running")
            message["problems"] = run.problems
        return message

    def on_train_end(self, *_: Any) -> None:
        """Look for nothing that is wrong behind the last batch."""
        self._trains = False

    def on_fit_end(self, *_: Any) -> None:
        """Say that the run has ended, while the cluster is there."""
        self.end("ended")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Say that a run which only validates has ended."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.end("ended")

    def on_test_end(self, *_: Any) -> None:
        """Say that the run has ended."""
        self.end("ended")

    def on_exception(self, *_: Any) -> None:
        """Say that the run has failed."""
        self.end("stopped")

    def end(self, state: str) -> None:
        """Say how it has ended, while the scheduler is there."""
        client: Any = self._client
        self._over = True
        if client is None or self._rank or client.status != "running":
            return
        with self._lock:
            self._unsent["state"] = state
        try:
            client.sync(self._send_all, client, callback_timeout=_ANSWER)
        except Exception as error:
            logger.debug("The page may not show that the run has ended: %r", error)

    def _post(self, client: Any, message: dict[str, Any]) -> None:
        """Have a message sent, joined with those that wait."""
        with self._lock:
            self._unsent = _joined(self._unsent, message)
        if self._ready and not self._sends and client.status == "running":
            client.loop.add_callback(self._send, client)

    async def _send_all(self, client: Any) -> None:
        # Before the page is there, this waits for it as all messages do.
        while self._ready and self._client and (self._unsent or self._sends):
            await self._send(client)
            await asyncio.sleep(0.01)

    async def _send(self, client: Any) -> None:
        """Send what waits, one message after the other; in the loop of the client."""
        if self._sends or not self._ready:
            return
        self._sends = True
        message: dict[str, Any] = {}
        try:
            while self._unsent:
                with self._lock:
                    message, self._unsent = self._unsent, {}
                await client.scheduler.log_event(topic=self._topic, msg=message)
        except OSError as error:
            with self._lock:
                self._unsent = _joined(message, self._unsent)
            self._warn(repr(error))
        except Exception as error:
            # Nothing here ends a run.
            self._client = None
            self._warn(repr(error))
        finally:
            self._sends = False

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "The live page gets nothing (%s); surrogate-flow watch %s goes on.",
                why,
                self.folder,
            )


def new_topic(folder: Path) -> str:
    """Return a topic that no other run has, of this folder's name or another's."""
    started = time.strftime("%H:%M:%S")
    return topic_of(name_of(folder), f"{started} {uuid.uuid4().hex[:4]}")


def _joined(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Return two messages as one, which is no longer for a scheduler that is slow."""
    joined = first | then
    for name, most in _WAITING.items():
        if name in joined:
            joined[name] = [*first.get(name, ()), *then.get(name, ())][-most:]
    return joined
