"""Offline against online: the same batches from different places, side by side."""

from surrogate_flow.cli.compare.arm import Arm, arms_of
from surrogate_flow.cli.compare.command import compare
from surrogate_flow.cli.compare.contest import Contest
from surrogate_flow.cli.compare.errors import ContestError
from surrogate_flow.cli.compare.verdict import Verdict

__all__ = ["Arm", "Contest", "ContestError", "Verdict", "arms_of", "compare"]
