"""What an inlet accepts from outlets."""

from __future__ import annotations

from dataclasses import dataclass, field

from surrogate_flow.fields import FieldSpec
from surrogate_flow.stream.messages import Ask, End, Open, Steps
from surrogate_flow.stream.trajectory import Trajectory

__all__ = ["Refusal", "Terms"]

LOST = "Usual cause: a connection that was cut and restored"


class Refusal(ValueError):
    """A well-formed message that does not fit."""


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

    def check_opening(self, message: Open) -> None:
        """Check that an outlet belongs to this study and announces the same fields."""
        if message.study != self.study:
            raise Refusal(
                f"this is study {self.study!r}, got an outlet of {message.study!r}: it "
                "is left over from another run"
            )
        if message.spec != self.digest:
            raise Refusal(
                f"expected the spec {self.digest}, got {message.spec}: the solver on "
                "the worker differs from the trainer's. Usual cause: another version "
                "of its code, or other arguments"
            )
        if message.length != 8 * len(self.spec.parameters):
            raise Refusal(
                f"expected {len(self.spec.parameters)} parameters in float64, got "
                f"{message.length} bytes"
            )

    def check_steps(self, trajectory: Trajectory, message: Steps) -> None:
        """Check that steps belong to the connection's simulation and leave no gap."""
        ours = trajectory.number, trajectory.attempt
        theirs = message.simulation, message.attempt
        if theirs != ours:
            raise Refusal(
                f"this connection serves (simulation, attempt) {ours}, got {theirs}"
            )
        if not 0 < message.count <= self.spec.steps - message.first:
            raise Refusal(
                f"expected steps below {self.spec.steps}, got {message.count} from "
                f"{message.first}"
            )
        if message.length != message.count * self.step_bytes:
            raise Refusal(
                f"expected {self.step_bytes} bytes a step, got {message.length} for "
                f"{message.count} steps"
            )
        if message.first > trajectory.next:
            raise Refusal(
                f"expected step {trajectory.next}, got {message.first}: steps between "
                f"were lost. {LOST}"
            )

    def check_question(self, message: Ask, received: int, largest: int) -> None:
        """Check that nothing was lost, and that the answer can be yes."""
        if message.sent != received:
            raise Refusal(
                f"received {received} of {message.sent} bytes: some were lost. {LOST}"
            )
        if message.need > largest:
            raise Refusal(
                f"expected messages of at most {largest} bytes, got one of "
                f"{message.need}"
            )

    def check_end(self, trajectory: Trajectory, message: End) -> None:
        """Check that every step of the spec was received."""
        if not message.steps == trajectory.next == self.spec.steps:
            raise Refusal(
                f"simulation {trajectory.number} ended after {message.steps} steps, "
                f"received {trajectory.next} of {self.spec.steps}"
            )
