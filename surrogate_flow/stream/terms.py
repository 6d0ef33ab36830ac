"""What an inlet accepts from outlets."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.errors import Refusal
from surrogate_flow.stream.protocol import Ask, End, Open, Steps
from surrogate_flow.stream.trajectory import Trajectory

__all__ = ["Terms"]

LOST = "Usual cause: a connection that was cut and restored"


@dataclass
class Terms:
    """The study and the spec that messages are held against.

    Each check raises `Refusal` with the reason.

    Parameters
    ----------
    spec : FieldSpec
    study : str
    """

    spec: FieldSpec
    study: str
    digest: str = field(init=False)
    step_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.digest = self.spec.digest()
        self.step_bytes = self.spec.step_bytes

    def check_opening(
        self, message: Open, payload: memoryview
    ) -> Float64[np.ndarray, " parameter"]:
        """Check that an outlet is of this study and spec; return its parameters."""
        if message.study != self.study:
            raise Refusal(
                "study",
                f"this is study {self.study!r}, got an outlet of "
                f"{message.study[:40]!r}: it is left over from another run",
            )
        if message.spec != self.digest:
            raise Refusal(
                "spec",
                f"expected the spec {self.digest}, got {message.spec[:40]!r}: the "
                "solver on the worker differs from the trainer's. Usual cause: another "
                "version of its code, or other arguments",
            )
        if message.length != 8 * len(self.spec.parameters):
            raise Refusal(
                "parameters",
                f"expected {len(self.spec.parameters)} parameters in float64, got "
                f"{message.length} bytes",
            )
        parameters = np.frombuffer(payload, np.float64).copy()
        if not np.isfinite(parameters).all():
            raise Refusal(
                "parameters", f"expected finite parameters, got {parameters.tolist()}"
            )
        return parameters

    def check_retry(
        self, trajectory: Trajectory, parameters: Float64[np.ndarray, " parameter"]
    ) -> None:
        """Check that an attempt solves the same problem as the one before."""
        if not np.array_equal(trajectory.parameters, parameters):
            raise Refusal(
                "parameters",
                f"simulation {trajectory.number} began with the parameters "
                f"{trajectory.parameters.tolist()}, got {parameters.tolist()}: a retry "
                "must keep them",
            )

    def check_steps(self, trajectory: Trajectory, message: Steps) -> None:
        """Check that steps belong to the connection's simulation and leave no gap."""
        ours = trajectory.number, trajectory.attempt
        theirs = message.simulation, message.attempt
        if theirs != ours:
            raise Refusal(
                "simulation",
                f"this connection serves (simulation, attempt) {ours}, got {theirs}",
            )
        if not 0 < message.count <= self.spec.steps - message.first:
            raise Refusal(
                "steps",
                f"expected steps below {self.spec.steps}, got {message.count} from "
                f"{message.first}",
            )
        if message.length != message.count * self.step_bytes:
            raise Refusal(
                "steps",
                f"expected {self.step_bytes} bytes a step, got {message.length} for "
                f"{message.count} steps",
            )
        if message.first > trajectory.next:
            raise Refusal(
                "gap",
                f"expected step {trajectory.next}, got {message.first}: steps between "
                f"were lost. {LOST}",
            )

    def check_question(self, message: Ask, received: int, largest: int) -> None:
        """Check that nothing was lost, and that the answer can be yes."""
        if message.sent != received:
            raise Refusal(
                "lost",
                f"received {received} of {message.sent} bytes: some were lost. {LOST}",
            )
        if message.need > largest:
            raise Refusal(
                "credit",
                f"expected messages of at most {largest} bytes, got one of "
                f"{message.need}",
            )

    def check_end(self, trajectory: Trajectory, message: End) -> None:
        """Check that every step of the spec was received."""
        if not message.steps == trajectory.next == self.spec.steps:
            raise Refusal(
                "end",
                f"simulation {trajectory.number} ended after {message.steps} steps, "
                f"received {trajectory.next} of {self.spec.steps}",
            )
