"""Memory of outgoing steps: reused, but never before they have left."""

import numpy as np
import pytest
import zmq

from surrogate_flow.stream.buffers import BorrowedBuffer, GatherBuffer


@pytest.fixture
def ends():
    """A socket that sends to nobody yet, and the one that may be bound for it."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PUSH) as out,
        context.socket(zmq.PULL) as into,
    ):
        out.linger = 0
        out.connect("inproc://steps")
        into.rcvtimeo = 10_000
        yield out, into


def test_waits_until_all_parts_have_left(ends):
    """What waits in a socket is not overwritten."""
    out, into = ends
    # Each half is above the size that pyzmq copies after all.
    half = 2 * zmq.COPY_THRESHOLD
    steps = np.arange(half // 2, dtype=np.float32)
    buffer = GatherBuffer(steps.nbytes)
    buffer.write(steps)
    assert buffer.written == steps.nbytes
    for begin in (0, half):
        part = buffer.part(begin, begin + half)
        buffer.track(out.send(part, copy=False, track=True))
    with pytest.raises(zmq.NotDone):
        buffer.rewind(0.02)
    assert buffer.written == steps.nbytes
    into.bind("inproc://steps")
    frames = [into.recv(copy=False) for _ in range(2)]
    got = b"".join(bytes(frame.buffer) for frame in frames)
    assert np.array_equal(np.frombuffer(got, np.float32), steps)
    del frames
    buffer.rewind(10)
    assert buffer.written == 0
    buffer.write(steps[::-1].copy())
    assert np.frombuffer(buffer.part(0, 4), np.float32) == steps[-1]


def test_refuses_memory_in_pieces():
    """A copy that is not whole is not begun."""
    buffer = GatherBuffer(16)
    with pytest.raises(ValueError, match="contiguous"):
        buffer.write(np.zeros((4, 2), np.float32)[:, 0])
    assert buffer.written == 0


def test_a_loan_is_given_back_when_it_has_left(ends):
    """A lent step is not copied, and waits as long as it lies in a socket."""
    out, into = ends
    step = np.arange(zmq.COPY_THRESHOLD, dtype=np.float32)
    loan = BorrowedBuffer()
    loan.rewind(0)
    assert loan.write(step) == loan.written == step.nbytes
    assert np.shares_memory(np.frombuffer(loan.part(4, 8), np.float32), step[1:2])
    loan.track(out.send(loan.part(0, step.nbytes), copy=False, track=True))
    with pytest.raises(zmq.NotDone):
        loan.rewind(0.02)
    assert loan.written == step.nbytes
    into.bind("inproc://steps")
    assert np.array_equal(np.frombuffer(into.recv(), np.float32), step)
    loan.rewind(10)
    assert loan.written == 0


def test_a_loan_is_in_one_piece():
    """Memory with gaps is refused, as by a buffer."""
    with pytest.raises(ValueError, match="contiguous"):
        BorrowedBuffer().write(np.zeros((4, 2), np.float32)[:, 0])
