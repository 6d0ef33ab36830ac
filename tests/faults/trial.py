"""One seed: a study with faults from its beginning to its end, and what must hold then."""

import contextlib
import csv
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from unittest import mock

import psutil

from faults.faulty import Faulty
from faults.ledger import Ledger
from faults.proxy import Proxy
from surrogate_flow.ensemble import Ensemble
from surrogate_flow.failures import Failures
from surrogate_flow.faults import Faults
from surrogate_flow.loader import OnlineLoader
from surrogate_flow.reservoir import Flight
from surrogate_flow.simulation import Simulation, run
from surrogate_flow.stream import Inlet, StreamError
from surrogate_flow.watchdog import Watchdog
from surrogate_flow.windows import Direct

DEADLINE = 90.0  # seconds that a study has to end by itself
STOPPED = 2.5  # seconds that a worker stands still
BEAT = {"HEARTBEAT": 200, "HEARTBEAT_TIMEOUT": 1000}  # ms; STOPPED is longer
REST = 10.0  # seconds for tasks and threads to be gone after the end
OURS = ("inlet", "ensemble", "watchdog", "prefetch", "proxy", "resume", "again")
# Of the nannies, which live in this process and start workers again.
DASKS = ("AsyncProcess", "QueueFeederThread", "asyncio_", "Dask-", "Profile")
# What an attempt may fail with, by what was injected into its simulation ...
CAUSES = {
    "raises": {"ArithmeticError"},
    "nan": {"RefusedStep"},
    "hangs": {"TimeoutError"},
    "gil": {"TimeoutError"},
    "stop": {"StreamRefused", "StreamTimeout", "TimeoutError"},
    # Told to make way for another attempt, which the test began and did not finish.
    "twice": {"EnsembleError"},
}
# ... or, if a cut loses messages, into its study.
LOST = {"StreamRefused", "StreamTimeout", "EnsembleError"}


