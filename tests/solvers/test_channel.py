"""What a program sends becomes steps, or one error: whatever it sends, in whatever pieces."""

import itertools
import select
import socket
import struct
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
from compiled import SANITIZED, STRICT, compiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.solvers import Ended, ProcessError, Program, Run
from surrogate_flow.solvers.programs.blocks import Reception
from surrogate_flow.solvers.programs.channel import VARIABLE, Channel, StreamError

SHAPE, STEPS = (5, 4), 4
SPEC = FieldSpec(
    (), (Variable("u"), Variable("v")), ("y", "x"), SHAPE, tuple(range(1, STEPS + 1))
)
# Rows and columns of the blocks of ranks that cover the grid.
BLOCKS = {
    1: [(slice(0, 5), slice(0, 4))],
    2: [(slice(0, 2), slice(0, 4)), (slice(2, 5), slice(0, 4))],
    3: [
        (slice(0, 5), slice(0, 1)),
        (slice(0, 3), slice(1, 4)),
        (slice(3, 5), slice(1, 4)),
    ],
}


def field(name, step):
    """The field of a step, every number of which is its own."""
    return 100.0 * (step + 10 * (name == "v")) + np.arange(20.0).reshape(SHAPE)


def frame(kind, of, number, time, name, body, version=b"1"):
    """As `sf_frame` of the header has it; values of the third kind do not follow."""
    head = struct.pack(
        "=8sIIQdQQ", b"SFSTEPS" + version, kind, of, number, time, len(name), len(body)
    )
    return head + name + (body if kind < 3 else b"")


def opening(rank, ranks, first, size, version=b"1"):
    body = struct.pack(f"={3 + 2 * len(size)}Q", rank, ranks, len(size), *first, *size)
    return frame(1, 0, 0, 0.0, b"", body, version)


def answer(spec, rows=0, cut=None):
    """What a worker says to an opening, or its first bytes."""
    names = b"".join(v.name.encode() + b"\0" for v in spec.variables)
    head = struct.pack("=8sQQQ", b"SFSTEPS2", rows, len(spec.variables), len(names))
    return (head + struct.pack(f"={len(spec.shape)}Q", *spec.shape) + names)[:cut]


def frames(rank, ranks, kind=np.float64, put=False):
    """All frames of a rank, as the calls send them, or say that they have put it."""
    block, version = BLOCKS[ranks][rank], b"2" if put else b"1"
    first, size = [s.start for s in block], [s.stop - s.start for s in block]
    sent = [opening(rank, ranks, first, size, version)]
    for step, name in itertools.product(range(1, STEPS + 1), "uv"):
        values = field(name, step)[block].astype(kind)
        body, of = values.tobytes(), values.itemsize
        number = 3 if put else 2
        sent.append(frame(number, of, len(sent), step, name.encode(), body, version))
    return sent


@contextmanager
def connected(folder, count):
    """A channel with so many programs at its other end."""
    with closing(Channel(folder)) as channel:
        ends = [socket.socket(socket.AF_UNIX) for _ in range(count)]
        try:
            for end in ends:
                end.connect(channel.address)
            yield channel, ends
        finally:
            for end in ends:
                end.close()


def received(channel, spec=SPEC, pause=0.0):
    """All steps until the programs have closed their streams, and what ended them."""
    steps, error = [], None
    with closing(Reception(channel, spec, 0)) as reception:
        try:
            last = time.monotonic()
            while not reception.ended:
                # It returns early where whole steps should go on.
                if reception.receive(pause):
                    last = time.monotonic()
                elif time.monotonic() >= last + pause:
                    break
                steps += taken(reception, all=False)
        except (StreamError, SpecMismatch) as caught:
            error = caught
        steps += taken(reception, all=True)
    return steps, error


def taken(reception, *, all):
    steps = []
    while (dataset := reception.batch(all=all)) is not None:
        order = ("time", *reception.spec.dims)
        for k, moment in enumerate(dataset.time.values):
            one = {n: dataset[n].transpose(*order).values[k].copy() for n in dataset}
            steps.append((float(moment), one))
        reception.free(dataset.sizes["time"])
    return steps


def sent_by(end, parts):
    """Send bytes and close; a reception that has given up reads no more."""
    with suppress(OSError):
        end.sendall(b"".join(parts))
    end.close()


