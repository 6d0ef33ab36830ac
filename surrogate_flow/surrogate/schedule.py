"""The optimizer of a surrogate, its learning rate, and how it takes small numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from surrogate_flow.fields.errors import ArgumentError, line_of
from surrogate_flow.fields.names import closest, nearest

__all__ = [
    "Flush",
    "advance",
    "built_optimizer",
    "built_schedule",
    "monitor_of",
    "require_metric",
]

_RATE = "model.optimizer.lr"
_MONITOR = "val_loss"  # of a plateau that names none


def built_optimizer(build: Callable[[Any], Optimizer], parameters: Any) -> Optimizer:
    """Return the optimizer, or refuse its arguments.

    Raises
    ------
    ArgumentError
        If it refuses them, or a learning rate is not a number more than 0.
    """
    if getattr(build, "keywords", {}).get("lr", 1) is None:
        raise ArgumentError(_RATE, "a finite number above 0", "null")
    optimizer: Optimizer = _built("optimizer", build, parameters)
    for rate in (float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        if not 0 < rate < math.inf:
            raise ArgumentError(_RATE, "a finite number above 0", rate)
    return optimizer


def built_schedule(
    build: Callable[[Any], LRScheduler], optimizer: Optimizer, metrics: Collection[str]
) -> LRScheduler:
    """Return the schedule, or refuse its arguments; `metrics` are what is monitored.

    Raises
    ------
    ArgumentError
        If it refuses them, or its monitor is a misspelt one of the metrics.
    """
    schedule: LRScheduler = _built("scheduler", build, optimizer)
    if monitor := monitor_of(schedule):
        require_metric("model.scheduler.monitor", monitor, metrics)
    return schedule


def require_metric(what: str, monitor: str, metrics: Collection[str]) -> None:
    """Refuse a misspelt metric.

    One of another name may be of a subclass or a callback, known when it is logged.
    """
    if monitor not in metrics and closest(monitor, metrics):
        raise ArgumentError(
            f"{what}: no metric {monitor!r}. {nearest(monitor, metrics)}"
        )


def _built(name: str, build: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return build(argument)
    except (TypeError, ValueError) as error:
        said = f"model.{name}: {str(error).rstrip('.')}.{line_of(error)}"
        raise ArgumentError(said) from error


def monitor_of(schedule: LRScheduler) -> str | None:
    """Return what a schedule looks at, if it does."""
    if not isinstance(schedule, ReduceLROnPlateau):
        return None
    return getattr(schedule, "monitor", None) or _MONITOR


def advance(
    schedule: LRScheduler, metrics: Mapping[str, Tensor], *, validated: bool
) -> str:
    """Advance a schedule after a batch or a validation, if it is its turn.

    Those that count are advanced after batches, and hold their last rate when they have
    run out; a plateau looks at its monitor when that has a new value: after batches if
    its name begins with ``train``, otherwise after validations.

    Returns
    -------
    str
        What there is to say once; empty if nothing.

    Raises
    ------
    ArgumentError
        If a validation has no such monitor.
    """
    monitor, kind = monitor_of(schedule), type(schedule).__name__
    if monitor is None:
        if validated:
            return ""
        groups = schedule.optimizer.param_groups
        kept = [{k: v for k, v in g.items() if k != "params"} for g in groups]
        spent, last = _spent(schedule), _count(schedule)
        try:
            # Another within it may follow.
            schedule.step()
        except (ValueError, LookupError) as error:
            # A table of the user's ends with a LookupError.
            if isinstance(error, ValueError) and "Tried to step" not in str(error):
                raise
            spent = True
        if spent:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)
            # Online, the number of batches is not known beforehand.
            return (
                f"The schedule {kind} has run out after {last} batches: the learning "
                f"rate stays {kept[0]['lr']:.3g}. Give it more steps."
            )
        if isinstance(schedule, CosineAnnealingLR) and last >= schedule.T_max:
            return (
                f"The schedule {kind} has come to its end, T_max = {schedule.T_max}: "
                "from here on its learning rate rises again. Give it more steps."
            )
        rates = [g["lr"] for g in kept]
        if not any(map(float, (*rates, *schedule.get_last_lr()))):
            return (
                f"The schedule {kind} holds the learning rate at 0: nothing is learned."
            )
    elif validated != monitor.startswith("train"):
        if monitor in metrics:
            schedule.step(metrics[monitor])  # type: ignore[arg-type]  # a number's float
        elif validated:
            raise ArgumentError(
                f"model.scheduler.monitor: no metric {monitor!r} after a validation. "
                f"{nearest(monitor, [*metrics])}"
            )
    return ""


def _active(schedule: LRScheduler) -> list[LRScheduler]:
    """Return a schedule and those within it that act on the next batch."""
    parts = getattr(schedule, "_schedulers", [])
    if isinstance(schedule, SequentialLR):
        parts = [parts[bisect_right(schedule._milestones, schedule.last_epoch + 1)]]
    return [schedule, *(inner for part in parts for inner in _active(part))]


def _count(schedule: LRScheduler) -> int:
    """Return the batches that a schedule has seen; ChainedScheduler itself has none."""
    return max(getattr(part, "last_epoch", 0) for part in _active(schedule))


def _spent(schedule: LRScheduler) -> bool:
    # torch's own makes one step too many, and goes up again with it.
    return any(
        isinstance(part, OneCycleLR) and part.last_epoch + 1 >= part.total_steps
        for part in _active(schedule)
    )


class Flush(L.Callback):
    """Flush subnormals to zero while a fit runs, and no longer.

    Adam's moments of dead units become subnormal, and its step takes four times as
    long. Threads that torch starts meanwhile inherit it.
    """

    _before: bool | None = None

    def on_fit_start(self, *_: Any) -> None:
        """Begin to flush."""
        self._before = not np.array([1e-310]) * 0.5
        torch.set_flush_denormal(True)

    def on_fit_end(self, *_: Any) -> None:
        """Put back what was before."""
        if self._before is not None:
            torch.set_flush_denormal(self._before)
        self._before = None

    def on_exception(self, *_: Any) -> None:
        """Put back what was before."""
        self.on_fit_end()
