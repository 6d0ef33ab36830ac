"""Which steps of a trajectory are kept, and when windows are complete."""

from __future__ import annotations

from dataclasses import dataclass

from surrogate_flow.fields.window import Window

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Window ``j`` covers the steps ``j * stride ... j * stride + span - 1``.

    Steps that no window covers (in gaps, when ``stride > span``, and behind the last
    window) are not kept. Counted in kept steps alone, window ``j`` begins at ``j *
    hop`` and is contiguous.

    Parameters
    ----------
    span, stride : int
        Of the window.
    steps : int
        Number of steps of a whole simulation.

    Examples
    --------
    >>> plan = Plan(span=2, stride=3, steps=9)  # windows at 0-1, 3-4, 6-7
    >>> plan.samples, [plan.kept(n) for n in range(10)]
    (3, [0, 1, 2, 2, 3, 4, 4, 5, 6, 6])
    >>> plan.until(2), plan.before(1)
    (3, 4)
    """

    span: int
    stride: int
    steps: int

    @classmethod
    def of(cls, window: Window, steps: int) -> Plan:
        """Return the plan of a window over simulations of `steps` steps."""
        return cls(span=window.span, stride=window.stride, steps=steps)

    @property
    def hop(self) -> int:
        """Distance between neighbouring windows, in kept steps."""
        return min(self.stride, self.span)

    @property
    def samples(self) -> int:
        """Number of windows of a whole simulation."""
        return self.windows(self.steps)

    def windows(self, steps: int) -> int:
        """Return how many windows the first `steps` steps complete."""
        return max(0, (steps - self.span) // self.stride + 1)

    def kept(self, steps: int) -> int:
        """Return how many of the first `steps` steps are kept."""
        steps = min(steps, (self.samples - 1) * self.stride + self.span)
        if self.stride <= self.span:
            return steps
        return steps // self.stride * self.span + min(steps % self.stride, self.span)

    def until(self, kept: int) -> int:
        """Return how many steps may come until more than `kept` are kept."""
        if kept >= self.kept(self.steps):
            return self.steps
        if self.stride <= self.span:
            return kept
        return kept // self.span * self.stride + kept % self.span

    def before(self, windows: int) -> int:
        """Return how many steps may come before window number `windows` is complete."""
        if windows >= self.samples:
            return self.steps
        return windows * self.stride + self.span - 1

    def capacity(self, slots: int) -> int:
        """Return the largest number of samples that `slots` steps can hold."""
        whole, rest = divmod(slots, self.kept(self.steps))
        return whole * self.samples + self.windows(self.until(rest) if rest else 0)