@pytest.mark.parametrize("ranks", BLOCKS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_blocks_of_ranks_become_steps(tmp_path, ranks, kind):
    """Rows, or blocks that do not lie together in memory."""
    with connected(tmp_path, ranks) as (channel, ends):
        for rank, end in enumerate(ends):
            sent_by(end, frames(rank, ranks, kind))
        steps, error = received(channel)
    assert error is None
    assert [moment for moment, _ in steps] == [1, 2, 3, 4]
    for moment, fields in steps:
        for name, values in fields.items():
            np.testing.assert_array_equal(values, field(name, moment))
    assert not list(tmp_path.iterdir())


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    ranks=st.sampled_from([1, 2, 3]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["flip", "cut", "drop", "twice", "swap", "junk", "grow"]),
            st.integers(0, 9999),
            st.integers(0, 255),
        ),
        max_size=2,
    ),
    put=st.booleans(),
)
def test_whatever_is_sent_no_step_is_wrong(tmp_path_factory, ranks, changes, put):
    """Frames that are torn, lie, repeat or are not ours: whole steps, then one error."""
    parts = [frames(rank, ranks, put=put) for rank in range(ranks)]
    values_changed = put  # Nobody has put any.
    for which, how, place, byte in changes:
        sent = parts[which % ranks]
        if not sent:
            continue
        k = place % len(sent)
        if how == "flip" and sent[k]:
            at = place % len(sent[k])
            sent[k] = sent[k][:at] + bytes([byte]) + sent[k][at + 1 :]
            # All but these is checked: they may be any numbers.
            values_changed |= at >= 48
        elif how == "cut":
            sent[k:] = [sent[k][: byte % (len(sent[k]) + 1)]]
        elif how == "drop":
            del sent[k]
        elif how == "twice":
            sent.insert(k, sent[k])
        elif how == "swap":
            j = byte % len(sent)
            sent[k], sent[j] = sent[j], sent[k]
        elif how == "junk":
            sent.insert(k, bytes([byte]) * (place % 200))
        elif how == "grow":
            sent[k] += b"\0"
    with connected(tmp_path_factory.mktemp("fuzz"), ranks) as (channel, ends):
        for end, sent in zip(ends, parts, strict=True):
            sent_by(end, sent)
        steps, error = received(channel)
    if not changes:
        assert error is None
        assert len(steps) == STEPS
    for k, (moment, fields) in enumerate(steps, 1):
        assert {*fields} == {"u", "v"}
        if not values_changed and moment == k:
            for name, values in fields.items():
                np.testing.assert_array_equal(values, field(name, k))


@pytest.mark.parametrize(
    ("openings", "said"),
    [
        ([(0, 1, (0, 0), (5, 3))], r"the shape \(5, 4\) of the spec, got \(5, 3\)"),
        ([(0, 1, (0, 0), (4, 5))], r"blocks of the shape \(5, 4\).*one of \(4, 5\)"),
        ([(0, 1, (1, 0), (5, 4))], r"one of \(5, 4\) that begins at \(1, 0\)"),
        ([(0, 1, (0,), (20,))], r"a grid of 2 dims \(\(5, 4\)\), got 1 \(\(20,\)\)"),
        ([(1, 1, (0, 0), (5, 4))], "has opened as rank 1 of 1"),
        (
            [(0, 2, (0, 0), (3, 4)), (1, 2, (2, 0), (3, 4))],
            r"each cell in one block, got 2 blocks at \(2, 0\).*ghost cells",
        ),
        (
            [(0, 2, (0, 0), (2, 4)), (1, 2, (3, 0), (2, 4))],
            r"each cell in one block, got 0 blocks at \(2, 0\)",
        ),
        ([(0, 2, (0, 0), (2, 4)), (1, 3, (2, 0), (3, 4))], "of 2 ranks, got one of 3"),
        ([(0, 1, (0, 0), (5, 4))] * 2, "got two of rank 0 of 1.*two programs"),
    ],
)
def test_blocks_that_are_not_the_grid_are_refused(tmp_path, openings, said):
    with connected(tmp_path, len(openings)) as (channel, ends):
        for end, words in zip(ends, openings, strict=True):
            end.sendall(opening(*words))
        _, error = received(channel)
    assert error is not None
    with pytest.raises(type(error), match=said):
        raise error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda sent: sent.__setitem__(0, b"SFSTEPS9" + sent[0][8:]),
            "another version",
        ),
        (lambda sent: sent.__setitem__(0, b"HDF\r\n" + sent[0][5:]), "do not"),
        (lambda sent: sent.pop(2), "frame 3 where 2 comes next"),
        (lambda sent: sent.pop(0), "frame 1 where 0 comes next"),
        (
            lambda sent: sent.__setitem__(2, frame(2, 8, 2, 1.5, b"v", bytes(160))),
            "step 0: expected .*one time for all variables and ranks, got 1, then 1.5",
        ),
        (
            lambda sent: sent.__setitem__(2, frame(2, 8, 2, 1.0, b"u", bytes(160))),
            "step 0: expected .*'v', too, got 'u' twice",
        ),
        (
            lambda sent: sent.__setitem__(3, frame(2, 4, 3, 2.0, b"u", bytes(80))),
            "step 1: expected .*'u' in one type, got float64, float32",
        ),
        (
            lambda sent: sent.__setitem__(1, frame(2, 8, 1, 1.0, b"u", bytes(161))),
            "161 bytes of 20 numbers of 8 bytes",
        ),
        (
            lambda sent: sent.__setitem__(1, frame(2, 2, 1, 1.0, b"u", bytes(40))),
            "40 bytes of 20 numbers of 2 bytes",
        ),
    ],
)
def test_frames_that_cannot_be_are_named(tmp_path, change, said):
    sent = frames(0, 1)
    change(sent)
    with connected(tmp_path, 1) as (channel, (end,)):
        sent_by(end, sent)
        _, error = received(channel)
    assert error is not None
    with pytest.raises(type(error), match=said):
        raise error


