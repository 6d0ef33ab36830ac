"""What a solver has started ends with it, however far it has gone."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context, resource_tracker

import psutil
import pytest

from surrogate_flow.solvers.child_processes import ChildProcesses

LIMIT = resource.RLIMIT_RTTIME
SLEEP = ["sleep", "7777"]

# Prints the ids of processes that left their parent, session or environment.
WORKER = """
import multiprocessing, subprocess, time
from surrogate_flow.solvers.child_processes import ChildProcesses
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


# Forgets the guard as an interpreter does that ends, and says whether the guard sees it.
FORGETS = """
import gc, os, psutil, subprocess
from surrogate_flow.solvers import child_processes
with child_processes.ChildProcesses().marked():
    guard = psutil.Process().children()[0].pid
end = os.open(f"/proc/{guard}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
vars(child_processes._process).clear()
subprocess._active.clear()
gc.collect()
try:
    print("ended", os.read(end, 1))
except BlockingIOError:
    print("lives")
"""


def test_an_interpreter_that_ends_is_not_killed_in_the_place_of_its_exit():
    """While a thread solves, it is marked itself: its guard waits for its death."""
    command = [sys.executable, "-c", FORGETS]
    assert subprocess.check_output(command, text=True) == "lives\n"


@pytest.fixture
def ended():
    with ExitStack() as ended:
        yield ended


def start(ended, command=SLEEP):
    process = subprocess.Popen(command)
    ended.callback(process.wait)
    ended.callback(process.kill)
    return process


@pytest.mark.parametrize("marks", [True, False])
def test_each_kills_its_own(marks, ended):
    """Not those of another solver at the same time, nor what its thread had started."""
    limit = resource.getrlimit(LIMIT)
    first, second = ChildProcesses(marks=marks), ChildProcesses(marks=marks)
    ended.callback(second.close)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:

        def run(thread, call, *arguments):
            return thread.submit(call, *arguments).result()

        before = run(one, start, ended)
        marked, also = first.marked(), second.marked()
        run(one, marked.__enter__)
        mine = [run(one, start, ended)]
        run(other, also.__enter__)
        theirs = run(other, start, ended)
        # The other's mark is the last that was set.
        mine.append(run(one, start, ended))
        run(one, marked.__exit__, None, None, None)
        if marks:
            assert resource.getrlimit(LIMIT) != limit
        run(other, also.__exit__, None, None, None)
        # The thread goes on with others.
        free = run(one, start, ended)
        assert resource.getrlimit(LIMIT) == limit
        first.close()
        assert [p.wait() for p in mine] == 2 * [-signal.SIGKILL]
        assert theirs.poll() is before.poll() is free.poll() is None
        second.kill()
        assert theirs.wait() == -signal.SIGKILL
        assert before.poll() is free.poll() is None


# An orphan that multiprocessing has spawned.
ORPHAN = """
import multiprocessing, os, time
child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[7777])
child.start()
print(child.pid, flush=True)
os._exit(0)
"""


def test_what_multiprocessing_keeps_ends_at_the_close(ended):
    """With its pool, which starts no others; what shares memory with others lives on."""
    spawn, fork = get_context("spawn"), get_context("fork")
    before = fork.Process(target=time.sleep, args=[7777])
    before.start()
    ended.callback(before.kill)
    children = ChildProcesses()
    with children.marked():
        pool = fork.Pool(1)
        kept = [c.Process(target=time.sleep, args=[7777]) for c in (spawn, fork)]
        for process in kept:
            process.start()
        parent = subprocess.Popen(
            [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True
        )
        with parent:
            orphan = int(parent.stdout.readline())
    pids = [process.pid for process in kept]
    pids.append(pool.apply(os.getpid))
    children.kill()
    assert gone(orphan)
    assert not any(psutil.Process(p).status() == "zombie" for p in pids)
    children.close()
    assert all(map(gone, pids))
    assert not pool._pool or all(gone(process.pid) for process in pool._pool)
    assert before.is_alive()
    assert psutil.pid_exists(resource_tracker._resource_tracker._pid)


NO_ROOM = """
import resource, subprocess
resource.setrlimit(resource.RLIMIT_RTTIME, (0, 0))
from surrogate_flow.solvers.child_processes import ChildProcesses
children = ChildProcesses()
with children.marked():
    process = subprocess.Popen(["sleep", "7777"])
children.close()
print(process.wait())
"""


def test_without_room_for_a_mark_there_is_none():
    """What has not left its parent is found without."""
    command = [sys.executable, "-c", NO_ROOM]
    assert subprocess.check_output(command, text=True) == "-9\n"


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
    programs = ChildProcesses(marks=False)
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