class Trial:
    """The study of one plan; `run` it, then look at `faults` and `complaints`.

    Parameters
    ----------
    plan : Plan
    client : distributed.Client
        Of a cluster that many trials share.
    folder : Path
        Empty, for this trial alone.
    """

    def __init__(self, plan, client, folder):
        self.plan, self.client, self.folder = plan, client, folder
        self.tokens = folder / "tokens"
        self.tokens.mkdir()
        self.solver = Faulty(
            str(self.tokens), plan.troubles, plan.steps, pace=plan.pace
        )
        self.store = plan.store(self.solver.spec, Direct())
        self.ledger = Ledger(self.store)
        self.aside = []
        self.hung = ""
        self.again = self.paused = self.cut = 0
        self.error = None
        self.seconds = 0.0
        self._over = threading.Event()

    def run(self):
        """Run the study to its end, or to its deadline."""
        threads, start = set(threading.enumerate()), time.monotonic()
        with contextlib.ExitStack() as stack:
            for name, milliseconds in BEAT.items():
                stack.enter_context(
                    mock.patch(f"surrogate_flow.stream.inlet.{name}", milliseconds)
                )
            self._open(stack)
            self._train()
            self.seconds = time.monotonic() - start
        self._over.set()
        left = time.monotonic() + REST
        for thread in set(threading.enumerate()) - threads:
            if thread.name in OURS:
                thread.join(max(0.0, left - time.monotonic()))
        left = set(threading.enumerate()) - threads
        self._threads = [t.name for t in left if not t.name.startswith(DASKS)]
        return self

    def _open(self, stack):
        plan = self.plan
        inlet = Inlet(
            self.solver.spec,
            lambda number: self.ledger,
            host="127.0.0.1" if plan.cuts else None,
            coalesce_bytes=plan.coalesce,
        )
        stack.enter_context(inlet)
        self.inlet, endpoint = inlet, inlet.endpoint
        self.listening = _ports()
        if plan.cuts:
            self.proxy = stack.enter_context(Proxy(endpoint.address, plan.cuts))
            endpoint = replace(endpoint, address=self.proxy.address)
        faults = Faults(max_failures=plan.simulations, step_timeout=plan.step_timeout)
        self.ensemble = Ensemble(
            self.client,
            partial(run, self.solver, endpoint),
            map(self._simulation, range(plan.simulations)),
            name="faults",
            faults=faults,
            failures=Failures(self.folder / "failures.csv"),
            is_whole=inlet.is_whole,
            on_set_aside=self._set_aside,
            on_end=lambda: inlet.call(self.store.end_reception),
            watchdog=Watchdog(self.client, inlet, faults.step_timeout),
        )
        # As a study closes: outlets are told, tasks end, the inlet goes.
        stack.callback(self.ensemble.close)
        stack.callback(inlet.dismiss, "the trial has ended")
        self.ensemble.start()
        threading.Thread(target=self._resume, name="resume", daemon=True).start()
        for number, delay in plan.twice:
            thread = threading.Thread(
                target=self._run_again, args=(endpoint, number, delay), name="again"
            )
            thread.start()

    def _simulation(self, number):
        return Simulation(number, "training", {"number": float(number)})

    def _set_aside(self, number):
        self.inlet.give_up(number)
        self.aside.append(number)

    def _train(self):
        deadline = threading.Timer(DEADLINE, self._give_up)
        deadline.start()
        try:
            for n, batch in enumerate(
                OnlineLoader(
                    self.store, Direct(), flight=Flight(), check=self._check
                )
            ):
                self.ledger.train(batch)
                if n == 1 and self.plan.pause:
                    self.paused += 1
                    time.sleep(self.plan.pause)
        except Exception as error:
            self.error = error
        finally:
            deadline.cancel()
            deadline.join()

    def _check(self):
        self.ensemble.check()
        self.inlet.check()

    def _give_up(self):
        progress = self.ensemble.progress()
        self.hung = f"{progress}, {self.store.waiting()}, {self.inlet.progress()}"
        self.store.stop()

    def _resume(self):
        """Wake workers that were stopped, after a while."""
        woken = set()
        while not self._over.wait(0.05):
            for token in set(self.tokens.glob("stop-*")) - woken:
                if text := token.read_text():
                    woken.add(token)
                    self._over.wait(STOPPED)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(text), signal.SIGCONT)

    def _run_again(self, endpoint, number, delay):
        """Make another first attempt at a simulation, as late as may be."""
        self._over.wait(delay)
        if self._over.is_set():
            return
        self.again += 1
        clean = Faulty("", steps=self.plan.steps, pace=self.plan.pace)
        with contextlib.suppress(StreamError):
            run(clean, endpoint, self._simulation(number), 0)

    def struck(self):
        """How often each kind of fault came to pass."""
        struck = dict.fromkeys(self.plan.kinds, 0)
        for token in self.tokens.iterdir():
            struck[token.name.partition("-")[0]] += 1
        for kind, times in (
            ("twice", self.again),
            ("pause", self.paused),
            ("cut", self.proxy.made if self.plan.cuts else 0),
        ):
            if kind in struck:
                struck[kind] += times
        return struck

    def rows(self):
        """The rows of failures.csv."""
        path = self.folder / "failures.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def whole(self):
        """Every (simulation, step) of those that were not set aside."""
        finished = set(range(self.plan.simulations)) - set(self.aside)
        return {(n, k) for n in finished for k in range(self.plan.steps)}

    def lost(self):
        """Steps of finished simulations that were not delivered, or not trained."""
        missing = self.whole() - self.ledger.delivered.keys()
        return missing | (self.ledger.delivered.keys() - self.ledger.trained.keys())

    def doubled(self):
        """Steps delivered more than once, or trained more than once where once is right."""
        books = [self.ledger.delivered]
        books += [] if self.plan.policy == "Reservoir" else [self.ledger.trained]
        return {key for book in books for key, times in book.items() if times > 1}

    def complaints(self):
        """Everything that does not hold, in words; empty if all is well."""
        words = []
        if self.hung:
            words.append(f"did not end within {DEADLINE:g} s: {self.hung}")
        if self.error:
            words.append(f"ended with {self.error!r}")
        if wrong := self.ledger.wrong:
            words.append(f"fields under wrong labels: {wrong[:3]}")
        if lost := self.lost():
            words.append(f"lost {len(lost)} steps: {sorted(lost)[:5]}")
        if doubled := self.doubled():
            words.append(f"doubled {len(doubled)} steps: {sorted(doubled)[:5]}")
        if alien := self.ledger.trained.keys() - self.ledger.delivered.keys():
            words.append(f"trained what never came: {sorted(alien)[:5]}")
        done = self.ensemble.progress().done
        if done + len(self.aside) != self.plan.simulations:
            words.append(f"{done} done and {self.aside} set aside is not all")
        return words + self._of_failures() + self._left_over()

    def _of_failures(self):
        words, rows, plan = [], self.rows(), self.plan
        injected = {
            (t.simulation, cause)
            for t in plan.troubles
            for cause in CAUSES.get(t.kind, ())
        }
        injected |= {(n, cause) for n, _ in plan.twice for cause in CAUSES["twice"]}
        got = [(int(row["simulation"]), row["error"]) for row in rows]
        for pair, row in zip(got, rows, strict=True):
            if pair not in injected and not (plan.cuts and pair[1] in LOST):
                words.append(f"unexplained failure: {row}")
        aside = sorted(
            int(r["simulation"]) for r in rows if r["outcome"] == "set aside"
        )
        if aside != sorted(self.aside):
            words.append(f"listed as set aside {aside}, were {self.aside}")
        for t in plan.troubles:
            struck = len(list(self.tokens.glob(f"{t.kind}-{t.simulation}-*")))
            listed = sum(got.count((t.simulation, c)) for c in CAUSES.get(t.kind, ()))
            # What a dying worker took with it, or another attempt, was not heard of.
            quiet = {"kill", "term", "hangs", "gil", "cut", "twice"} & set(plan.kinds)
            sure = t.kind in ("raises", "nan", "hangs", "gil")
            if sure and listed != struck and (listed > struck or not quiet - {t.kind}):
                words.append(f"{t} struck {struck} times, {listed} are listed")
        return words

    def _left_over(self):
        words = [f"thread {name} is left" for name in self._threads]
        if ports := _ports() - self.listening:
            words.append(f"ports {ports} are left")
        for kind in ("hangs", "gil"):
            for token in self.tokens.glob(f"{kind}-*"):
                if psutil.pid_exists(int(token.read_text())):
                    words.append(f"the process of {token.name} is left")
        deadline = time.monotonic() + REST
        while left := self._on_workers():
            if time.monotonic() > deadline:
                return [*words, f"on the workers there are left: {left}"]
            time.sleep(0.05)
        return words

    def _on_workers(self):
        tasks = [key for keys in self.client.processing().values() for key in keys]
        threads = self.client.run(_threads, on_error="ignore")
        return tasks + [n for names in threads.values() for n in names if n == "outlet"]


def _threads():
    return [thread.name for thread in threading.enumerate()]


def _ports():
    """Where this process listens."""
    connections = psutil.Process().net_connections("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
