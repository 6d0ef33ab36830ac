"""Steps, put together from the blocks that the ranks of a program send or put."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import struct
import time
from collections.abc import Generator
from typing import Any, NoReturn

import numpy as np
import xarray as xr

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.solvers.programs.channel import Channel, StreamError, shared_memory
from surrogate_flow.solvers.solver import TOGETHER

__all__ = ["Reception"]

_FRAME = struct.Struct("=8sIIQdQQ")  # sf_frame of surrogate_flow.h
_ROOM = struct.Struct("=8sQQQ")  # sf_room
_MAGIC, _VERSION = b"SFSTEPS", b"2"
_ALONE = b"1"  # version of programs that have no memory in common with the worker
_OPEN, _SENT, _PUT = 1, 2, 3
_TYPES = {np.dtype(kind).itemsize: np.dtype(kind) for kind in ("float32", "float64")}
_MOST = 2**20  # ranks, and bytes of a name
# Steps go on together if they take less room than this, and less time than TOGETHER.
_SMALL = 2**20  # bytes
_MOST_HELD = 2**28  # bytes of steps, in single precision, or one step

_EACH = "Send every variable of a step before the next step."

_Places = Generator[memoryview | None, None, None]


class Reception:
    """The connections of a run's program, and the steps that are put together.

    Steps lie in a ring of `capacity` rows; those that are whole go on together, and a
    rank that is ahead of the first row by as much waits. The ring is memory that the
    ranks write into, if the system lets them.
    """

    def __init__(self, channel: Channel, spec: FieldSpec, simulation: int) -> None:
        self.spec = spec
        self._together = max(1, min(spec.steps, _SMALL // spec.step_bytes))
        # A rank fills one half while the other goes on.
        most = max(1, _MOST_HELD // spec.step_bytes)
        self.capacity = min(spec.steps, 2 * self._together, most)
        self.first = 0  # step that has not gone on
        self.whole = 0  # steps that could
        self.names = {v.name.encode(): i for i, v in enumerate(spec.variables)}
        self.simulation = simulation
        self.ranks: dict[int, _Rank] = {}
        self.count = 0  # of ranks, once one has said so
        self.order = 0
        self._channel = channel
        self._memory, self.file = shared_memory(
            8 * self.capacity * math.prod(spec.step_shape)
        )
        self._arrays: list[np.ndarray | None] = [None] * len(self.names)
        self._times = np.zeros(self.capacity)
        self._parts = np.zeros(self.capacity, int)  # that a row has
        self._since = math.inf  # when the first whole step came
        self._selector = selectors.DefaultSelector()
        self.wake_by(channel)
        self._open: list[_Rank] = []
        self._watched: set[_Rank] = set()

    def wake_by(self, source: Channel | int) -> None:
        """Let `receive` wait no longer while this is readable."""
        self._selector.register(source, selectors.EVENT_READ)

    def receive(self, seconds: float) -> bool:
        """Read what there is room for; if there is nothing, wait so long for it.

        Return early, with False, where whole steps have waited long enough to go on.

        Raises
        ------
        StreamError, SpecMismatch
            If it is wrong.
        """
        waiting = [rank for rank in self._open if rank.waits]
        if came := any([self._read(rank) for rank in waiting]):
            seconds = 0.0
        elif not math.isinf(self._since):
            seconds = min(seconds, self._since + TOGETHER - time.monotonic())
        for key, _ in self._selector.select(max(0.0, seconds)):
            rank: _Rank | None = key.data
            if rank is None and (connection := self._channel.accept()) is not None:
                rank = _Rank(connection, self)
                self._open.append(rank)
                came = True
            came |= rank is not None and self._read(rank)
        return came

    def _read(self, rank: _Rank) -> bool:
        came = rank.read()
        self._watch(rank, not (rank.waits or rank.ended))
        if rank.ended:
            rank.connection.close()
            self._open.remove(rank)
        return came

    def _watch(self, rank: _Rank, watched: bool) -> None:
        """Have a rank wake `receive`, but not while there is no room for it."""
        if watched and rank not in self._watched:
            self._selector.register(rank.connection, selectors.EVENT_READ, rank)
            self._watched.add(rank)
        elif not watched and rank in self._watched:
            self._selector.unregister(rank.connection)
            self._watched.remove(rank)

    @property
    def ended(self) -> bool:
        """Whether all ranks have connected, and have closed their streams."""
        return 0 < self.count == len(self.ranks) and not self._open

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the grid, in the order of the memory."""
        return self.spec.shape[::-1] if self.order else self.spec.shape

    @property
    def lacking(self) -> str:
        """Which ranks have not connected, in words, or ""."""
        if not self.ranks:
            return " (it never called sf_open)"
        there = len(self.ranks)
        return f", by {there} of {self.count} ranks" * (there < self.count)

    @property
    def stuck(self) -> str:
        """Why the next step can never be whole, or ""."""
        ended = [r for r in self.ranks.values() if r.ended and r.step == self._next]
        if ended and any(r.step > self._next for r in self.ranks.values()):
            return f"rank {ended[0].rank} has closed its stream before the others"
        return ""

    @property
    def _next(self) -> int:
        return self.first + self.whole

    def batch(self, *, all: bool = False) -> xr.Dataset | None:
        """Return steps that are whole, if they should go on now.

        The dataset is of the ring: it must be copied before more is received.
        """
        begin = self.first % self.capacity
        count = min(self.whole, self._together, self.capacity - begin)
        full = count == self._together or begin + count == self.capacity
        if not count or not (full or all or time.monotonic() > self._since + TOGETHER):
            return None
        rows = slice(begin, begin + count)
        dims = self.spec.dims[::-1] if self.order else self.spec.dims
        fields = {
            name.decode(): xr.Variable(("time", *dims), array[rows], fastpath=True)
            for name, array in zip(self.names, self._arrays, strict=True)
            if array is not None
        }
        kind: Any = xr.IndexVariable
        times = kind("time", self._times[rows].copy(), fastpath=True)
        index = xr.indexes.PandasIndex(times, "time")
        sizes = {"time": count, **dict(zip(dims, self.sizes, strict=True))}
        # Xarray's checks would take as long as all copies of a step of 1 MB.
        return xr.Dataset._construct_direct(
            {**fields, "time": times}, {"time"}, sizes, indexes={"time": index}
        )

    def free(self, count: int) -> None:
        """Give the room of steps that have gone on to others."""
        rows = np.arange(self.first, self.first + count) % self.capacity
        self._parts[rows] = 0
        self.first += count
        self.whole -= count
        self._since = time.monotonic() if self.whole else math.inf
        for rank in self._open:
            rank.allow(self.first + self.capacity)

    def place(self, rank: _Rank, channel: int, kind: np.dtype) -> np.ndarray | None:
        """Return where a block of the rank's step lies; None while there is no room."""
        if rank.step >= self.first + self.capacity:
            return None
        array = self._arrays[channel]
        if array is None:
            shape = self.sizes
            count = self.capacity * math.prod(shape)
            ring = np.frombuffer(self._memory, kind, count, 8 * channel * count)
            array = self._arrays[channel] = ring.reshape(self.capacity, *shape)
        if array.dtype != kind:
            name = self.spec.variables[channel].name
            self.mismatch(rank.step, f"{name!r} in one type", f"{array.dtype}, {kind}")
        row = rank.step % self.capacity
        block: np.ndarray = array[(slice(row, row + 1), *rank.block)]
        return block

    def arrived(self, rank: _Rank, moment: float) -> None:
        """Count a block that has arrived."""
        row = rank.step % self.capacity
        if self._parts[row] and not math.isclose(self._times[row], moment):
            got = f"{self._times[row]:.9g}, then {moment:.9g}"
            self.mismatch(rank.step, "one time for all variables and ranks", got, _EACH)
        self._times[row] = moment
        self._parts[row] += 1
        whole = len(self.names) * self.count
        while self.whole < self.capacity and len(self.ranks) == self.count:
            if self._parts[self._next % self.capacity] < whole:
                break
            self._since = min(self._since, time.monotonic())
            self.whole += 1

    def joined(self, rank: _Rank) -> None:
        """Take in a rank that has said which block it has; with the last, check all."""
        if self.ranks.setdefault(rank.rank, rank) is not rank:
            self.mismatch(
                0,
                "one stream of each rank",
                f"two of rank {rank.rank} of {rank.ranks}",
                "Usual causes: two programs write, or an MPI program that calls "
                "sf_open with 0, 1 in place of its rank and their number.",
            )
        if not self.count:
            self.count, self.order = rank.ranks, rank.order
        if (rank.ranks, rank.order) != (self.count, self.order):
            order = ", with indices in another order" * (rank.order != self.order)
            got = f"one of {rank.ranks}{order}"
            self.mismatch(0, f"streams of {self.count} ranks", got, "Are these two?")
        if len(self.ranks) == self.count:
            self._check_blocks()

    def _check_blocks(self) -> None:
        covered = np.zeros(self.spec.shape, np.int32)
        for rank in self.ranks.values():
            covered[rank.in_spec] += 1
        if (covered == 1).all():
            return
        at = tuple(map(int, np.argwhere(covered != 1)[0]))
        if self.count == 1:
            (rank,) = self.ranks.values()
            size = tuple(s.stop - s.start for s in rank.in_spec)
            self.mismatch(0, f"the shape {self.spec.shape} of the spec", f"{size}")
        got = f"{counted(int(covered[at]), 'block')} at {at}"
        self.mismatch(0, "each cell in one block", got, "Leave out ghost cells.")

    def mismatch(
        self, step: int, expected: str, got: str, remedy: str = ""
    ) -> NoReturn:
        """Refuse what is not as the spec says."""
        what = f"Simulation {self.simulation}, step {step}"
        raise SpecMismatch(what, f"the program to send {expected}", got, remedy)

    def close(self) -> None:
        """Close all connections, and leave the memory."""
        for rank in self._open:
            rank.close()
        self._selector.close()
        self._memory, self._arrays = b"", []
        if self.file is not None:
            os.close(self.file)
            self.file = None


