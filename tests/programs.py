"""Commands of the program, and scripts, as processes that do not pay for their imports.

`start` forks each command from one process that has imported torch and Lightning, and
nothing else; working folder, environment, streams and signals are the command's own. So
are the second rank and the run of a comparison that such a command starts. `command`
gives the words for a true start of an interpreter.
"""

import array
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

TESTS = Path(__file__).parent
CELLS, STEPS = (12, 8), 20
WORKFLOW = {
    "name": "tiny",
    "solver": {
        "class_path": "surrogate_flow.solvers.Heat2D",
        "init_args": {"cells": list(CELLS), "steps": STEPS, "time_step": 0.005},
    },
    "simulations": 300,
    "held_out": 4,
    "batch_size": 16,
    "reservoir": {
        "class_path": "surrogate_flow.reservoir.Reservoir",
        "init_args": {"capacity": 1000, "threshold": 200},
    },
}
# What Lightning and torch import when they run first.
IMPORTED = (
    *(
        "surrogate_flow.cli.compare.command",
        "surrogate_flow.data.stored",
        "torch._dynamo",
    ),
    *("neuralop.models", "tensorboard", "matplotlib.pyplot"),
)
FORKED = "forked command"  # the name of a process that a command has started


def words_of(command):
    """Return the arguments of a command line of the program; None of any other."""
    python, module, *words = command if len(command) > 2 else ("", "")
    return words[1:] if [python, module] == [sys.executable, "-m"] else None


def command(*words):
    """Return a command line of the program."""
    return [sys.executable, "-m", "surrogate_flow", *map(str, words)]


def environment():
    """Return the environment: the package that these tests import, installed or not."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    return {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}


def start(*words, cwd, env=None, start_new_session=False):
    """Start a command; its output, errors among it, comes as text on `stdout`."""
    return Program(words, cwd, env or environment(), start_new_session)


def popen(command, *, stdout, env, start_new_session=False, **_):
    """Start a command of the program as `subprocess.Popen` does; its output goes to a file."""
    words = words_of(command)
    return Program(words, Path.cwd(), env, start_new_session, stdout.fileno())


def run(*words, cwd, env=None, timeout=250, check=True):
    """Run a command to its end and return it, with `stdout` as a string."""
    program = start(*words, cwd=cwd, env=env)
    try:
        said, _ = program.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        said, _ = program.communicate()
        raise AssertionError(f"{words} did not end:\n{said}") from None
    if check and program.returncode:
        raise AssertionError(f"{words} ended with {program.returncode}:\n{said}")
    return subprocess.CompletedProcess(words, program.returncode, said, "")


def fit(folder, workflow, *overrides, **kwargs):
    """Start to fit a workflow, given as a mapping."""
    (folder / "workflow.yaml").write_text(yaml.safe_dump(workflow))
    words = ("--data", "workflow.yaml", "--model", "fully_connected", *overrides)
    return start("fit", *words, cwd=folder, **kwargs)


class Program:
    """A command that was forked; as `subprocess.Popen`, as far as tests need it."""

    def __init__(self, words, cwd, env, new_session, file=None):
        self.args = command(*words)
        self.returncode = None
        out, inside = os.pipe() if file is None else (None, os.dup(file))
        self._server = _Server.get()
        self.pid = self._server.fork(
            {
                "words": [str(word) for word in words],
                "cwd": str(cwd),
                "env": dict(env),
                "new_session": new_session,
            },
            inside,
        )
        os.close(inside)
        if out is not None:
            self.stdout = os.fdopen(out, encoding="utf-8", errors="replace")

    def poll(self):
        """Return the exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.status(self.pid)
        return self.returncode

    def wait(self, timeout=None):
        """Wait for its end and return the exit status."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self._server.wait(left)
        return self.returncode

    def communicate(self, timeout=None):
        """Return all that it prints until it ends."""
        deadline = None if timeout is None else time.monotonic() + timeout
        said = getattr(self, "_said", [])
        self._said = said
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout, "".join(said))
            ready, _, _ = select.select([self.stdout], [], [], left)
            if ready:
                part = os.read(self.stdout.fileno(), 1 << 16)
                if not part:
                    break
                said.append(part.decode(errors="replace"))
        left = None if deadline is None else max(0.1, deadline - time.monotonic())
        self.wait(left)
        return "".join(said), None

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def end_all():
    """Kill every command that still runs; return their process ids."""
    server = _Server._only
    if server is None or server.process.poll() is not None:
        return []
    running = psutil.Process(server.process.pid).children()
    running = [child for child in running if child.status() != psutil.STATUS_ZOMBIE]
    for child in running:
        for process in [*child.children(recursive=True), child]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return [child.pid for child in running]


class _Server:
    """The process that commands are forked from; one for each process that tests."""

    _only = None

    @classmethod
    def get(cls):
        if cls._only is None or cls._only.process.poll() is not None:
            cls._only = cls()
        return cls._only

    def __init__(self):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**environment(), "OMP_WAIT_POLICY": "PASSIVE"},
            # Ctrl-C at a terminal is for the tests, which end what they have started.
            start_new_session=True,
        )
        theirs.close()
        self._ended = {}
        self._pids = []

    def fork(self, request, out):
        _send(self._socket, request, out)
        while not self._pids:
            self._receive(None)
        return self._pids.pop()

    def status(self, pid):
        self._receive(0)
        return self._ended.get(pid)

    def wait(self, timeout):
        self._receive(timeout)

    def _receive(self, timeout):
        ready, _, _ = select.select([self._socket], [], [], timeout)
        while ready:
            message = self._socket.recv(1 << 16)
            if not message:
                raise RuntimeError("the process that commands are forked from is gone")
            kind, *numbers = json.loads(message)
            if kind == "forked":
                self._pids.append(numbers[0])
                # The number may have been that of a command that has ended.
                self._ended.pop(numbers[0], None)
            else:
                self._ended[numbers[0]] = numbers[1]
            ready, _, _ = select.select([self._socket], [], [], 0)


def _send(connection, request, out):
    fds = array.array("i", [out]).tobytes()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
    connection.sendmsg([json.dumps(request).encode()], ancillary)


def _received(connection):
    """Return what was asked for, with the file for its output; None at the end."""
    place, ancillary, _, _ = connection.recvmsg(1 << 18, socket.CMSG_SPACE(4))
    return (json.loads(place), array.array("i", ancillary[0][2])[0]) if place else None


def serve(number):
    """Fork a command for each request, and say how each has ended."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    requests = socket.socket(fileno=number)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 1 << 10)
            for pid, status in _ended():
                code = os.waitstatus_to_exitcode(status)
                requests.send(json.dumps(["ended", pid, code]).encode())
        if requests in ready:
            received = _received(requests)
            if received is None:
                return
            request, out = received
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for fd in (requests.detach(), woken, wake):
                    os.close(fd)
                _run(request, out)
            os.close(out)
            requests.send(json.dumps(["forked", pid]).encode())


