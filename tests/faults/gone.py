"""A study whose scheduler is killed."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
from distributed import Client

from faults.leftovers import REST
from faults.trial import Trial
from surrogate_flow.ensemble.ensemble import EnsembleError
from surrogate_flow.ensemble.ledger import SimulationState

DASK = (sys.executable, "-m", "dask")
OWN = ("--host=127.0.0.1", "--no-dashboard")


class Gone(Trial):
    """Simulations without end, on a scheduler of their own, until it gets SIGKILL."""

    def run(self):
        """Run the study until it ends with an error."""
        # Some have finished by then, and others are under way.
        self.after = self.plan.simulations * self.plan.steps // 2
        self.killed = 0
        with self._cluster() as self.client:
            super().run()
            try:
                self.worker.wait(REST)
            except subprocess.TimeoutExpired:
                self.left.words.append("the worker is left, without a scheduler")
        return self

    @contextlib.contextmanager
    def _cluster(self):
        file = f"--scheduler-file={self.folder / 'scheduler.json'}"
        path = os.pathsep.join(
            [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        )
        environment = {**os.environ, "PYTHONPATH": path}
        started = []
        try:
            for words in (
                ("scheduler", "--port=0"),
                ("worker", "--no-nanny", "--nthreads=2"),
            ):
                log = (self.folder / f"{words[0]}.log").open("w")
                process = subprocess.Popen(
                    [*DASK, *words, *OWN, file],
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
                log.close()
                started.append(process)
            self.scheduler, self.worker = started
            with Client(
                scheduler_file=file.partition("=")[2], timeout=60, set_as_default=False
            ) as client:
                self.address = client.scheduler.address
                yield client
        finally:
            for process in started:
                process.kill()
                process.wait()

    def _open(self, stack):
        super()._open(stack)
        threading.Thread(target=self._kill, name="killer").start()

    def _kill(self):
        while not self._over.wait(0.005):
            if self.ledger.steps >= self.after:
                self.scheduler.kill()
                self.killed = 1
                return

    def _numbers(self):
        return itertools.count()

    def whole(self):
        """Every (simulation, step) of those that had finished."""
        begun = {number for number, _ in self.ledger.delivered}
        done = [n for n in begun if self.book.state(n) is SimulationState.COMPLETE]
        return {(n, k) for n in done for k in range(self.plan.steps)}

    def struck(self):
        """How often the scheduler was killed."""
        return {"gone": self.killed}

    def complaints(self):
        """Everything that does not hold, in words; empty if all is well."""
        words = [f"did not end: {self.hung}"] if self.hung else []
        expected = f"Lost the scheduler {self.address}"
        if not isinstance(self.error, EnsembleError) or expected not in str(self.error):
            words.append(f"expected '{expected}', ended with {self.error!r}")
        if not self.whole():
            words.append("no simulation had finished")
        if psutil.pid_exists(self.worker.pid):
            words.append("the worker's process is left")
        words += self.audit.of_steps(drained=False)
        path = self.folder / "failures.csv"
        words += self.audit.of_failures(path, self.tokens, self.aside)
        return words + self.left.words

    def books(self):
        """Numbers of steps sent, lost and doubled."""
        lost = self.audit.lost(drained=False)
        return {**super().books(), "lost": len(lost)}