def test_a_step_that_is_put_before_there_is_room_is_refused(tmp_path):
    """It would be over another one, which has not gone on."""
    parts = [opening(0, 1, [0], [2**18], b"2")]
    parts += [frame(3, 8, k, k, b"u", bytes(2**21), b"2") for k in range(1, 4)]
    with connected(tmp_path, 1) as (channel, (end,)):
        end.sendall(b"".join(parts))
        with closing(Reception(channel, line(2**18, 3), 0)) as reception:
            with pytest.raises(StreamError, match="has put step 2 where another"):
                while reception.receive(0.0):
                    pass
            assert reception.whole == reception.capacity == 2


def test_ranks_that_are_ahead_wait_for_the_others(tmp_path):
    """Steps of which two have room: no more is read than fits, and none is lost."""
    spec = line(2**19, 6)
    half = 2**18

    def send(end, rank):
        parts = [opening(rank, 2, [rank * half], [half])]
        for step in range(1, 7):
            values = np.full(half, 10.0 * step + rank)
            parts.append(frame(2, 8, step, step, b"u", values.tobytes()))
        sent_by(end, parts)

    with connected(tmp_path, 2) as (channel, ends):
        first = threading.Thread(target=send, args=(ends[0], 0))
        second = threading.Thread(target=send, args=(ends[1], 1))
        with closing(Reception(channel, spec, 0)) as reception:
            assert reception.capacity == 2
            first.start()
            while reception.receive(0.2):
                assert reception.whole == 0
            assert first.is_alive()
            second.start()
            steps = []
            while not reception.ended:
                reception.receive(0.2)
                steps += taken(reception, all=True)
        first.join()
        second.join()
    assert [moment for moment, _ in steps] == [1, 2, 3, 4, 5, 6]
    for moment, fields in steps:
        assert {*fields["u"][:half]} == {10 * moment}
        assert {*fields["u"][half:]} == {10 * moment + 1}


def test_a_rank_that_leaves_the_others_is_named(tmp_path):
    """Rather than waited for."""
    with connected(tmp_path, 2) as (channel, ends):
        sent_by(ends[0], frames(0, 2)[:5])
        ends[1].sendall(b"".join(frames(1, 2)))
        with closing(Reception(channel, SPEC, 0)) as reception:
            while reception.receive(0.0):
                pass
            assert reception.whole == 2
            assert reception.stuck == "rank 0 has closed its stream before the others"


