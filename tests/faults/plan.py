"""What one seed stands for: a small study, and what goes wrong in it."""

import dataclasses

import numpy as np

from faults.faulty import Trouble
from surrogate_flow.reservoir import FIFO, FIRO, Reservoir

IN_SOLVER = ("raises", "nan", "slow", "kill", "term", "stop", "hangs", "gil")
# How often each comes first in 50 seeds; some take seconds.
COMMON = (
    *("raises", "kill", "cut", "nan", "twice", "pause", "slow", "term", "stop"),
    *("raises", "kill", "cut", "nan", "twice", "pause", "slow", "term"),
    *("raises", "kill", "twice", "nan", "pause", "slow"),
)
CYCLE = (*COMMON, "hangs", "full", "gone", *COMMON[:-2], "gone", "full", "gil")
# These end the study in a way of their own, or come once in 50 seeds: a worker that another
# fault kills, before they strike, would leave none.
ALONE = ("full", "gone", "hangs", "gil")
MINUTE = 60.0  # seconds that the trainer of one seed in 250 rests
KINDS = tuple(dict.fromkeys(CYCLE))
MORE = ("raises", "nan", "slow", "kill", "twice", "pause")
CELLS = 50


@dataclasses.dataclass(frozen=True)
class Plan:
    """One study, and its faults by kind.

    Attributes
    ----------
    troubles : tuple of Trouble
        That strike in the solver.
    twice : tuple of (int, float)
        Simulations of which another attempt is made, and seconds after the beginning.
    cuts : tuple of int
        Numbers of bytes after which connections are cut.
    pause : float
        Seconds that the trainer rests, once; 0 is never.
    step_timeout : float
        Seconds; short where something hangs.
    ends : mapping of int to int
        Simulations that end early, and after how many steps.
    """

    seed: int
    policy: str
    simulations: int
    steps: int
    batch_size: int
    pace: float
    capacity: int
    coalesce: int
    troubles: tuple[Trouble, ...]
    twice: tuple[tuple[int, float], ...]
    cuts: tuple[int, ...]
    pause: float
    step_timeout: float
    kinds: tuple[str, ...]
    ends: dict[int, int] = dataclasses.field(default_factory=dict)

    def steps_of(self, number):
        """Return how many steps a simulation has."""
        return self.ends.get(number, self.steps)

    @property
    def reservoir(self):
        """The policy of the store."""
        half = self.capacity // 2
        policies = {
            "FIFO": FIFO(capacity=self.capacity),
            "FIRO": FIRO(capacity=self.capacity, threshold=half, seed=1),
            "Reservoir": Reservoir(capacity=self.capacity, threshold=half, seed=1),
        }
        return policies[self.policy]


def plan(seed: int) -> Plan:
    """Return the study of a seed, always the same."""
    random = np.random.default_rng(seed)
    more = random.choice(MORE, random.integers(0, 3), replace=False)
    first = CYCLE[seed % len(CYCLE)]
    more = () if first in ALONE else map(str, more)
    kinds = tuple(dict.fromkeys((first, *more)))
    simulations = int(random.integers(6, 15))
    steps = int(random.integers(10, 21))
    troubles, numbers = [], random.permutation(simulations).tolist()
    for kind in kinds:
        if kind in IN_SOLVER:
            # Three times is once more than it is retried.
            times = int(random.integers(1, 4)) if kind == "raises" else 1
            number, step = numbers.pop(), int(random.integers(0, steps))
            troubles.append(Trouble(kind, number, step, times))
    twice = tuple(
        (int(number), float(random.uniform(0, 0.3)))
        for number in random.integers(0, simulations, 3 * ("twice" in kinds))
    )
    length = simulations * steps * CELLS * 4
    return Plan(
        seed=seed,
        policy=str(random.choice(("FIFO", "FIRO", "Reservoir"))),
        simulations=simulations,
        steps=steps,
        batch_size=int(random.integers(1, 9)),
        pace=float(random.choice((0.0, 0.002, 0.01))),
        capacity=int(random.integers(16, 65)),
        # A step a message, some, or all of them.
        coalesce=int(random.choice((1, 3, 100))) * CELLS * 4,
        troubles=tuple(troubles),
        twice=twice,
        cuts=tuple(random.integers(300, length // 2, 3 * ("cut" in kinds)).tolist()),
        pause=_pause(seed, random) if "pause" in kinds else 0.0,
        # Longer than a busy machine keeps a worker waiting.
        step_timeout=15.0 if {"hangs", "gil"} & set(kinds) else 20.0,
        kinds=kinds,
        ends={}
        if kinds[0] in ("full", "gone")
        else _ends(simulations, steps, troubles, seed),
    )


def _ends(simulations, steps, troubles, seed):
    """End about half of the simulations early, not before their troubles strike."""
    random = np.random.default_rng([seed, 1])
    first = {t.simulation: t.step + 1 for t in troubles}
    return {
        number: int(random.integers(first.get(number, 1), steps))
        for number in range(simulations)
        if first.get(number, 1) < steps and random.random() < 0.5
    }


def _pause(seed, random):
    """Longer than the heartbeat, as trials set it; of a few seeds a minute."""
    return MINUTE if seed % 250 == 55 else float(random.uniform(1.2, 1.8))
