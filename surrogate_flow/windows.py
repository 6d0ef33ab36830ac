"""Which steps of a trajectory make one training sample.

A window covers `span` consecutive steps: `inputs` that the network sees, then `outputs`
that it shall predict. The reservoir stores steps and shares them between the windows
that overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["Direct", "Window"]


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
    def span(self) -> int:
        """Number of consecutive steps of one sample."""
        return self.inputs + self.outputs

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
