"""Offline against online: the same batches from different places, side by side."""

from surrogate_flow.compare.arm import Arm, arms_of
from surrogate_flow.compare.command import compare
from surrogate_flow.compare.contest import Contest
from surrogate_flow.compare.errors import ContestError
from surrogate_flow.compare.verdict import Verdict

__all__ = ["Arm", "Contest", "ContestError", "Verdict", "arms_of", "compare"]
