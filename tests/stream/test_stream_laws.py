"""Law 1 on both transports."""

import numpy as np
import pytest
import zmq
from peers import Ledger, RawOutlet, check_stream
from zmq.utils.monitor import recv_monitor_message

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.stream import Discard, Inlet, Outlet
from surrogate_flow.stream.protocol import HEADER_BYTES
from surrogate_flow.testing.store import trajectory

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0), Parameter("b", 0.0, 1.0)),
    variables=(Variable("u"), Variable("v")),
    dims=("x",),
    shape=(3,),
    times=tuple(np.arange(1, 61) / 10),
)


both_transports = pytest.mark.parametrize(
    "host", [None, "127.0.0.1"], ids=["ipc", "tcp"]
)


@both_transports
@pytest.mark.parametrize("seed", [1, 2])
def test_every_step_enters_the_sink_exactly_once(host, seed):
    """Whatever is retried, repeated, cut off or malformed, each step arrives once."""
    check_stream(SPEC, host, seed)


@both_transports
@pytest.mark.parametrize("cells", [1024, 2048], ids=["gathered", "one large step"])
def test_messages_of_the_largest_size_arrive(host, cells):
    """A message may be as large as the inlet says, encrypted or not."""
    spec = FieldSpec(
        (), (Variable("u"),), ("x",), (cells,), tuple(map(float, range(8)))
    )
    coalesce = 2 * 4 * 1024
    sink = Ledger(spec)
    with Inlet(spec, sink, host=host, coalesce_bytes=coalesce) as inlet:
        outlet = Outlet(
            inlet.endpoint, spec, 0, 0, np.empty(0), coalesce_seconds=60.0, timeout=10.0
        )
        with outlet:
            for step in range(8):
                outlet.send(trajectory(spec, 0, step, 1))
        assert inlet.stats().messages == 8 * 4 * cells // coalesce
        assert inlet.stats().refusals == 0
    sink.end()
    assert sink.steps == {(0, step): 1 for step in range(8)}
    assert not sink.wrong


@both_transports
@pytest.mark.parametrize("excess", [0, 1])
def test_a_frame_larger_than_any_message_cuts_the_connection(host, excess):
    """One byte more than the largest message is not even read."""
    with Inlet(SPEC, Discard(), host=host, coalesce_bytes=HEADER_BYTES) as inlet:
        with RawOutlet(inlet.endpoint) as raw:
            monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            raw.socket.send(b"a" * (HEADER_BYTES + excess))
            poller = zmq.Poller()
            poller.register(monitor, zmq.POLLIN)
            poller.register(raw.socket, zmq.POLLIN)
            ready = dict(poller.poll(20_000))
            if excess:
                event = recv_monitor_message(monitor)["event"]
                assert event == zmq.EVENT_DISCONNECTED
            else:
                assert ready == {raw.socket: zmq.POLLIN}
            raw.socket.disable_monitor()
        assert inlet.stats().refusals == 1 - excess
