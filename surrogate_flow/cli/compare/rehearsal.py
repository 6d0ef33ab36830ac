"""Everything that a run of a comparison is made of, built before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_fabric.utilities.exceptions import MisconfigurationException

from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.router import Router
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.names import RecipeError

__all__ = ["rehearse"]

_REFUSED = (ValueError, RuntimeError, TypeError, OSError, MisconfigurationException)


def rehearse(
    name: str, study: Path, words: Sequence[str], *, reservoir: bool = False
) -> None:
    """Refuse what a run would refuse; nothing runs, and nothing is left.

    Parameters
    ----------
    name : str
        Of the arm.
    study : Path
        Recipe of what it simulates.
    words : sequence of str
        Arguments of ``fit``, but for ``--data``.
    reservoir : bool
        Whether it has one, which is built then, too.

    Raises
    ------
    RecipeError
        Naming the arm, and what is wrong.
    SystemExit
        If a word cannot be parsed; what is wrong has been printed then.
    """
    # Here, as the command line imports this package, too.
    from surrogate_flow.cli.lightning import built

    try:
        seedless = "--seed_everything=false"
        data, model = built(["fit", f"--data={study}", *words, seedless])
        if reservoir and isinstance(data, OnlineData):
            spec, window, ranks = data.spec, model.window, Ranks()
            held_out = ValidationSet.of_rank(
                ranks, spec, window, data.batch_size, data.count
            )
            store = data.make_store(spec, window, data.batch_size)
            sinks = Router(held_out, data.count, ranks, store)
            sinks.check_threshold(data.simulations)
    except _REFUSED as error:
        raise RecipeError(f"{name}, before anything has run: {error}") from error
