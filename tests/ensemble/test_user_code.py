"""What a solver raises or expects of its process does not end a worker's."""

import asyncio
import multiprocessing
import pickle
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from surrogate_flow.ensemble.user_code import user_code


def interrupts():
    raise KeyboardInterrupt("from a library")


def exits():
    sys.exit("no licence")


def cancels():
    raise asyncio.CancelledError


def sets_a_handler():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def sends_a_function_of_the_script():
    """As a worker does, where the script's functions are but not the script."""
    piece = type(exits)(exits.__code__, {"__name__": "__main__"}, "piece")
    piece.__qualname__ = "piece"
    multiprocessing.get_context("spawn").Process(target=piece).start()


def uses_the_loop():
    loop = asyncio.get_event_loop()
    # It leaves none behind.
    assert asyncio.run(asyncio.sleep(0, "run")) == "run"
    return loop.run_until_complete(asyncio.sleep(0, loop))


def within(call):
    with user_code():
        return call()


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (interrupts, RuntimeError, r"raised KeyboardInterrupt\('from a library'\)"),
        (exits, RuntimeError, r"called sys.exit\('no licence'\)"),
        (cancels, RuntimeError, "raised CancelledError"),
        (sets_a_handler, ValueError, r"main thread of .* process of its own"),
        (
            sends_a_function_of_the_script,
            (pickle.PicklingError, AttributeError),
            "piece.*into a module of its own",
        ),
    ],
)
def test_what_would_end_a_process_is_an_error(thread, call, error, words):
    """As any other, with a hint where a thread is not enough."""
    with pytest.raises(error, match=words):
        thread.submit(within, call).result()


def test_a_thread_has_an_event_loop(thread):
    """The same for one simulation after another, until one closes it."""

    def runs():
        return thread.submit(within, uses_the_loop).result()

    first, second = runs(), runs()
    assert first is second
    thread.submit(within, first.close).result()
    last = runs()
    assert last is not first
    assert not last.is_closed()
    thread.shutdown()
    # What held it is gone with its thread.
    assert last.is_closed()
