"""One seed: a study with faults from its beginning to its end, and what must hold then."""

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

from faults.audit import Audit
from faults.faulty import Faulty
from faults.ledger import Ledger
from faults.leftovers import Leftovers
from faults.proxy import Proxy
from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.ensemble import ledger as ensemble_ledger
from surrogate_flow.ensemble.attempt import run
from surrogate_flow.ensemble.ensemble import Ensemble, Tasks
from surrogate_flow.ensemble.events import Exhausted, Failed, FailureLog
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import RecordingSink, SimulationState
from surrogate_flow.ensemble.placement import Placement
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.ensemble.workers import Workers
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import PendingBatches, Store
from surrogate_flow.stream import Inlet, StreamError, Timing

DEADLINE = 90.0  # seconds that a study has to end by itself
STOPPED = 2.5  # seconds that a worker stands still
BEAT = Timing(heartbeat=0.2, heartbeat_timeout=1.0)  # STOPPED is longer
# Seconds between two looks of the watchdog, and for an answer of a worker: one that has
# just started on a busy machine has none for a second or two.
LOOKS = {"poll": 0.3, "answer": 5.0}


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

    planned = None

    def __init__(self, plan, client, folder):
        self.plan, self.client, self.folder = plan, client, folder
        self.tokens = folder / "tokens"
        self.tokens.mkdir()
        self.solver = Faulty(
            str(self.tokens),
            plan.troubles,
            plan.steps,
            pace=plan.pace,
            ends=plan.ends,
        )
        self.store = Store(self.solver.spec, Direct(), plan.batch_size, plan.reservoir)
        self.ledger, self.book = Ledger(self.store), ensemble_ledger.Ledger()
        self._left = iter(self._numbers())
        self.aside = []
        self.hung = ""
        self.again = self.paused = self.cut = 0
        self.error = None
        self.seconds = 0.0
        self._over = threading.Event()

    def run(self):
        """Run the study to its end, or to its deadline."""
        self.left, start = Leftovers(), time.monotonic()
        try:
            self._run()
        except Exception as error:
            # Of closing: the inlet says at its end what has ended it before.
            self.error = self.error or error
        self.seconds = time.monotonic() - start
        self._over.set()
        self.left.end()
        return self

    def _run(self):
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._train()

    def _open(self, stack):
        plan = self.plan
        inlet = Inlet(
            self.solver.spec,
            RecordingSink(self.book, self.ledger),
            host="127.0.0.1" if plan.cuts else None,
            coalesce_bytes=plan.coalesce,
            timing=BEAT,
        )
        stack.enter_context(inlet)
        self.inlet, endpoint = inlet, inlet.endpoint
        self.left.listening()
        if plan.cuts:
            self.proxy = stack.enter_context(Proxy(endpoint.address, plan.cuts))
            endpoint = replace(endpoint, address=self.proxy.address)
        faults = Faults(max_failures=plan.simulations, step_timeout=plan.step_timeout)
        # Without `on_workers` no death of a worker is charged to a simulation.
        placement = stack.enter_context(Placement(self.client))
        task = partial(run, self.solver, endpoint)
        tasks = Tasks(self.client, task, "faults", placement)
        self.ensemble = Ensemble(
            tasks,
            Workers(self.client),
            self,
            self.book,
            faults=faults,
            listeners=[FailureLog(self.folder / "failures.csv"), self._note],
        )
        watchdog = Watchdog(tasks, inlet, self.book, faults.step_timeout, **LOOKS)
        # As a study closes: outlets are told, tasks end, the inlet goes.
        stack.callback(watchdog.close)
        stack.callback(self.ensemble.close)
        stack.callback(inlet.stop_outlets, "the trial has ended")
        stack.callback(self.ensemble.halt)
        self.ensemble.start()
        watchdog.start()
        threading.Thread(target=self._resume, name="resume", daemon=True).start()
        for number, delay in plan.twice:
            thread = threading.Thread(
                target=self._run_again, args=(endpoint, number, delay), name="again"
            )
            thread.start()

    def _numbers(self):
        return range(self.plan.simulations)

    def next(self):
        """Return the next simulation, as the design of the ensemble."""
        number = next(self._left, None)
        return None if number is None else self._simulation(number)

    def _simulation(self, number):
        return Simulation(number, "training", {"number": float(number)})

    def _note(self, event):
        if isinstance(event, Failed):
            self.inlet.give_up(event.simulation.number)
            self.aside.append(event.simulation.number)
        elif isinstance(event, Exhausted):
            self.store.end_reception()

    def _train(self):
        deadline = threading.Timer(DEADLINE + self.plan.pause, self._give_up)
        deadline.start()
        try:
            for n, batch in enumerate(
                OnlineLoader(self.store, pending=PendingBatches(), source=self)
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

    def check(self, waited):
        """Raise what stopped the study, as the source of the batches."""
        self.ensemble.check()
        self.inlet.check()

    def _give_up(self):
        progress = self.ensemble.stats()
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
        # Nobody is let in before the study has begun it.
        while self.book.state(number) is SimulationState.PLANNED:
            if self._over.wait(0.01):
                return
        if self._over.is_set():
            return
        self.again += 1
        clean = Faulty(
            "", steps=self.plan.steps, pace=self.plan.pace, ends=self.plan.ends
        )
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

    def whole(self):
        """Every (simulation, step) of those that were not set aside."""
        finished = set(range(self.plan.simulations)) - set(self.aside)
        return {(n, k) for n in finished for k in range(self.plan.steps_of(n))}

    def complaints(self):
        """Everything that does not hold, in words; empty if all is well."""
        words = []
        if self.hung:
            words.append(f"did not end within {DEADLINE:g} s: {self.hung}")
        if self.error:
            words.append(f"ended with {self.error!r}")
        done = self.ensemble.stats().done
        if done + len(self.aside) != self.plan.simulations:
            words.append(f"{done} done and {self.aside} set aside is not all")
        path = self.folder / "failures.csv"
        words += self.audit.of_steps()
        words += self.audit.of_failures(path, self.tokens, self.aside)
        for kind in ("hangs", "gil"):
            self.left.processes(self.tokens.glob(f"{kind}-*"))
        self.left.tasks(self.client)
        return words + self.left.words

    @property
    def audit(self):
        """What was promised of the steps."""
        return Audit(self.plan, self.ledger, self.whole())

    def books(self):
        """Numbers of steps sent, lost and doubled."""
        audit = self.audit
        lost, doubled = audit.lost(drained=True), audit.doubled()
        return {
            "sent": self.ledger.steps,
            "lost": len(lost),
            "doubled": len(doubled),
        }
