"""Steps on their way into the slab."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.fields.spec import FieldSpec

__all__ = ["Block", "Trajectory", "check_steps"]


@dataclass(slots=True)
class Trajectory:
    """A simulation whose steps are coming in."""

    #: Number of steps taken in; the next step has this number.
    expected: int = 0
    #: Number of complete windows.
    windows: int = 0
    #: Slots of the kept steps that windows to come will cover, at most ``span - 1``.
    tail: Int[np.ndarray, " slot"] = field(
        default_factory=lambda: np.zeros(0, dtype=np.intp)
    )
    #: A block is being copied in; the next one has to wait for it.
    busy: bool = False
    #: No more steps of it will come.
    forgotten: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """Steps that have got their slots, and are copied in without the lock."""

    simulation: int
    trajectory: Trajectory
    first: int
    steps: int
    #: Which of the steps are kept: a slice if all are, else their offsets.
    kept: slice | Int[np.ndarray, " kept"]
    slots: Int[np.ndarray, " kept"]
    #: Number of windows that the block completes.
    windows: int


def check_steps(
    spec: FieldSpec,
    simulation: int,
    steps: Float[np.ndarray, "time channel *space"],
    parameters: Float[np.ndarray, " parameter"],
) -> None:
    """Refuse steps and parameters that have not the shapes of the spec.

    Raises
    ------
    ValueError
        Naming what was expected.
    """
    shape = spec.step_shape
    if steps.shape[1:] != shape or steps.ndim != len(shape) + 1:
        raise ValueError(
            f"Simulation {simulation}: expected steps of shape (time, "
            f"{', '.join(map(str, shape))}), got {steps.shape}. Stack the variables "
            "along the second axis, in the order of the spec."
        )
    if parameters.shape != (len(spec.parameters),):
        raise ValueError(
            f"Simulation {simulation}: expected {len(spec.parameters)} parameters, "
            f"got the shape {parameters.shape}. Make the vector with `spec.vector`."
        )
