"""What is checked of a sweep before its simulations run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.plan import require_reservoir, require_trained
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import SweepRecipe
from surrogate_flow.data.online import OnlineData
from surrogate_flow.fields import Window
from surrogate_flow.fields.errors import user_error
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.reservoir import Reservoir

__all__ = ["require_possible", "warn_of_repetition"]

logger = logging.getLogger(__name__)


def require_possible(folder: SweepFolder) -> None:
    """Build data and network for each value of the space, before anything runs.

    Raises
    ------
    RecipeError
        With the first point that is refused, and why.
    """
    recipe = folder.recipe
    for point in recipe.corners():
        try:
            data, surrogate = build(["fit", *recipe.words(point)])
            require_trained(surrogate)
            if isinstance(data, OnlineData):
                if recipe.share_simulations:
                    data.require_shareable()
                require_reservoir(data, surrogate.window)
        except (Exception, SystemExit) as error:
            advice = user_error(error)
            if advice is None:
                raise
            shown = ", ".join(f"{k}: {v}" for k, v in point.items())
            raise RecipeError(f"A trial of {shown} is refused: {advice}") from error
        if recipe.share_simulations and not isinstance(data, OnlineData):
            raise RecipeError(
                f"data: expected a workflow, whose simulations trials share, got "
                f"{type(data).__name__}. Set share_simulations: false."
            )


def warn_of_repetition(
    recipe: SweepRecipe, data: OnlineData, window: Window, words: Sequence[str]
) -> None:
    """Warn where a trial that comes later trains fewer batches than the first."""
    repeats = isinstance(data.reservoir, Reservoir)
    if not repeats or "data.reservoir" in recipe.space or recipe.count == 1:
        return
    samples = (data.simulations or 0) * window.samples(data.spec.steps)
    least = samples // data.batch_size
    limit = dict(zip(words[::2], words[1::2], strict=True)).get("--trainer.max_steps")
    if limit is None or int(limit) > least:
        logger.warning(
            "Trials may train different numbers of batches: Reservoir repeats samples "
            "while simulations run, and a later trial finds these on disk. For equal "
            "ones set data.reservoir: FIRO, which trains each sample once, or a "
            "trainer.max_steps of at most %s.",
            f"{least:,}",
        )
