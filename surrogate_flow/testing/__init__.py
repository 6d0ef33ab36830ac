"""Laws for what users write: a solver, a network, a sampler, a policy of a reservoir.

Each function tries one object, as a study would use it, and returns the laws that it
keeps. A law that is broken raises `LawBroken`, which is an `AssertionError`, so that
the functions also serve as tests::

    def test_my_solver():
        check_solver(MySolver(cells=16))

``surrogate-flow check my_module.MySolver`` runs them from the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surrogate_flow.testing.law import LawBroken

if TYPE_CHECKING:
    from surrogate_flow.testing.network import check_network
    from surrogate_flow.testing.sampler import check_sampler
    from surrogate_flow.testing.solver import check_solver
    from surrogate_flow.testing.store import check_store

__all__ = [
    "LawBroken",
    "check_network",
    "check_sampler",
    "check_solver",
    "check_store",
]


def __getattr__(name: str) -> Any:
    # A solver or a sampler is tried without the seconds that torch takes to import.
    if name in __all__:
        from importlib import import_module

        module = f"surrogate_flow.testing.{name.removeprefix('check_')}"
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
