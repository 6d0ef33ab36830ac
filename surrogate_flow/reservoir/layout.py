"""Which steps of a simulation are kept, and how many samples a capacity holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dask.utils import format_bytes, parse_bytes

from surrogate_flow.fields.errors import ArgumentError, UserError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.policy import Policy

__all__ = ["Layout", "require_reachable", "slots_of"]


@final
@dataclass(frozen=True)
class Layout:
    """Sample ``j`` is the steps ``j * stride ... j * stride + span - 1``.

    Steps of no sample (in gaps, when ``stride > span``, and behind the last sample) are
    not kept. Counted in kept steps alone, sample ``j`` begins at ``j * hop`` and is
    contiguous.

    `span` and `stride` are those of the window, `steps` is the number of steps of a
    complete simulation.

    Examples
    --------
    >>> layout = Layout(span=2, stride=3, steps=9)  # samples at 0-1, 3-4, 6-7
    >>> layout.samples, [layout.kept(n) for n in range(10)]
    (3, [0, 1, 2, 2, 3, 4, 4, 5, 6, 6])
    >>> layout.until(2), layout.before(1)
    (3, 4)
    """

    span: int
    stride: int
    steps: int

    @property
    def hop(self) -> int:
        """Distance between neighbouring samples, in kept steps."""
        return min(self.stride, self.span)

    @property
    def samples(self) -> int:
        """Number of samples of a complete simulation."""
        return self.completed(self.steps)

    @property
    def end(self) -> int:
        """Number of the step behind the last sample."""
        return (self.samples - 1) * self.stride + self.span

    def completed(self, steps: int) -> int:
        """Return how many samples the first `steps` steps complete."""
        return max(0, (steps - self.span) // self.stride + 1)

    def kept(self, steps: int) -> int:
        """Return how many of the first `steps` steps are kept."""
        steps = min(steps, self.end)
        samples, rest = divmod(steps, self.stride)
        return samples * self.hop + min(rest, self.span)

    def until(self, kept: int) -> int:
        """Return how many steps may arrive until more than `kept` are kept."""
        if kept >= self.kept(self.steps):
            return self.steps
        samples, rest = divmod(kept, self.hop)
        return samples * self.stride + rest

    def before(self, samples: int) -> int:
        """Return how many steps may arrive before sample `samples` is complete."""
        if samples >= self.samples:
            return self.steps
        return samples * self.stride + self.span - 1

    def capacity(self, slots: int) -> int:
        """Return the largest number of samples that `slots` steps can hold."""
        complete, rest = divmod(slots, self.kept(self.steps))
        more = self.completed(self.until(rest)) if rest else 0
        return complete * self.samples + more


def slots_of(policy: Policy, spec: FieldSpec, window: Window, batch_size: int) -> int:
    """Return the capacity of a store in steps.

    Settings with which trainer or simulations would wait for ever are refused: a
    threshold or a batch that does not fit into the capacity, for example.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("reservoir.threshold", policy.threshold),
        ("window.span", window.span),
        ("window.stride", window.stride),
    ):
        if value < 1:
            raise UserError(name, "at least 1", value)
    window.require(spec.steps)
    steps, size = _steps(policy.capacity, spec)
    if steps < window.span:
        raise UserError(
            "reservoir.capacity",
            f"capacity >= {window.span} steps (the span of the window)",
            size,
            "No sample would ever be complete: raise it.",
        )
    samples = Layout(window.span, window.stride, spec.steps).capacity(steps)
    for name, value in (("threshold", policy.threshold), ("batch_size", batch_size)):
        if value > samples:
            raise UserError(
                "The reservoir is too small",
                f"{name} <= {samples} samples, all that a capacity of {size} can hold",
                value,
                f"Lower {name} or raise --data.reservoir.capacity: a step takes "
                f"{format_bytes(spec.step_bytes)}, a sample is {window.span} of them.",
            )
    if policy.limiter is not None:
        policy.limiter.check(batch_size)
    return steps


def require_reachable(
    policy: Policy,
    spec: FieldSpec,
    window: Window,
    simulations: int | None,
    world: int = 1,
) -> None:
    """Refuse a threshold that a rank's share of the simulations can never fill."""
    if simulations is None:
        return
    share, each = simulations // world, window.samples(spec.steps)
    if share * each < policy.threshold:
        raise ArgumentError(
            "The threshold can never be reached",
            f"at most {share * each} samples ({share} simulations of {each})",
            f"a threshold of {policy.threshold}",
            "Lower it, or run more simulations.",
        )


def _steps(capacity: int | str, spec: FieldSpec) -> tuple[int, str]:
    """Return a capacity in steps, and as text."""
    if isinstance(capacity, str):
        try:
            if capacity.strip().isdigit():
                raise ValueError("of what?")
            # The steps may each be of another simulation, with its input fields.
            steps = parse_bytes(capacity) // (spec.step_bytes + spec.input_bytes)
        except ValueError as error:
            expected = "a number of steps, or a size with its unit"
            remedy = "Write 6000, '500 MB' or '2 GiB', for example."
            got = f"the text {capacity!r}"
            raise UserError("reservoir.capacity", expected, got, remedy) from error
        size = f"{steps} steps ({capacity})"
    else:
        steps, size = capacity, f"{capacity} steps"
    if steps < 1:
        least = f"at least one step ({format_bytes(spec.step_bytes)})"
        raise UserError("reservoir.capacity", least, size, "Raise it.")
    return steps, size
