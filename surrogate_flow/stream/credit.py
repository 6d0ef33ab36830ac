"""How many bytes may be in transit between all outlets and the sink."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.stream.errors import ProtocolError

__all__ = ["CreditPool"]

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Account:
    granted: int = 0
    spent: int = 0


class CreditPool(Generic[Key]):
    """unspent + spent but not consumed = outstanding <= budget + reserve, always.

    Here *unspent* bytes are granted and may still be sent; *spent* bytes were received;
    *consumed* bytes have entered the sink. Two rules share them out:

    - while ``outstanding <= budget / 2``, an opening connection is granted a `window`
      and consumed bytes are granted again, at once, to the connection they came from;
    - above that, consumed bytes return to the pool, and only connections that `ask`,
      because they hold data ready, are granted what they need: first come, first
      served.

    Hence slow solvers cannot hold more than half of the budget unspent, the other half
    is always enough for the next that asks, and none starves as long as the sink
    consumes. Priorities above 0 have a reserve of one message each on top: they need
    not wait for those that wait for them.

    Parameters
    ----------
    budget : int
        Bytes; at least twice `largest`.
    largest : int
        Bytes of the largest message.
    window : int, optional
        Bytes that an opening connection is granted; four of the largest messages by
        default, at most half of the budget.

    Raises
    ------
    ArgumentError
        If the budget is too small for the second rule.

    Notes
    -----
    Not locked: only the inlet's thread may call it. Grants are returned as ``(key,
    granted in total)``.

    Examples
    --------
    >>> pool = CreditPool(budget=100, largest=50)
    >>> pool.open("a"), pool.open("b")
    (50, 0)
    >>> pool.ask("b", 50)
    [('b', 50)]
    """

    def __init__(self, budget: int, largest: int, window: int | None = None) -> None:
        if largest < 1 or budget < 2 * largest:
            raise ArgumentError(
                "budget",
                f"at least {2 * largest} bytes, two of the largest messages",
                budget,
                "Raise it or lower coalesce_bytes: outlets would wait forever.",
            )
        self.budget = budget
        self.largest = largest
        self.window = min(window or 4 * largest, budget // 2)
        self.outstanding = 0
        self.pending = 0
        self._accounts: dict[Key, _Account] = {}
        self._asking: tuple[dict[Key, int], ...] = ({}, {}, {})

    @property
    def asking(self) -> int:
        """Number of connections that hold data ready and lack credit."""
        return sum(map(len, self._asking))

    def open(self, key: Key) -> int:
        """Open an account and return what it is granted at once, or 0."""
        account = self._accounts[key] = _Account()
        if self.outstanding + self.window <= self.budget // 2:
            account.granted = self.window
            self.outstanding += self.window
        return account.granted

    def granted(self, key: Key) -> int:
        """Return how many bytes the connection was granted in total."""
        return self._accounts[key].granted

    def received(self, key: Key) -> int:
        """Return how many bytes came from the connection in total."""
        return self._accounts[key].spent

    def spend(self, key: Key, length: int) -> None:
        """Note that `length` bytes were received.

        Raises
        ------
        ProtocolError
            If they were not granted.
        """
        account = self._accounts[key]
        if account.spent + length > account.granted:
            left = account.granted - account.spent
            got = f"expected at most {left} bytes of credit to be used, got {length}"
            raise ProtocolError("credit", got)
        account.spent += length
        self.pending += length
        # A connection that sends no longer waits: its request is obsolete.
        self._forget(key)

    def consume(self, key: Key, length: int) -> list[tuple[Key, int]]:
        """Note that `length` bytes entered the sink; return the grants this allows."""
        self.pending -= length
        account = self._accounts.get(key)
        if account is not None and self.outstanding <= self.budget // 2:
            account.granted += length
            return [(key, account.granted)]
        self.outstanding -= length
        return self._serve()

    def ask(self, key: Key, need: int, priority: int = 0) -> list[tuple[Key, int]]:
        """Note that `need` bytes are ready; return the grants this allows.

        Its priority is 0, or 1 or 2 if the sink takes them now, whatever it holds.
        """
        account = self._accounts[key]
        if account.granted - account.spent >= need:
            return [(key, account.granted)]
        queue = self._asking[priority]
        if key not in queue:
            self._forget(key)
        queue[key] = min(need, self.largest)
        return self._serve()

    def reconsider(self, priority: Callable[[Key], int]) -> list[tuple[Key, int]]:
        """Update the priorities of those that wait; return the grants this allows."""
        for key, need in list(self._asking[0].items()):
            if level := priority(key):
                del self._asking[0][key]
                self._asking[level][key] = need
        return self._serve()

    def close(self, key: Key) -> list[tuple[Key, int]]:
        """Take back what the connection has not spent; return the grants this allows.

        What it has spent stays outstanding until it is consumed.
        """
        account = self._accounts.pop(key)
        self._forget(key)
        self.outstanding -= account.granted - account.spent
        return self._serve()

    def _forget(self, key: Key) -> None:
        for queue in self._asking:
            queue.pop(key, None)

    def _serve(self) -> list[tuple[Key, int]]:
        grants: list[tuple[Key, int]] = []
        for priority in (2, 1, 0):
            limit = self.budget + priority * self.largest
            queue = self._asking[priority]
            while queue:
                key, need = next(iter(queue.items()))
                account = self._accounts[key]
                lack = max(0, need - (account.granted - account.spent))
                if self.outstanding + lack > limit:
                    break
                account.granted += lack
                self.outstanding += lack
                del queue[key]
                grants.append((key, account.granted))
        return grants
