"""The optimizer of a surrogate, its learning rate, and how it takes small numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as L
from pytorch_lightning.callbacks import Timer
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
    "WarmupCosine",
    "advance",
    "built_optimizer",
    "built_schedule",
    "configured",
    "monitor_of",
    "reads_loss",
    "require_metric",
    "steps_left",
]

_RATE = "model.optimizer.lr"
_MONITOR = "val_loss"  # of a plateau that names none
_WARM = 0.05  # of a run, at most


class WarmupCosine(LRScheduler):
    """lr(p) = lr (f + (1 - f) (1 + cos πp) / 2), behind a linear warm-up.

    p is how far the run is, from 0 to 1, and f is `final`. It needs no number of steps:
    after each one it is told how many are left, and p moves on by its share of these.
    So it ends where the run ends, at the last of `max_steps`, the last epoch, the end
    of `max_time`, or the last batch of the simulations, whichever comes first, whatever
    was expected before, and however fast the simulations are. If nothing is known of an
    end, the rate stays constant behind the warm-up.

    Parameters
    ----------
    optimizer : Optimizer
    warmup : int
        Number of steps of the warm-up, but no more than a twentieth of the run.
    final : float
        Fraction of the learning rate at the end.

    References
    ----------
    Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR
    2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts

    Examples
    --------
    >>> import torch
    >>> weights = [torch.zeros(1, requires_grad=True)]
    >>> optimizer = torch.optim.SGD(weights, lr=1.0)
    >>> schedule = WarmupCosine(optimizer, warmup=2, final=0.0)
    >>> for left in (7, 6, 5, 4, 3, 2, 1):
    ...     optimizer.step()
    ...     schedule.follow(left)
    ...     schedule.step()
    >>> round(schedule.progress, 6), [round(rate, 3) for rate in schedule.get_last_lr()]
    (0.875, [0.038])
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int = 100, final: float = 0.01
    ) -> None:
        if warmup < 0 or not 0 <= final <= 1:
            raise ValueError(
                "WarmupCosine: expected warmup of 0 or more and final between 0 and 1, "
                f"got {warmup} and {final}"
            )
        self.warmup, self.final, self.progress = warmup, final, 0.0
        super().__init__(optimizer)

    def follow(self, left: float) -> None:
        """Note how many steps are still to come.

        Of a run that goes on behind its end, the rate is that of one as long as both.
        """
        if self.progress >= 1 and left > 0:
            self.progress = self.last_epoch / (self.last_epoch + 1 + left)
        self.progress += (1.0 - self.progress) / (left + 1.0)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of the next step, of each group of parameters."""
        fall = (1.0 + math.cos(math.pi * self.progress)) / 2.0
        rise = (self.last_epoch + 1) / (self.warmup + 1)
        factor = min(1.0, max(rise, self.progress / _WARM))
        factor *= self.final + (1.0 - self.final) * fall
        return [rate * factor for rate in self.base_lrs]


def steps_left(trainer: L.Trainer, of_data: float) -> float:
    """Return how many steps of the optimizer are still to come; infinite if unknown.

    `of_data` is how many batches the data say that there are.
    """
    each, step = trainer.accumulate_grad_batches, trainer.global_step
    left, epochs = [of_data / each], trainer.max_epochs or -1
    if trainer.max_steps > 0:
        left.append(trainer.max_steps - step)
    if epochs > 0:
        left.append(float(np.ceil(trainer.num_training_batches / each)) * epochs - step)
    timers = [c for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
    for timer in timers:
        elapsed, rest = timer.time_elapsed(), timer.time_remaining()
        if rest is not None and elapsed > 0:
            left.append(step * rest / elapsed)
    least = max(min(left), 0.0)
    # Clocks differ.
    return trainer.strategy.broadcast(least) if timers else least


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


def configured(
    build: Callable[[Any], Optimizer],
    scheduler: Callable[[Any], LRScheduler] | None,
    parameters: Any,
    metrics: Collection[str],
) -> Any:
    """Return what Lightning takes: the optimizer, and the schedule if there is one."""
    optimizer = built_optimizer(build, parameters)
    if scheduler is None:
        return optimizer
    schedule = built_schedule(scheduler, optimizer, metrics)
    of_lightning = {
        "scheduler": schedule,
        "interval": "step",
        "monitor": monitor_of(schedule),
        # `advance` knows when; Lightning would after every batch.
        "reduce_on_plateau": False,
    }
    return {"optimizer": optimizer, "lr_scheduler": of_lightning}


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


def reads_loss(trainer: L.Trainer) -> bool:
    """Return whether a schedule or a callback may want the loss of each step."""
    plateau = any(monitor_of(c.scheduler) for c in trainer.lr_scheduler_configs)
    return plateau or any(
        "train_loss" in f"{getattr(callback, name, None)}"
        for callback in getattr(trainer, "callbacks", ())
        for name in ("monitor", "filename")
    )


def advance(
    schedule: LRScheduler,
    metrics: Mapping[str, Tensor],
    *,
    validated: bool,
    left: float = math.inf,
) -> str:
    """Advance a schedule after a batch or a validation, if it is its turn.

    Those that count are advanced after batches, and hold their last rate when they have
    run out; `WarmupCosine` is told how many steps are `left`. A plateau looks at its
    monitor when that has a new value: after batches if its name begins with ``train``,
    otherwise after validations.

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
        for part in _active(schedule):
            if isinstance(part, WarmupCosine):
                part.follow(left)
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
