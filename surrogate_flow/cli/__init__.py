"""The command line."""

from surrogate_flow.cli.app import main

__all__ = ["main"]