def _ended():
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def _run(request, out):
    """Become the command, as an interpreter that has just started."""
    import atexit
    import io
    import runpy
    import traceback

    import dask.config

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, target)
    os.close(null)
    os.close(out)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = io.TextIOWrapper(os.fdopen(fd, "wb", closefd=False), "utf-8")
        stream.reconfigure(write_through=unbuffered or fd == 2)
        setattr(sys, name, stream)
    # What an interpreter reads when it imports this.
    dask.config.refresh()
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [
        request["cwd"],
        *filter(None, paths),
        *(path for path in sys.path[1:] if path not in paths),
    ]
    sys.argv[1:] = request["words"]
    kind, *options = request["words"]
    if kind == "compare" or "--trainer.devices=2" in options:
        _fork_next()
    if kind in ("fit", "generate", "validate", "test"):
        _fork_workers()
    code = 0
    try:
        if kind.endswith(".py"):
            sys.argv[:] = request["words"]
            sys.path.insert(0, str(Path(kind).parent))
            runpy.run_path(kind, run_name="__main__")
        else:
            runpy.run_module("surrogate_flow", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        # As at the end of an interpreter: threads, then what was registered.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_workers():
    """Let Dask fork the workers of this command from a child that has imported all.

    It would start an interpreter to fork them from, which imports Dask and the solver.
    """
    from multiprocessing import forkserver, util

    import dask.config

    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})

    def fork(path, words, fds):
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and fd not in fds:
                    # Not closed: its number still has an owner here.
                    with contextlib.suppress(OSError):
                        os.dup2(null, fd)
            # As in workers that the program starts itself.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                exec(words[-1], {})
            finally:
                os._exit(0)
        return pid

    spawn, util.spawnv_passfds = util.spawnv_passfds, fork
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = spawn


def _fork_next():
    """Let the first command that this one starts be a child that has imported all."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        received = _received(theirs)
        theirs.close()
        if received is None:
            os._exit(0)
        Path("/proc/self/comm").write_text(FORKED)
        _run(*received)
    theirs.close()
    start = subprocess.Popen

    class Popen(start):
        def __init__(self, command, *args, **options):
            words = words_of(command)
            if words is None or ours.fileno() < 0:
                super().__init__(command, *args, **options)
                return
            request = {
                "words": words,
                "cwd": str(options.get("cwd") or Path.cwd()),
                "env": dict(options["env"]),
                "new_session": options.get("start_new_session", False),
            }
            out = options.get("stdout")
            _send(ours, request, 1 if out is None else out.fileno())
            ours.close()
            self.args, self.pid, self.returncode = command, pid, None
            self.stdin = self.stdout = self.stderr = None
            self._child_created, self._waitpid_lock = True, threading.Lock()
            self._sigint_wait_secs = 0.25

    subprocess.Popen = Popen


if __name__ == "__main__":
    serve(int(sys.argv[1]))
