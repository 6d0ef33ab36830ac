"""A solver as workers get it: pickled, once."""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

from distributed.protocol.pickle import dumps

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.solvers.solver import Solver, unwrapped

__all__ = ["Packed"]

_DEPTH = 5  # attributes of attributes that an error names


class Packed:
    """A solver, its name, and the bytes that become its copies on workers.

    Raises
    ------
    ArgumentError
        If it cannot be pickled, with the attribute that cannot.
    """

    def __init__(self, solver: Solver) -> None:
        self.spec, self.name = solver.spec, type(unwrapped(solver)).__name__
        # It would log the traceback that the error below is about.
        noisy = logging.getLogger("distributed.protocol.pickle")
        level = noisy.level
        noisy.setLevel(logging.CRITICAL + 1)
        try:
            self.pickle: bytes = dumps(solver)
        except Exception as error:
            where, value = _culprit(self.name, solver)
            raise ArgumentError(
                where,
                "a value that can be sent to workers",
                f"a {type(value).__name__} ({str(error).partition(chr(10))[0]})",
                "Make it in setup(), which runs on each worker, or leave it out of "
                "what __getstate__ returns.",
            ) from error
        finally:
            noisy.setLevel(level)

    @classmethod
    def of(cls, solver: Solver | Packed) -> Packed:
        """Return a solver that has been packed, or pack it."""
        return solver if isinstance(solver, Packed) else cls(solver)


def _culprit(name: str, value: Any) -> tuple[str, Any]:
    """Return the innermost attribute or entry that cannot be pickled."""
    for _ in range(_DEPTH):
        for inner, part in _parts(name, value):
            try:
                dumps(part)
            except Exception:
                name, value = inner, part
                break
        else:
            break
    return name, value


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the pickle of a value is made of."""
    if isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", entry) for key, entry in value.items())
    elif isinstance(value, list | tuple | set):
        yield from ((f"{name}[{i}]", entry) for i, entry in enumerate(value))
    elif isinstance(value, partial):
        for part in ("func", "args", "keywords"):
            yield f"{name}.{part}", getattr(value, part)
    elif inspect.isfunction(value):
        seen = inspect.getclosurevars(value)
        for variable, entry in {**seen.globals, **seen.nonlocals}.items():
            yield f"{name}'s {variable}", entry
    elif hasattr(value, "__wrapped__"):
        yield f"{name}.__wrapped__", value.__wrapped__
    else:
        try:
            state = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[2]
        except Exception:
            return
        for each in state if isinstance(state, tuple) else (state,):
            if isinstance(each, dict):
                yield from ((f"{name}.{key}", entry) for key, entry in each.items())
