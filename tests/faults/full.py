"""A fit whose checkpoints find no room on the disk."""

import contextlib
import math
import resource
import time
import warnings
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import Callback

from faults.audit import Audit, table
from faults.faulty import Faulty
from faults.ledger import Ledger
from faults.leftovers import Leftovers
from surrogate_flow.data.online import OnlineData
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.callbacks import (
    AtomicCheckpoints,
    FinalValidation,
    SafeCheckpoint,
)
from surrogate_flow.report.monitor import MetricsTable
from surrogate_flow.sampling import Sampler
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.surrogate import Surrogate

ROOM = 64 << 10  # bytes of the largest file; a checkpoint has several times as many
# Shares of the run at which the disk gets full, and has room again.
SPANS = ((0.0, math.inf), (0.4, math.inf), (0.3, 0.7))


class Numbers(Sampler):
    """1, 2, 3, ...: what training simulations are numbered behind one that is held out."""

    def ask(self, first, count, bounds):
        return np.arange(first + 1.0, first + count + 1)[:, np.newaxis]


class Borrowed:
    """A cluster that stays open."""

    status = "running"

    def __init__(self, client):
        self.scheduler_address = client.scheduler.address
        self.security = client.security
        self.dashboard_link = client.dashboard_link

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Audited(OnlineData):
    """A study whose training simulations pass by a ledger."""

    def setup(self, stage):
        before = self.source
        super().setup(stage)
        if self.source is not before:
            # The ledger stands between the router and the reservoir.
            self.ledger.store = SimpleNamespace(offer=self.store.offer)
            self.store.offer = self.ledger.offer


class Noted(AtomicCheckpoints):
    """Remembers which checkpoints were written, by their steps."""

    def __init__(self):
        super().__init__()
        self.written, self.failed = [], 0

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        if self.error is None:
            self.written.append(checkpoint["global_step"])
        else:
            self.failed += 1


class Full(Callback):
    """The trial: files cannot grow beyond a limit for a part of the run.

    Parameters
    ----------
    plan : Plan
    client : distributed.Client
    folder : Path
    """

    def __init__(self, plan, client, folder):
        self.plan, self.client, self.folder = plan, client, folder
        self.batches = plan.simulations * plan.steps // plan.batch_size
        self.span = SPANS[plan.seed // 24 % len(SPANS)]
        self.checkpoints = Noted()
        self.ledger = Ledger(None)
        self.error, self.hung, self.seconds = None, "", 0.0

    def run(self):
        """Fit from the beginning to the end."""
        plan, self.left = self.plan, Leftovers()
        (self.folder / "tokens").mkdir()
        solver = Faulty("", steps=plan.steps, pace=plan.pace)
        self.data = Audited(
            solver,
            sampler=Numbers(),
            simulations=plan.simulations,
            held_out=1,
            batch_size=plan.batch_size,
            reservoir=plan.reservoir,
            cluster=lambda: Borrowed(self.client),
            checkpoint_reservoir=bool(plan.seed % 2),
        )
        self.data.ledger = self.ledger
        model = Surrogate(solver.spec, partial(FullyConnected, widths=[128, 128]))
        start, before = time.monotonic(), resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            with (
                mock.patch("surrogate_flow.ensemble.study.is_local", bool),
                warnings.catch_warnings(action="ignore"),
            ):
                self._trainer().fit(model, self.data)
        except Exception as error:
            self.error = error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        self.seconds = time.monotonic() - start
        self.left.end()
        return self

    def _trainer(self):
        return L.Trainer(
            default_root_dir=self.folder,
            logger=MetricsTable(self.folder, name="", version=""),
            callbacks=[
                self,
                FinalValidation(),
                SafeCheckpoint(
                    self.folder / "checkpoints",
                    filename="last",
                    save_on_train_epoch_end=False,
                ),
            ],
            plugins=[self.checkpoints],
            max_epochs=1,
            val_check_interval=max(1, self.batches // 6),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Fill the disk, or make room."""
        limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        first, end = (share * self.batches for share in self.span)
        wanted = ROOM if first <= batch_idx < end else hard
        if limit != wanted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (wanted, hard))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Enter the batch into the books."""
        self.ledger.train(batch)

    @property
    def audit(self):
        """What was promised of the steps."""
        numbers = range(1, self.plan.simulations + 1)
        whole = {(n, k) for n in numbers for k in range(self.plan.steps)}
        return Audit(self.plan, self.ledger, whole)

    def struck(self):
        """How many checkpoints found no room."""
        return {"full": self.checkpoints.failed}

    def books(self):
        """Numbers of steps sent, lost and doubled."""
        audit = self.audit
        lost, doubled = audit.lost(drained=True), audit.doubled()
        return {
            "sent": self.ledger.steps,
            "lost": len(lost),
            "doubled": len(doubled),
        }

    def complaints(self):
        """Everything that does not hold, in words; empty if all is well."""
        words, checkpoints = [], self.checkpoints
        if self.error is not None:
            return [f"ended with {self.error!r}", *self.left.words]
        if not checkpoints.failed:
            words.append("no checkpoint failed")
        if (checkpoints.error is None) != (self.span[1] < 1):
            words.append(f"at its end the error is {checkpoints.error!r}")
        folder = self.folder / "checkpoints"
        path, kept = folder / "last.ckpt", None
        with contextlib.suppress(FileNotFoundError):
            checkpoint.read(path)
            kept = torch.load(path, weights_only=True)["global_step"]
        if kept != (checkpoints.written[-1] if checkpoints.written else None):
            words.append(f"kept the step {kept}, of {checkpoints.written} written")
        if left := [p.name for p in folder.glob("*.part")]:
            words.append(f"half files are left: {left}")
        if rows := table(self.folder / "failures.csv"):
            words.append(f"unexplained failures: {rows}")
        words += self.audit.of_steps()
        self.left.tasks(self.client)
        return words + self.left.words
