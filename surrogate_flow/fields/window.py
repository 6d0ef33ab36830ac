"""Windows: the steps of a simulation that make one training sample.

A window covers `span` consecutive steps: `inputs` that the network sees, then `outputs`
that it predicts, several times where training unrolls. The reservoir stores steps and
shares them between overlapping windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from surrogate_flow.fields.errors import ArgumentError

__all__ = [
    "CAPACITY",
    "ROLLOUT",
    "SINGLE",
    "THRESHOLD",
    "Autoregressive",
    "Direct",
    "Window",
    "monitored",
]

#: Samples that a reservoir holds by default, and has before the first batch. Commands
#: name them that import no torch, as the reservoirs do.
CAPACITY, THRESHOLD = 6000, 1000

#: Errors of validations, of rollouts and of single predictions; a surrogate is judged
#: by the first where there is a history to roll out from.
ROLLOUT, SINGLE = "val_rollout_relative_l2", "val_relative_l2"


def monitored(errors: Collection[str]) -> str:
    """Return the name of that among `errors` which chose best.ckpt.

    Examples
    --------
    >>> monitored(["val_relative_l2"])
    'val_relative_l2'
    """
    return ROLLOUT if ROLLOUT in errors else SINGLE


class Window(ABC):
    """(u_k, ..., u_{k+inputs-1}) -> (u_{k+inputs}, ..., u_{k+span-1})."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Number of steps that the network sees."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of steps that the network predicts."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Distance between the first steps of two neighbouring windows."""

    @property
    def unroll(self) -> int:
        """Largest number of predictions before the one that is trained on."""
        return 0

    @property
    def monitor(self) -> str:
        """The error of a validation by which the best weights are chosen."""
        return ROLLOUT if self.inputs else SINGLE

    @property
    def span(self) -> int:
        """Number of consecutive steps of one sample."""
        return self.inputs + self.outputs * (self.unroll + 1)

    def without_unroll(self) -> Window:
        """Return the window of a single prediction, which validation uses."""
        return self

    def require(self, steps: int) -> None:
        """Refuse simulations whose number of steps is below the span."""
        if steps < self.span:
            raise ArgumentError(
                f"{self}: expected simulations of at least {self.span} steps (the span "
                f"of the window), got {steps} steps. Use a shorter window, or let the "
                "solver yield more times."
            )

    def samples(self, steps: int) -> int:
        """Return the number of samples in a simulation of `steps` steps.

        Examples
        --------
        >>> Direct().samples(100)
        100
        """
        return max(0, (steps - self.span) // self.stride + 1)


@dataclass(frozen=True)
class Direct(Window):
    """(parameters, t_k) -> u_k: every step is a sample of its own."""

    inputs = 0
    outputs = 1
    stride = 1


@dataclass(frozen=True)
class Autoregressive(Window):
    """(parameters, t_k, u_{k-inputs}, ..., u_{k-1}) -> (u_k, ..., u_{k+outputs-1}).

    A simulation is predicted by rolling out: each prediction is the history of the next
    one. Several `outputs` are the temporal bundling of Brandstetter et al., and
    `unroll` is their push-forward trick: training first predicts up to `unroll` times
    without gradients, so that the history has the errors of its own predictions.
    Samples then have ``inputs + (unroll + 1) * outputs`` steps.

    Parameters
    ----------
    inputs : int
        Number of steps that the network sees, at least 1; default 1.
    outputs : int
        Number of steps that it predicts at once, at least 1; default 1.
    stride : int
        Distance between the first steps of two samples, at least 1; default 1.
    unroll : int
        Largest number of predictions before the one that is trained on; default 0. It
        is drawn for each batch, uniformly from 0 ... `unroll`.

    Raises
    ------
    ArgumentError
        If a number is too low.

    References
    ----------
    Message Passing Neural PDE Solvers, Johannes Brandstetter, Daniel Worrall, Max
    Welling, ICLR 2022, section 3.1, https://arxiv.org/abs/2202.03376.

    Examples
    --------
    >>> Autoregressive(inputs=2, outputs=3).samples(20)
    16
    >>> Autoregressive(inputs=2, outputs=3, unroll=1).span
    8
    """

    inputs: int = 1
    outputs: int = 1
    stride: int = 1
    unroll: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "unroll" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                remedy = "Without history, use Direct." if name == "inputs" else ""
                raise ArgumentError(
                    f"Autoregressive: {name}",
                    f"a whole number >= {least}",
                    value,
                    remedy,
                )

    def without_unroll(self) -> Autoregressive:
        """Return the same with samples of a single prediction."""
        return replace(self, unroll=0)