def test_a_folder_of_any_length_has_a_channel(tmp_path):
    """Addresses of sockets have 108 bytes; the header knows the way around, too."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    program = torture(tmp_path)
    with closing(Channel(folder)) as channel:
        done = sending(program, channel, "1", "3", "8", "u", "4")
        steps, error = received(channel, line(4, 3), pause=20.0)
        assert done.wait(20) == 0
    assert error is None
    assert len(steps) == 3
    assert not list(folder.iterdir())


# Sends what it is told to: first index the fastest, steps, bytes of a value, name, sizes.
TORTURE = r"""
#include "surrogate_flow.h"
int main(int argc, char **argv)
{
    int dims = argc - 5, steps = atoi(argv[2]), bytes = atoi(argv[3]);
    int rank = getenv("RANK") ? atoi(getenv("RANK")) : 0, ranks = getenv("RANK") ? 3 : 1;
    size_t size[8], first[8], cells = 1, i;
    double *u;
    float *single;
    sf_stream *stream;
    for (int d = 0; d < dims; d++) {
        const char *begin = strchr(argv[5 + d], '@');
        cells *= size[d] = (size_t)atol(argv[5 + d]);
        first[d] = begin ? (size_t)atol(begin + 1) : 0;
    }
    u = malloc(cells * sizeof *u), single = malloc(cells * sizeof *single);
    if (atoi(argv[1])) stream = sf_open(dims, size, first, rank, ranks);
    else stream = sf_open_fortran(dims, size, first, rank, ranks);
    for (int k = 1; k <= steps; k++) {
        for (i = 0; i < cells; i++) single[i] = (float)(u[i] = k + 1e3 * rank + (double)i);
        if (bytes == 8) sf_step(stream, argv[4], k, u);
        else sf_step_float(stream, argv[4], k, single);
    }
    sf_close(stream);
    free(u), free(single);
    return 0;
}
"""


def torture(folder):
    return compiled(folder, "torture", TORTURE, *STRICT, *SANITIZED)


def sending(program, channel, *words, **variables):
    return subprocess.Popen(
        [program, *words],
        env={VARIABLE: channel.address, **variables},
        stderr=subprocess.PIPE,
    )


def line(cells, steps, name="u"):
    return FieldSpec(
        (), (Variable(name),), ("x",), (cells,), tuple(range(1, steps + 1))
    )


@pytest.fixture(scope="module")
def sender(tmp_path_factory):
    """A program that sends what it is told to, with the checks of the compiler."""
    return torture(tmp_path_factory.mktemp("torture"))


@pytest.mark.parametrize("regular", [True, False])
def test_a_program_may_close_its_stream_early(sender, tmp_path, regular):
    """Where the recipe says so; half a step is never regular."""
    words, steps = [sender, "1", "3", "8", "u", "4"], []
    program = Program(words, line(4, 5), may_end_early=regular)
    said = "has sent 3 of 5 steps, .* set may_end_early: true"
    kind, said = (Ended, "has ended") if regular else (ProcessError, said)
    with pytest.raises(kind, match=said):
        for step in program.start(Run({}, folder=tmp_path)):
            steps += step.time.values.tolist()
    assert steps == [1.0, 2.0, 3.0]
    both = replace(line(4, 5), variables=(Variable("u"), Variable("v")))
    half = Program(words, both, may_end_early=True)
    with pytest.raises(SpecMismatch):
        list(half.start(Run({}, folder=tmp_path)))


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    c_order=st.booleans(),
    steps=st.integers(1, 5),
    bytes_=st.sampled_from([4, 8]),
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9),
    size=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    least=st.integers(0, 3000),
)
def test_what_the_header_sends_arrives(
    sender, tmp_path_factory, c_order, steps, bytes_, name, size, least
):
    """Names, shapes and types of all kinds, and a worker that leaves: no fault in C."""
    times = tuple(range(1, steps + 1))
    dims = tuple(f"dim_{k}" for k in range(len(size)))
    spec = FieldSpec((), (Variable(name),), dims, size, times)
    words = [str(int(c_order)), str(steps), str(bytes_), name, *map(str, size)]
    with closing(Channel(tmp_path_factory.mktemp("c"))) as channel:
        program = sending(sender, channel, *words)
        got, error = received(channel, spec, pause=20.0)
        assert (program.wait(20), program.stderr.read()) == (0, b"")
        assert error is None
        assert len(got) == steps
        order = "C" if c_order else "F"
        for moment, fields in got:
            first = moment + np.arange(np.prod(size)).reshape(size, order=order)
            np.testing.assert_array_equal(fields[name], first)
        # Again; the worker shares nothing, and closes the stream after so many bytes.
        program = sending(sender, channel, *words)
        select.select([channel], [], [], 20)
        connection = channel.accept()
        connection.recv(least + 1)
        connection.sendall(answer(spec, cut=least))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(least + 1, socket.MSG_WAITALL)
        connection.close()
        assert program.wait(20) == 0
        assert b"Sanitizer" not in program.stderr.read()


@pytest.mark.parametrize("c_order", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_ranks_put_their_blocks_where_they_are(sender, tmp_path, c_order, kind):
    """Into the grid of the worker, whose rows they share; in whatever order of indices."""
    grid = (4, 5, 3)
    spec = FieldSpec((), (Variable("u"),), tuple("zyx"), grid, (1, 2, 3))
    blocks = [
        (slice(0, 4), slice(0, 2), slice(0, 3)),
        (slice(0, 1), slice(2, 5), slice(0, 3)),
        (slice(1, 4), slice(2, 5), slice(0, 3)),
    ]
    expected = np.zeros(grid)
    with closing(Channel(tmp_path)) as channel:
        programs = []
        for rank, block in enumerate(blocks):
            size = [s.stop - s.start for s in block]
            words = [f"{n}@{s.start}" for n, s in zip(size, block, strict=True)]
            order = "C" if c_order else "F"
            values = np.arange(np.prod(size)).reshape(size, order=order)
            expected[block] = 1e3 * rank + values
            head = str(int(c_order)), "3", str(np.dtype(kind).itemsize), "u"
            programs.append(sending(sender, channel, *head, *words, RANK=str(rank)))
        steps, error = received(channel, spec, pause=20.0)
        for program in programs:
            assert (program.wait(20), program.stderr.read()) == (0, b"")
    assert error is None
    assert len(steps) == 3
    for moment, fields in steps:
        np.testing.assert_array_equal(fields["u"], expected + moment)


def test_a_program_waits_while_all_rows_are_in_use(sender, tmp_path):
    """Steps of which two have room: none is written over, and none is lost."""
    cells = 2**19
    with closing(Channel(tmp_path)) as channel:
        program = sending(sender, channel, "1", "6", "8", "u", str(cells))
        with closing(Reception(channel, line(cells, 6), 0)) as reception:
            while reception.whole < reception.capacity:
                reception.receive(20.0)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.5)
            steps = []
            while not reception.ended:
                steps += taken(reception, all=False)
                reception.receive(0.2)
            steps += taken(reception, all=True)
        assert program.wait(20) == 0
    assert [moment for moment, _ in steps] == [1, 2, 3, 4, 5, 6]
    for moment, fields in steps:
        np.testing.assert_array_equal(fields["u"], moment + np.arange(cells))


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    cut=st.integers(0, 60),
    byte=st.integers(0, 255),
    rows=st.sampled_from([0, 1, 2**40, 2**63]),
)
def test_an_answer_that_is_torn_or_lies_is_no_fault_in_c(
    sender, tmp_path_factory, cut, byte, rows
):
    """The program says so, or sends its steps by the socket."""
    spec = line(4, 2)
    with closing(Channel(tmp_path_factory.mktemp("c"))) as channel:
        program = sending(sender, channel, "1", "2", "8", "u", "4")
        select.select([channel], [], [], 20)
        connection = channel.accept()
        said = bytearray(answer(spec, rows))
        said[cut % len(said)] ^= byte
        with open("/dev/zero", "rb") as file:
            socket.send_fds(connection, [bytes(said)], [file.fileno()])
        connection.shutdown(socket.SHUT_WR)
        assert program.wait(20) == 0
        connection.close()
        assert b"Sanitizer" not in program.stderr.read()


@pytest.mark.parametrize(
    "address", ["/", "x" * 300, "/tmp/" + "y" * 300, "/none/s", "."]
)
def test_an_address_that_is_none_is_said(sender, address):
    """By the program, whose calls then do nothing."""
    done = subprocess.run(
        [sender, "1", "2", "8", "u", "4"], env={VARIABLE: address}, capture_output=True
    )
    assert done.returncode == 0
    assert done.stderr.startswith(b"surrogate_flow: ")
    assert b"Sanitizer" not in done.stderr


@pytest.mark.parametrize(
    ("compiler", "standard"),
    [("cc", "c99"), ("cc", "c11"), ("c++", "c++98"), ("c++", "c++17")],
)
def test_the_header_is_clean(tmp_path, compiler, standard):
    """As C and as C++, with every warning, and as the object that Fortran links."""
    source = (
        '#include "surrogate_flow.h"\nint main()\n{\n    double u[1] = {0};\n'
        "    sf_stream *stream = sf_open(0, NULL, NULL, 0, 1);\n"
        '    sf_step(stream, "u", 0, u);\n    sf_close(stream);\n    return 0;\n}\n'
    )
    strict = [f"-std={standard}", *STRICT[1:]]
    program = compiled(tmp_path, "clean", source, *strict, compiler=compiler)
    with closing(Channel(tmp_path)) as channel:
        done = sending(program, channel)
        spec = FieldSpec((), (Variable("u"),), (), (), (0.0,))
        steps, error = received(channel, spec, pause=20.0)
        assert (done.wait(20), error) == (0, None)
    assert [(moment, float(fields["u"])) for moment, fields in steps] == [(0.0, 0.0)]
