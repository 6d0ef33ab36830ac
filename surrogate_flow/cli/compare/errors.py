"""What a comparison raises."""

__all__ = ["ContestError"]


class ContestError(RuntimeError):
    """A run of the comparison failed, or belongs to another one."""
