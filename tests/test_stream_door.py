"""More outlets than the trainer may have files."""

import pickle
import resource
import subprocess
import sys
import threading
import time

import pytest
import zmq
from laws import Ledger

from surrogate_flow.fields import FieldSpec, Variable
from surrogate_flow.stream import Inlet, messages
from surrogate_flow.stream.files import allow_many_files

SPEC = FieldSpec((), (Variable("u"),), (), (), (0.0,))
LIMIT = 400
# Fewer than the reserve wait outside: they cannot use it up before the inlet looks.
OUTSIDE = 60
HOSTS = pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["ipc", "tcp"])

TRAINER = """
import logging, pickle, resource, sys, time
from surrogate_flow.fields import FieldSpec, Variable
from surrogate_flow.stream import Inlet

class Nothing:
    def offer(self, simulation, first, steps, parameters):
        return len(steps)
    def expected(self, simulation):
        return 0
    def on_room(self, callback):
        pass
    def forget(self, simulation):
        pass

host, limit = pickle.loads(bytes.fromhex(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
sink = Nothing()
spec = FieldSpec((), (Variable("u"),), (), (), (0.0,))
with Inlet(spec, lambda _: sink, host=host) as inlet:
    print(pickle.dumps(inlet.endpoint).hex(), flush=True)
    sys.stdin.readline()
    checkpoint = [open("/dev/null") for _ in range(30)]
    for file in checkpoint:
        file.close()
    start = time.process_time()
    time.sleep(1)
    inlet.check()
    print(time.process_time() - start, flush=True)
    sys.stdin.readline()
    print(inlet.counters().finished, flush=True)
"""


class Client:
    """A bare outlet of one step, told to be so many."""

    def __init__(self, context, endpoint, number):
        self.number = number
        self.heard = set()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        if endpoint.keys is not None:
            self.socket.curve_serverkey = endpoint.keys.server
            self.socket.curve_publickey = endpoint.keys.public
            self.socket.curve_secretkey = endpoint.keys.secret
        self.socket.connect(endpoint.address)
        opening = messages.Open(endpoint.study, endpoint.spec, number, 0, 0)
        self.say(opening, b"")

    def say(self, message, *payload):
        self.socket.send_multipart([messages.encode(message), *payload])

    def hears(self, kind):
        """Wait a moment for a word; return whether it has come, now or before."""
        while kind not in self.heard and self.socket.poll(100):
            message, _ = messages.decode([self.socket.recv()])
            self.heard.add(type(message))
        return kind in self.heard

    def finish(self, deadline):
        """Be let in, send the step and go."""
        self.wait_for(messages.Welcome, deadline)
        self.say(messages.Ask(4, 0))
        self.wait_for(messages.Credit, deadline)
        self.say(messages.Steps(self.number, 0, 0, 1, 4), bytes(4))
        self.say(messages.End(self.number, 1))
        self.wait_for(messages.Done, deadline)
        self.socket.close()

    def wait_for(self, kind, deadline):
        while not self.hears(kind):
            assert time.monotonic() < deadline, f"{self.number}: no {kind.__name__}"


@pytest.fixture
def trainer(host):
    """A process that may have few files open, with an inlet."""
    words = pickle.dumps((host, LIMIT)).hex()
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@HOSTS
def test_more_outlets_than_files_wait_outside(trainer):
    """Those inside go on, the others get in when they have gone; it says so once."""
    allow_many_files()
    endpoint = pickle.loads(bytes.fromhex(trainer.stdout.readline()))
    said = []
    heard = threading.Event()

    def listen():
        for line in trainer.stdout:
            said.append(line)
            heard.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    deadline = time.monotonic() + 60
    with zmq.Context() as context:
        inside = []
        while not heard.is_set():
            client = Client(context, endpoint, len(inside))
            inside.append(client)
            while not (client.hears(messages.Welcome) or heard.is_set()):
                assert time.monotonic() < deadline, "not let in, and not a word"
        assert LIMIT // 2 < len(inside) < LIMIT
        assert f"of {LIMIT} files" in said[0]
        assert "ulimit -n" in said[0]
        count = len(inside) + OUTSIDE
        outside = [Client(context, endpoint, n) for n in range(len(inside), count)]
        heard.clear()
        trainer.stdin.write("write a checkpoint\n")
        trainer.stdin.flush()
        assert heard.wait(20)
        assert float(said[1]) < 0.3, "it spins"
        for client in [*inside, *outside]:
            client.finish(deadline)
    trainer.stdin.write("end\n")
    trainer.stdin.flush()
    assert trainer.wait(20) == 0
    listener.join(20)
    assert len(said) == 3, said
    assert int(said[2]) == count


def test_too_few_files_are_an_error():
    """Where nobody could ever come in, the inlet does not open."""
    words = pickle.dumps((None, 16)).hex()
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Expected room for at least 5 more open files" in done.stderr
    assert "ulimit -n" in done.stderr


def test_the_soft_limit_is_raised():
    """Nobody need type ulimit -n where the administrator allows more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    sink = Ledger(SPEC)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
    try:
        with Inlet(SPEC, lambda _: sink):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sink.close()


def test_files_are_counted_to_the_last():
    """What can be opened is what was said; and when nothing is left, it is 0."""
    code = """
import os, resource
from surrogate_flow.stream.files import free_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
free, opened = free_files(), []
try:
    while True:
        opened.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    print(len(opened) - free, free_files())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    # The list of the files is one while it is read.
    assert done.stdout.split() == ["1", "0"]
