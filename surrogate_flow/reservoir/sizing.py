"""Settings that would never fill a batch, refused before anything runs."""

from __future__ import annotations

from dask.utils import format_bytes, parse_bytes

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.plan import Plan

__all__ = ["slots"]


def slots(
    capacity: int | str,
    spec: FieldSpec,
    window: Window,
    batch_size: int,
    threshold: int,
) -> int:
    """Return the capacity as a number of steps, if it can work with the other settings.

    Parameters
    ----------
    capacity : int or str
        A number of steps, or a size in bytes such as ``"2 GiB"``.
    spec, window, batch_size, threshold
        As `Store`.

    Raises
    ------
    ValueError
        If trainer or producers would wait for ever: a positive number is missing,
        simulations are shorter than a window, or threshold or batch do not fit into the
        capacity.
    """
    for name, value, remedy in (
        ("batch_size", batch_size, "It is the number of samples in a batch."),
        ("threshold", threshold, "Use 1 to draw as soon as there is a sample."),
        ("window.span", window.span, "Give the window an input or an output."),
        ("window.stride", window.stride, "Use 1 for a window at every step."),
    ):
        if value < 1:
            raise ValueError(f"Store: expected {name} >= 1, got {value}. {remedy}")
    steps, size = _steps(capacity, spec)
    plan = Plan.of(window, spec.steps)
    if plan.samples < 1:
        raise ValueError(
            f"Store: expected simulations of at least {window.span} steps (the span "
            f"of the window), got {spec.steps} steps: there would never be a sample. "
            "Use a shorter window, or let the solver yield more times."
        )
    if steps < window.span:
        raise ValueError(
            f"Store: expected capacity >= {window.span} steps (the span of the "
            f"window), got {size}: no window would ever be complete. "
            f"Raise capacity; {batch_size} samples are a batch."
        )
    samples = plan.capacity(steps)
    for name, value in (("threshold", threshold), ("batch_size", batch_size)):
        if value > samples:
            raise ValueError(
                f"Store: expected {name} <= {samples} samples, all that a capacity "
                f"of {size} can hold, got {value}: producers would wait for room and "
                f"the trainer for samples, for ever. Lower {name} or raise capacity; "
                f"a step takes {format_bytes(spec.step_bytes)}, and a sample is "
                f"{window.span} of them at most."
            )
    return steps


def _steps(capacity: int | str, spec: FieldSpec) -> tuple[int, str]:
    if isinstance(capacity, str):
        if capacity.strip().isdigit():
            raise ValueError(
                f"Store: expected a number of steps or a size in bytes with its unit "
                f"as capacity, got the text {capacity!r}. Write {capacity.strip()} "
                f"without quotes for steps, or '{capacity.strip()} MB' for bytes."
            )
        try:
            steps = parse_bytes(capacity) // spec.step_bytes
        except ValueError as error:
            raise ValueError(
                f"Store: expected a capacity such as 6000 (steps), '2 GiB' or "
                f"'500 MB', got {capacity!r}."
            ) from error
        size = f"{steps} steps ({capacity})"
    else:
        steps, size = capacity, f"{capacity} steps"
    if steps < 1:
        raise ValueError(
            f"Store: expected a capacity of at least one step "
            f"({format_bytes(spec.step_bytes)}), got {size}. Raise capacity."
        )
    return steps, size
