"""A solver that cannot be sent to workers is named before there are any."""

import threading
from functools import partial

import pytest
from troubled import Wave

from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.packed import Packed
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.reservoir import FIFO


class Mesh:
    def __init__(self):
        self.parts = [1, {"guard": threading.Lock()}]


class Holds(Wave):
    def __init__(self, held):
        self.fine = 1.0
        self.held = held


class Slotted(Wave):
    __slots__ = ("lock",)

    def __init__(self):
        self.lock = threading.Lock()


class Refuses(Wave):
    def __reduce__(self):
        raise TypeError("no default __reduce__ due to non-trivial __cinit__")


def closure():
    guard = threading.Lock()
    return lambda: guard


SOLVERS = {
    "Holds.held: .* a lock": lambda: Holds(threading.Lock()),
    "Holds.held: .* a generator": lambda: Holds(i for i in range(3)),
    r"Holds.held.parts\[1\]\['guard'\]: .* a lock": lambda: Holds(Mesh()),
    "Holds.held's guard: .* a lock": lambda: Holds(closure()),
    r"Holds.held.args\[1\]: .* a lock": lambda: Holds(
        partial(max, 1, threading.Lock())
    ),
    r"Holds.held.func's guard: .* a lock": lambda: Holds(partial(closure())),
    "Slotted.lock: .* a lock": Slotted,
    "Refuses: .* a Refuses .*non-trivial __cinit__": Refuses,
}


@pytest.mark.parametrize("words", SOLVERS)
def test_what_cannot_be_pickled_is_named(words, caplog):
    """With the attribute, as deep as it lies, and no traceback of Dask's."""
    with pytest.raises(ArgumentError, match=rf"^{words}.*setup\(\)"):
        Packed(SOLVERS[words]())
    assert not caplog.records


def test_it_is_named_before_the_cluster_opens(tmp_path, monkeypatch):
    """Which may wait in a queue for hours."""
    monkeypatch.chdir(tmp_path)

    def opens():
        raise AssertionError("the cluster opens")

    fifo = FIFO(capacity=20)
    data = OnlineData(Holds(Mesh()), simulations=4, reservoir=fifo, cluster=opens)
    with pytest.raises(ArgumentError, match=r"Holds\.held\.parts"):
        data.setup("fit")
