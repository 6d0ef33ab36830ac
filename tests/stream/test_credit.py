"""The credit pool, by itself."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.errors import ProtocolError

LARGEST = 10


class Streams(RuleBasedStateMachine):
    """Outlets that open, send, ask, and vanish, and a sink that consumes now and then."""

    def __init__(self):
        super().__init__()
        self.pool = CreditPool(budget=45, largest=LARGEST)
        self.balance = {}
        self.total = {}
        self.asking = {}
        self.pending = []
        self.priority = {}
        self.names = 0

    def take(self, grants):
        for key, granted in grants:
            if key in self.total:
                assert granted >= self.total[key]
                self.balance[key] += granted - self.total[key]
                self.total[key] = granted
                need = self.asking.get(key)
                if need is not None and self.balance[key] >= need:
                    del self.asking[key]
                    self.spend(key, need)

    def spend(self, key, length):
        self.pool.spend(key, length)
        self.balance[key] -= length
        self.pending.append((key, length))

    @rule(priority=st.sampled_from([0, 0, 0, 2]))
    def open(self, priority):
        self.names += 1
        self.priority[self.names] = priority
        self.balance[self.names] = self.total[self.names] = self.pool.open(self.names)

    @precondition(lambda self: self.balance)
    @rule(data=st.data(), need=st.integers(1, LARGEST))
    def send(self, data, need):
        idle = [key for key in self.balance if key not in self.asking]
        if not idle:
            return
        key = data.draw(st.sampled_from(idle))
        if self.balance[key] >= need:
            self.spend(key, need)
        else:
            self.asking[key] = need
            self.take(self.pool.ask(key, need, self.priority[key]))

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def ask_again(self, data):
        key = data.draw(st.sampled_from(sorted(self.asking)))
        self.take(self.pool.ask(key, self.asking[key], self.priority[key]))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def consume(self, data):
        place = data.draw(st.integers(0, len(self.pending) - 1))
        self.take(self.pool.consume(*self.pending.pop(place)))

    @precondition(lambda self: self.balance)
    @rule(data=st.data())
    def close(self, data):
        key = data.draw(st.sampled_from(sorted(self.balance)))
        for book in (self.balance, self.total, self.asking):
            book.pop(key, None)
        self.take(self.pool.close(key))

    @precondition(lambda self: self.asking and 1 not in self.priority.values())
    @rule(data=st.data())
    def give_the_turn(self, data):
        """To one that has waited."""
        key = data.draw(st.sampled_from(sorted(self.asking)))
        self.priority[key] = self.priority[key] or 1
        self.take(self.pool.reconsider(self.priority.__getitem__))

    def consume_of(self, priority):
        """What a sink does for the urgent, though it takes nothing of others."""
        while mine := [p for p in self.pending if self.priority[p[0]] == priority]:
            self.pending.remove(mine[0])
            self.take(self.pool.consume(*mine[0]))
        assert not [key for key in self.asking if self.priority[key] == priority]

    @rule()
    def take_the_held_out(self):
        """Nobody else is served by the sink: they do not wait for that."""
        self.consume_of(2)

    @rule()
    def take_the_one_in_turn(self):
        """Nor does the one that has its turn, and when it is over another one has it."""
        self.consume_of(2)
        self.consume_of(1)
        for key, priority in self.priority.items():
            if priority == 1:
                self.priority[key] = 0

    @rule()
    def drain(self):
        """A sink that consumes everything serves everybody: nobody starves."""
        while self.pending:
            self.take(self.pool.consume(*self.pending.pop(0)))
        assert not self.asking
        assert self.pool.asking == 0

    @invariant()
    def stays_within_the_budget(self):
        unspent = sum(self.balance.values())
        pending = sum(length for _, length in self.pending)
        assert self.pool.pending == pending
        assert self.pool.outstanding == unspent + pending
        assert self.pool.outstanding <= self.pool.budget + 2 * LARGEST

    @invariant()
    def cannot_be_hoarded(self):
        """Whoever waits is waited for by the sink, not by idle outlets."""
        idle = [b for key, b in self.balance.items() if key not in self.asking]
        assert sum(idle) <= self.pool.budget // 2


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_first_come_first_served():
    """Those that ask are served in the order in which they asked."""
    pool = CreditPool(budget=20, largest=10, window=10)
    assert pool.open("hoarder") == 10
    assert [pool.open(key) for key in "abc"] == [0, 0, 0]
    assert pool.ask("a", 10) == [("a", 10)]
    assert pool.ask("b", 10) == pool.ask("c", 4) == []
    pool.spend("a", 10)
    assert pool.consume("a", 10) == [("b", 10)]
    pool.spend("b", 10)
    assert pool.consume("b", 10) == [("c", 4)]


def test_the_urgent_draw_on_a_reserve():
    """A budget that waits for others is no obstacle: one message a level of priority."""
    pool = CreditPool(budget=20, largest=10, window=10)
    for key in "abct":
        pool.open(key)
    pool.spend("a", 10)
    assert pool.ask("b", 10) == [("b", 10)]
    pool.spend("b", 10)
    assert pool.ask("c", 10) == pool.ask("t", 10) == pool.ask("c", 9) == []
    assert pool.reconsider(lambda key: int(key == "t")) == [("t", 10)]
    pool.open("held out")
    assert pool.ask("held out", 10, priority=2) == [("held out", 10)]
    pool.spend("held out", 10)
    assert pool.ask("held out", 10, priority=2) == []
    assert pool.consume("held out", 10) == [("held out", 20)]
    assert pool.outstanding == 40


def test_credit_returns_by_itself_below_half():
    """While little is outstanding, an outlet never needs to ask."""
    pool = CreditPool(budget=100, largest=10, window=20)
    pool.open("a")
    for sent in range(10, 200, 10):
        pool.spend("a", 10)
        assert pool.consume("a", 10) == [("a", 20 + sent)]


def test_a_repeated_question_is_answered_with_the_same_total():
    """A lost grant is made up without granting more."""
    pool = CreditPool(budget=100, largest=10, window=20)
    pool.open("a")
    assert pool.ask("a", 10) == pool.ask("a", 10) == [("a", 20)]
    assert pool.outstanding == 20


def test_overdraft_is_refused():
    """Nobody sends what was not granted."""
    pool = CreditPool(budget=100, largest=10, window=20)
    pool.open("a")
    with pytest.raises(ProtocolError, match=r"at most 20 bytes of credit .* got 21"):
        pool.spend("a", 21)


@pytest.mark.parametrize(("budget", "largest"), [(19, 10), (0, 1), (5, 0)])
def test_a_budget_that_would_deadlock_is_refused(budget, largest):
    """Two of the largest messages must fit."""
    with pytest.raises(ValueError, match="budget"):
        CreditPool(budget, largest)
