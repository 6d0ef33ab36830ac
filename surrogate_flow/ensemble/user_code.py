"""What a solver finds on a worker, which runs it in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PicklingError

__all__ = ["user_code"]

_here = threading.local()
_SIGNALS = (
    "Solvers run in a thread of a worker, and Python sets signal handlers only in the "
    "main thread: switch them off there, or run that code in a process of its own, by "
    "multiprocessing."
)
_SCRIPT = (
    "Workers do not run the script, whose functions reach no process of "
    "multiprocessing: put what such a process runs into a module of its own."
)


class _Loop:
    """An event loop that closes with its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __del__(self) -> None:
        self.loop.close()


@contextmanager
def user_code() -> Iterator[None]:
    """Run code of users; nothing that it raises ends the process.

    A thread has an event loop of its own, as a main thread has.

    Raises
    ------
    RuntimeError
        In place of what would end the process, such as KeyboardInterrupt.
    Exception
        Whatever else the code raises.
    """
    if threading.current_thread() is not threading.main_thread():
        kept = getattr(_here, "kept", None)
        if kept is None or kept.loop.is_closed():
            kept = _here.kept = _Loop()
        # Again, since asyncio.run leaves none.
        asyncio.set_event_loop(kept.loop)
    try:
        yield
    except Exception as error:
        said, hint = str(error), ""
        if isinstance(error, ValueError | RuntimeError) and "main thread" in said:
            hint = _SIGNALS
        elif isinstance(error, PicklingError | AttributeError) and "__main__" in said:
            hint = _SCRIPT
        if hint:
            error.args = (f"{said.rstrip('.')}. {hint}",)
        raise
    except SystemExit as error:
        raise RuntimeError(f"the solver called sys.exit({error.code!r})") from error
    except BaseException as error:
        raise RuntimeError(f"the solver raised {error!r}") from error
