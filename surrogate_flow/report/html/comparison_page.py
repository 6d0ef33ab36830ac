"""Several runs side by side on one page, from their folders alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from surrogate_flow.fields.conventions import without_secrets
from surrogate_flow.fields.window import monitored
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.headline import (
    error_of,
    model_of,
    name_of,
    of_error,
    rollout_of,
)
from surrogate_flow.report.folder.run_folder import RunFolder, is_run, runs_below
from surrogate_flow.report.folder.tables import while_training
from surrogate_flow.report.folder.words import (
    arguments,
    flattened,
    number,
    percent,
    seconds,
    skill,
)
from surrogate_flow.report.html import plots
from surrogate_flow.report.html.page import Section, filled, render

__all__ = ["comparison_page", "runs_in"]

_NOT_COMPARED = ("trainer.default_root_dir",)


def runs_in(path: Path) -> list[Path]:
    """Return a run's folder, or those of the runs below a folder.

    Of a sweep or a comparison the newest of each trial.
    """
    if is_run(path):
        return [path]
    if (path / "sweep.yaml").is_file():
        found = map(runs_below, sorted((path / "trials").glob("*")))
        return [runs[-1] for runs in found if runs]
    return sorted(runs_below(path))


def comparison_page(
    runs: Sequence[RunFolder], names: Mapping[Path, str] | None = None
) -> str:
    """Return the page: errors, cost, settings that differ, and curves over each other.

    What a run does not have is said, and the rest is shown.

    Parameters
    ----------
    runs : sequence of RunFolder
    names : mapping of Path to str, optional
        Of trials, by their folders; otherwise their numbers.
    """
    labels = _labels([run.path for run in runs], names or {})
    named = dict(zip(labels, runs, strict=True))
    known = {
        label: error
        for label, run in named.items()
        if (error := error_of(run)) is not None and math.isfinite(error)
    }
    best = min(known, key=lambda label: known[label], default=None)
    headline = f"{len(runs)} runs side by side"
    if best is not None and not _unlike(runs):
        headline += (
            f"; {best} has the smallest error, {percent(known[best])} (relative L2)"
        )
    makers = (
        ("numbers", "Errors and cost", _numbers),
        ("differences", "Settings that differ", _differences),
        ("curves", "Curves over each other", _curves),
        ("warnings", "Warnings", _warnings),
    )
    sections = [
        filled(name, heading, partial(fill, named)) for name, heading, fill in makers
    ]
    title = " and ".join(dict.fromkeys(name_of(run) for run in runs))
    return render(f"Runs of {title}", f"{headline}.", sections)


def _labels(paths: Sequence[Path], names: Mapping[Path, str]) -> list[str]:
    """Return what tells the folders apart: their paths without what all share.

    Examples
    --------
    >>> _labels([Path("runs/heat/a"), Path("runs/heat/b")], {})
    ['a', 'b']
    >>> trials = [Path("cmp/trials/0000/heat/a"), Path("cmp/trials/0001/heat/b")]
    >>> _labels(trials, {Path("cmp/trials/0001"): "fifo"})
    ['0000', 'fifo']
    """
    parts = [list(path.absolute().parts) for path in paths]
    for words in parts:
        # Below its folder, the run of a trial has names that say nothing more.
        trials = [at for at, word in enumerate(words) if word == "trials"]
        del words[trials[-1] + 2 if trials else len(words) :]
    same = [len({*level}) == 1 for level in zip(*parts, strict=False)]
    shared = [*same, False].index(False)
    labels = ["/".join(words[shared:]) or words[-1] for words in parts]
    labels = [
        names.get(p.parent.parent, of) for p, of in zip(paths, labels, strict=True)
    ]
    if len({*labels}) < len(labels):
        return [f"{label} ({at})" for at, label in enumerate(labels, 1)]
    return labels


def _numbers(named: Mapping[str, RunFolder], section: Section) -> None:
    columns = [_quantities(run) for run in named.values()]
    section.add(
        "table",
        head=("quantity", *named),
        rows=[(title, *(of[title] for of in columns)) for title in columns[0]],
        caption="Errors of the last weights, over held-out simulations, and what each "
        "run took; more evaluations where solvers shared a machine with the training.",
    )
    if reason := _unlike([*named.values()]):
        section.add("warning", reason)


def _unlike(runs: Sequence[RunFolder]) -> str:
    """Return why the errors of runs do not compare, as far as this is known."""
    specs = [run.about.get("spec") for run in runs]
    solvers = [arguments(run.settings.get("data")).get("solver") for run in runs]
    for problem in (specs, solvers):
        if (
            len({json.dumps(of, sort_keys=True, default=str) for of in problem if of})
            > 1
        ):
            return (
                "These are different problems, by their solvers or fields: the errors "
                "do not compare."
            )
    counts = {run.outcome.validated for run in runs if run.outcome}
    if len(counts - {None}) > 1:
        return (
            "The errors are means over different numbers of held-out simulations: they "
            "do not compare."
        )
    return ""


def _quantities(run: RunFolder) -> dict[str, str]:
    """Return errors and cost in words, by their titles."""
    cost = RunCost.of(run)
    errors = run.outcome.errors if run.outcome else {}
    never, paid = cost is not None and cost.never, getattr(cost, "break_even", None)
    done = _last(run, "simulations_done")
    part = " (last part)" if cost is not None and cost.part else ""
    more = " or more" if paid and cost is not None and cost.beside else ""
    return {
        "surrogate": model_of(run),
        "state": run.state,
        "relative L2 error": percent(error_of(run)),
        "of rollouts": "yes" if of_error(run) else "no",
        "standard error": percent(errors.get(f"{monitored(errors)}_standard_error")),
        "skill": skill(errors.get("val_skill")),
        "held-out simulations": number(getattr(run.outcome, "validated", None)),
        "batches": number(getattr(run.outcome, "batches", _last(run, "step"))),
        "simulations": f"{number(getattr(cost, 'simulations', done))}{part}",
        "solvers": f"{seconds(getattr(cost, 'solver', None))}{part}",
        "training": f"{seconds(getattr(cost, 'training', None))}{part}",
        "one evaluation": seconds(getattr(cost, "evaluation", None)),
        "evaluations to break even": "never" if never else f"{number(paid)}{more}",
    }


def _last(run: RunFolder, column: str) -> float | None:
    """Return the last number of telemetry.csv, which a run without outcome has, too."""
    return next(iter(run.telemetry[column].dropna()[::-1]), None)


def _differences(named: Mapping[str, RunFolder], section: Section) -> None:
    section.absent = "All settings are the same."
    settings = [flattened(without_secrets(run.settings)) for run in named.values()]
    known = [flat for flat in settings if flat]
    names = dict.fromkeys(name for flat in settings for name in flat)
    rows = []
    for name in names:
        values = [
            str(flat.get(name, "-")) if flat else "not known" for flat in settings
        ]
        differ = len({str(flat.get(name, "-")) for flat in known}) > 1
        # What one class leaves unset, and another does not have, is no difference.
        told = {*values} - {"None", "-", ""}
        own = _of_one_class(name, known)
        if differ and told and not own and name not in _NOT_COMPARED:
            rows.append((name, *(value[:200] for value in values)))
    if rows:
        caption = "By their options on the command line; all others are the same."
        section.add("table", head=("setting", *named), rows=rows, caption=caption)
    if not known:
        section.absent = "No run has a config.yaml."


def _of_one_class(name: str, known: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an option is not one of all the classes that runs have in its place."""
    parents = [*accumulate(name.split(".")[:-1], "{}.{}".format)]
    return any(name not in flat for flat in known) and any(
        len({str(flat.get(parent)) for flat in known}) > 1 for parent in parents
    )


def _curves(named: Mapping[str, RunFolder], section: Section) -> None:
    section.absent = "No run has any."
    for plot, caption in plots.learning({n: r.metrics for n, r in named.items()}):
        section.plot(plot, caption)
    tables = {name: rollout_of(run) for name, run in named.items()}
    specs = [run.about["spec"] for run in named.values() if "spec" in run.about]
    section.plot(
        plots.rollout(tables, str(specs[0].get("time_units", "")) if specs else ""),
        "The error at each time, relative to the size over all times.",
    )
    section.plot(
        plots.rates({n: while_training(run.telemetry) for n, run in named.items()}),
        "Samples trained in a second, repetitions counted, since each run began.",
    )


def _warnings(named: Mapping[str, RunFolder], section: Section) -> None:
    section.absent = "Nothing is wrong, and nothing is missing."
    for name, run in named.items():
        for problem in run.problems:
            section.add("warning", f"{name}: {problem}")
        if run.missing:
            section.add("text", f"{name}: {' '.join(run.missing)}")
