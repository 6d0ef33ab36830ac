"""Which steps of a trajectory make one training sample.

A window covers `span` consecutive steps: `inputs` that the network sees, then `outputs`
that it shall predict, and more of those where training unrolls. The reservoir stores
steps and shares them between the windows that overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace

from surrogate_flow.fields.errors import ArgumentError

__all__ = ["Autoregressive", "Direct", "Window"]


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
        """Most predictions that training makes before the one that it learns from."""
        return 0

    @property
    def span(self) -> int:
        """Number of consecutive steps of one sample."""
        return self.inputs + self.outputs * (self.unroll + 1)

    def without_unroll(self) -> Window:
        """Return the window of a single prediction, which validation goes by."""
        return self

    def require(self, steps: int) -> None:
        """Refuse simulations that are too short for a single sample.

        Raises
        ------
        ValueError
            If `steps`, the number of steps of a simulation, is below the span.
        """
        if steps < self.span:
            raise ArgumentError(
                f"{self}: expected simulations of at least {self.span} steps (the span "
                f"of the window), got {steps} steps: there would never be a sample. "
                "Use a shorter window, or let the solver yield more times."
            )

    def samples(self, steps: int) -> int:
        """Return the number of samples in a trajectory of `steps` steps.

        Examples
        --------
        >>> Direct().samples(100)
        100
        """
        return max(0, (steps - self.span) // self.stride + 1)


@dataclass(frozen=True)
class Direct(Window):
    """(parameters, t_k) -> u_k: every step is a sample of its own."""

    @property
    def inputs(self) -> int:
        return 0

    @property
    def outputs(self) -> int:
        return 1

    @property
    def stride(self) -> int:
        return 1


@dataclass(frozen=True)
class Autoregressive(Window):
    """(parameters, t_k, u_{k-inputs}, ..., u_{k-1}) -> (u_k, ..., u_{k+outputs-1}).

    A trajectory is predicted by rolling out: what was predicted is the history of the
    next prediction. Several `outputs` are the temporal bundling of Brandstetter et al.,
    and `unroll` is their push-forward trick: training predicts up to `unroll` times in
    vain, without gradients, so that it learns from a history with the errors of its own
    predictions. Samples are longer then, ``inputs + (unroll + 1) * outputs`` steps.

    Parameters
    ----------
    inputs : int
        Number of steps that the network sees, at least 1; default 1.
    outputs : int
        Number of steps that it predicts at once, at least 1; default 1.
    stride : int
        Distance between the first steps of two samples, at least 1; default 1.
    unroll : int
        Most predictions before the one that is learnt from; default 0. How many it is
        for a batch is drawn uniformly from 0 ... `unroll`.

    Raises
    ------
    ValueError
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
        remedies = {
            "inputs": "With no step to see, use Direct.",
            "outputs": "Use 1 to predict the next step alone.",
            "stride": "Use 1 for a sample at every step.",
            "unroll": "Use 0 to train on steps of the solver alone.",
        }
        for name, value in asdict(self).items():
            least = 0 if name == "unroll" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ArgumentError(
                    f"Autoregressive: {name}",
                    f"a whole number >= {least}",
                    value,
                    remedies[name],
                )

    def without_unroll(self) -> Autoregressive:
        """Return the same with samples of a single prediction."""
        return replace(self, unroll=0)
