"""What must be gone when a study has ended: threads, ports, processes, tasks."""

import threading
import time

import psutil

REST = 10.0  # seconds for tasks and threads to be gone after the end
SILENCE = 75.0  # of an attempt that finds the inlet gone, with its 60 s of patience
OURS = (
    *("inlet", "ensemble", "watchdog", "prefetch", "flusher", "stop"),
    *("proxy", "resume", "again", "killer"),
)
# Of Dask in this process: nannies that start workers again, and a client that closes.
DASKS = ("AsyncProcess", "QueueFeederThread", "asyncio_", "Dask-", "Profile", "IO loop")


class Leftovers:
    """Remembers what there was when it was made, and says what has come since."""

    def __init__(self):
        self._threads = set(threading.enumerate())
        self._ports = None
        self.words = []

    def listening(self):
        """Remember the ports, now that the study listens on its own."""
        self._ports = _ports()

    def end(self):
        """Wait until threads end, and note those that do not."""
        deadline = time.monotonic() + REST
        for thread in set(threading.enumerate()) - self._threads:
            if thread.name in OURS:
                more = SILENCE - REST if thread.name == "again" else 0.0
                thread.join(max(0.0, deadline + more - time.monotonic()))
        left = set(threading.enumerate()) - self._threads
        names = [t.name for t in left if not t.name.startswith(DASKS)]
        self.words += [f"thread {name} is left" for name in names]
        if self._ports is not None and (ports := _ports() - self._ports):
            self.words.append(f"ports {ports} are left")

    def processes(self, tokens):
        """Note the processes of such tokens that live."""
        for token in tokens:
            if psutil.pid_exists(int(token.read_text())):
                self.words.append(f"the process of {token.name} is left")

    def tasks(self, client):
        """Wait until the workers have nothing to do, and note what they do."""
        deadline = time.monotonic() + REST
        while left := _on_workers(client):
            if time.monotonic() > deadline:
                self.words.append(f"on the workers there are left: {left}")
                return
            time.sleep(0.05)


def _on_workers(client):
    tasks = [key for keys in client.processing().values() for key in keys]
    try:
        question = client._run(_flushers, on_error="ignore")
        threads = client.sync(lambda: question, callback_timeout=REST)
    except TimeoutError:
        return [*tasks, "a worker that does not answer"]
    return tasks + [name for names in threads.values() for name in names]


def _flushers():
    return [t.name for t in threading.enumerate() if t.name == "flusher"]


def _ports():
    """Where this process listens."""
    connections = psutil.Process().net_connections("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