class _Rank:
    """One connection of a program: the block that it has, and where its bytes go."""

    def __init__(self, connection: socket.socket, reception: Reception) -> None:
        self.connection, self._reception = connection, reception
        connection.setblocking(False)
        self.rank, self.ranks, self.order = -1, 0, 0
        self.block: tuple[slice, ...] = ()  # in the memory of a step
        self.in_spec: tuple[slice, ...] = ()  # in the order of the spec's dims
        self.step = 0  # that it sends
        self.ended = False
        self._shares, self._allowed = False, 0  # the memory; steps that it may put
        self._sent: set[int] = set()  # variables of that step
        self._between = True  # frames
        self._places = self._frames()
        self._place: memoryview | None = next(self._places)

    def read(self) -> bool:
        """Read until there is no more, or no room; whether anything came."""
        came = False
        while True:
            if self._place is None:
                self._place = next(self._places)
            if self._place is None:
                return came
            try:
                count = self.connection.recv_into(self._place)
            except BlockingIOError:
                return came
            except ConnectionError:
                count = 0
            came = True
            if not count:
                self.ended = True
                if not self._between or len(self._place) < _FRAME.size:
                    raise StreamError(f"has ended within step {self.step}")
                return came
            self._place = self._place[count:]
            if not len(self._place):
                self._place = next(self._places)

    @property
    def waits(self) -> bool:
        """Whether there is no room for what it sends."""
        return self._place is None

    def _frames(self) -> _Places:
        """Yield where the next bytes go; resumed when these are full."""
        head, number = memoryview(bytearray(_FRAME.size)), 0
        while True:
            self._between = True
            yield head
            self._between = False
            magic, kind, of, numbered, moment, letters, size = _FRAME.unpack(head)
            if magic[:-1] != _MAGIC:
                raise StreamError("has sent what the calls of surrogate_flow.h do not")
            if magic[-1:] not in (_ALONE, _VERSION):
                raise StreamError("was compiled with a header of another version")
            if numbered != number:
                raise StreamError(
                    f"has sent frame {numbered} where {number} comes next: two "
                    "processes write to one stream. Open it after fork, in one"
                )
            kinds = {_SENT, _PUT} if self._shares else {_SENT}
            if kind not in (kinds if number else {_OPEN}) or letters > _MOST:
                raise StreamError("has sent a frame that is none")
            number += 1
            if kind == _OPEN:
                yield from self._begin(of, letters, size)
                if magic[-1:] == _VERSION:
                    self._welcome()
            else:
                put = kind == _PUT
                yield from self._variable(of, moment, letters, size, put)

    def _begin(self, order: int, letters: int, size: int) -> _Places:
        spec = self._reception.spec
        dims = len(spec.dims)
        if letters or size % 8 or not 24 <= size <= 24 + 16 * 64 or order > 1:
            raise StreamError("has sent a frame that is none")
        body = memoryview(bytearray(size))
        yield body
        self.rank, self.ranks, given, *ends = struct.unpack(f"={size // 8}Q", body)
        if len(ends) != 2 * given or not self.rank < self.ranks <= _MOST:
            raise StreamError(f"has opened as rank {self.rank} of {self.ranks}")
        if given != dims:
            got = f"{given} ({tuple(ends[given:])})"
            self._reception.mismatch(0, f"a grid of {dims} dims ({spec.shape})", got)
        first, shape = ends[:dims], ends[dims:]
        last = [f + n for f, n in zip(first, shape, strict=True)]
        if any(
            n == 0 or e > m for n, e, m in zip(shape, last, spec.shape, strict=True)
        ):
            begin = f" that begins at {tuple(first)}" * any(first)
            self._reception.mismatch(
                0,
                f"blocks of the shape {spec.shape} of the spec",
                f"one of {tuple(shape)}{begin}",
                "Leave out ghost cells, or correct the spec.",
            )
        self.in_spec = tuple(map(slice, first, last))
        self.order = order
        self.block = self.in_spec[::-1] if order else self.in_spec
        self._reception.joined(self)

    def _welcome(self) -> None:
        """Send how the memory is laid out, and its descriptor."""
        reception, spec = self._reception, self._reception.spec
        names = b"".join(name + b"\0" for name in reception.names)
        file = reception.file
        self._shares = file is not None
        self._allowed = rows = reception.capacity * self._shares
        head = _ROOM.pack(_MAGIC + _VERSION, rows, len(reception.names), len(names))
        message = head + struct.pack(f"={len(spec.dims)}Q", *reception.sizes) + names
        with contextlib.suppress(ConnectionError):  # It has ended, which is read.
            if file is None:
                self.connection.sendall(message)
            else:
                socket.send_fds(self.connection, [message], [file])

    def allow(self, step: int) -> None:
        """Let it put the steps before this one, if these are half of the ring more."""
        if self._shares and 2 * (step - self._allowed) >= self._reception.capacity:
            # One that reads none of these puts nothing, either.
            with contextlib.suppress(OSError):
                self.connection.send(struct.pack("=Q", step))
                self._allowed = step

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
        self._places.close()

    def _variable(
        self, of: int, moment: float, letters: int, size: int, put: bool
    ) -> _Places:
        name = memoryview(bytearray(letters))
        if letters:
            yield name
        reception = self._reception
        channel = reception.names.get(bytes(name), -1)
        if channel < 0:
            said = bytes(name[:80]).decode(errors="replace")
            valid = [v.name for v in reception.spec.variables]
            hint = nearest(said, valid)
            reception.mismatch(self.step, "variables of the spec", f"{said!r}", hint)
        if channel in self._sent:
            lacking = next(i for i in reception.names.values() if i not in self._sent)
            reception.mismatch(
                self.step,
                f"{reception.spec.variables[lacking].name!r}, too",
                f"{reception.spec.variables[channel].name!r} twice",
                _EACH,
            )
        cells = math.prod(s.stop - s.start for s in self.block)
        if of not in _TYPES or size != cells * of:
            raise StreamError(f"has sent {size} bytes of {cells} numbers of {of} bytes")
        while (place := reception.place(self, channel, _TYPES[of])) is None:
            if put:
                raise StreamError(f"has put step {self.step} where another one is")
            yield None
        if put:
            pass
        elif place.flags.c_contiguous:
            yield place.reshape(-1).view(np.uint8).data
        else:
            block = np.empty(place.shape, place.dtype)
            yield block.reshape(-1).view(np.uint8).data
            place[...] = block
        reception.arrived(self, moment)
        self._sent.add(channel)
        if len(self._sent) == len(reception.names):
            self._sent.clear()
            self.step += 1
