"""The search of a sweep: which values are tried next, kept in Optuna's journal."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from surrogate_flow.cli.sweep.recipe import Range, SweepRecipe

__all__ = ["distributions", "mend", "opened"]

logger = logging.getLogger(__name__)

_STUDY = "sweep"
_GRACE = 10  # seconds until a lock of the journal is taken for that of a killed process


def opened(journal: Path, recipe: SweepRecipe) -> optuna.Study:
    """Return the trials and their values; a journal that is there is only read."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    settings: dict[str, Any] = {
        "study_name": _STUDY,
        "sampler": _sampler(recipe, 0),
        "pruner": pruner if recipe.prune else optuna.pruners.NopPruner(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            settings["storage"] = JournalStorage(_journal(journal))
            # Writes nothing, so that anyone may look.
            study = optuna.load_study(**settings)
        except KeyError:
            return optuna.create_study(**settings, load_if_exists=True)
    study.sampler = _sampler(recipe, len(study.get_trials(deepcopy=False)))
    return study


def distributions(recipe: SweepRecipe) -> dict[str, BaseDistribution]:
    """Return the space, in Optuna's terms."""
    lists = {
        name: CategoricalDistribution(values)
        for name, values in recipe.choices().items()
    }
    return lists | {k: _range(v) for k, v in recipe.ranges().items()}


def mend(journal: Path) -> None:
    """Cut off a last line of the journal that is not whole."""
    lines = journal.read_bytes() if journal.is_file() else b""
    if whole := len(lines) - (lines.rfind(b"\n") + 1):
        logger.warning(
            "The last line of %s was cut off, by a full disk or a power cut, and "
            "is left out: what it noted is done again.",
            journal,
        )
        os.truncate(journal, len(lines) - whole)


def _journal(path: Path) -> JournalFileBackend:
    """Return the journal; a lock that a killed process has left is broken."""
    # A link, which must lead to the file from its own folder to be seen as old.
    file = str(path.absolute())
    return JournalFileBackend(file, JournalFileSymlinkLock(file, _GRACE))


def _sampler(recipe: SweepRecipe, begun: int) -> BaseSampler:
    # Whoever goes on with a sweep would draw the values of its first trials again.
    seed = recipe.seed + begun
    if recipe.searched != "tpe":
        return RandomSampler(seed=seed)
    # Trials that run count as bad, so that those at once differ.
    return TPESampler(seed=seed, constant_liar=True)


def _range(given: Range) -> BaseDistribution:
    if isinstance(given.low, int) and isinstance(given.high, int):
        step = int(given.step or 1)
        return IntDistribution(given.low, given.high, log=given.log, step=step)
    return FloatDistribution(
        float(given.low), float(given.high), log=given.log, step=given.step
    )
