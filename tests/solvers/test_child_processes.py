"""What a solver has started ends with it, however far it has gone."""

import resource
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack

import psutil

from surrogate_flow.solvers.child_processes import ChildProcesses, ThreadProcesses

LIMIT = resource.RLIMIT_RTTIME
SLEEP = ["sleep", "7777"]

# Prints the ids of processes that left their parent, session or environment.
WORKER = """
import multiprocessing, subprocess, time
from surrogate_flow.solvers.child_processes import ChildProcesses, ThreadProcesses
SLEEP = ["sleep", "7777"]
DEAF = ["sh", "-c", "trap '' TERM HUP; sleep 7777"]
DAEMON = ["sh", "-c", "setsid sleep 7777 >/dev/null & echo $!"]
with ChildProcesses().marked():
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=[7777])
    forked.start()
    daemon = subprocess.check_output(DAEMON, text=True)
    alone = subprocess.Popen(SLEEP, start_new_session=True, env={})
    deaf = subprocess.Popen(DEAF)
    print(forked.pid, int(daemon), alone.pid, deaf.pid, flush=True)
    time.sleep(7777)
"""


def gone(pid):
    """Wait until a process has ended, and say whether it has."""
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.wait(20) is None
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False


def test_all_that_a_killed_worker_has_started_dies():
    """By SIGKILL, which lets it clean up nothing; then the guard ends, too."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True
    )
    with worker, ExitStack() as ended:
        ended.callback(worker.kill)
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        guard = psutil.Process(worker.pid).children()[0].pid
        assert len(pids) == 4
        assert not any(psutil.Process(p).status() == "zombie" for p in (*pids, guard))
        worker.kill()
        assert all(gone(pid) for pid in (*pids, guard))


def test_each_kills_its_own():
    """Not those of another solver, whose mark came before or meanwhile; then marks end."""
    before = resource.getrlimit(LIMIT)
    first, second = ChildProcesses(), ChildProcesses()
    with ExitStack() as ended:

        def start():
            return subprocess.Popen(SLEEP)

        with first.marked():
            mine = [start()]
            with second.marked():
                other = start()
            mine.append(start())
        free = start()
        for process in (*mine, other, free):
            ended.callback(process.wait)
            ended.callback(process.kill)
        assert resource.getrlimit(LIMIT) == before
        first.kill()
        assert [p.wait() for p in mine] == 2 * [-signal.SIGKILL]
        assert other.poll() is None
        first.close()
        second.close()
        assert other.wait() == -signal.SIGKILL
        assert free.poll() is None


def test_marks_that_overlap_end_in_any_order():
    """As those of threads do."""
    before = resource.getrlimit(LIMIT)
    one, two = ChildProcesses(), ChildProcesses()
    with ExitStack() as first:
        first.enter_context(one.marked())
        with two.marked():
            first.close()
            assert resource.getrlimit(LIMIT) != before
    assert resource.getrlimit(LIMIT) == before
    for each in (one, two):
        each.close()


def test_a_thread_has_processes_of_its_own():
    """And those that its processes start; what other threads have started lives on."""
    programs = ThreadProcesses()
    started, read = threading.Event(), []

    def solve():
        with programs.marked():
            deaf = ["sh", "-c", "trap '' TERM; setsid -w sleep 7777 & echo $!; wait"]
            with subprocess.Popen(deaf, stdout=subprocess.PIPE, text=True) as process:
                read.extend((process, int(process.stdout.readline())))
                started.set()

    thread = threading.Thread(target=solve)
    with subprocess.Popen(SLEEP) as other, ExitStack() as ended:
        ended.callback(other.kill)
        thread.start()
        assert started.wait(60)
        programs.kill()
        thread.join(60)
        process, grandchild = read
        assert process.returncode == -signal.SIGKILL
        assert gone(grandchild)
        assert other.poll() is None


HOLDS_THE_GIL = """
import ctypes
from surrogate_flow.solvers.child_processes import end_with_parent
end_with_parent()
print(flush=True)
ctypes.PyDLL(None).sleep(7777)
"""


def test_a_worker_that_holds_the_gil_ends_with_its_nanny():
    """It runs no thread that could notice, and no handler."""
    start = 'PYTHON -c "$1" & echo $!; wait'.replace("PYTHON", sys.executable)
    nanny = subprocess.Popen(
        ["sh", "-c", start, "sh", HOLDS_THE_GIL], stdout=subprocess.PIPE, text=True
    )
    with nanny, ExitStack() as ended:
        ended.callback(nanny.kill)
        worker = int(nanny.stdout.readline())
        assert nanny.stdout.readline() == "\n"
        nanny.kill()
        assert gone(worker)
