"""The page of one run, from its folder alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import yaml

from surrogate_flow.fields.conventions import without_secrets
from surrogate_flow.fields.errors import in_a_line, kind_of
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.folder.commands import (
    bounds_of,
    logarithmic,
    predict_command,
    repeat_command,
    spec_of,
)
from surrogate_flow.report.folder.cost import (
    PAID_BACK,
    RunCost,
    at_equal_error,
    solver_of,
)
from surrogate_flow.report.folder.headline import (
    headline,
    name_of,
    of_error,
    rollout_of,
)
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.tables import (
    counts_of,
    point_of,
    while_training,
)
from surrogate_flow.report.folder.words import number, percent, seconds
from surrogate_flow.report.html import film, plots
from surrogate_flow.report.html.page import Section, filled, render

__all__ = ["run_page"]

_REASONS = 20  # of failures
_PARAMETERS = 12  # plots, and columns of a table
_SINGLE = "Errors are those of single predictions here, not of rollouts."
_SHOWN = {
    **{"learning": "metrics", "cases": "cases", "parameters": "validation"},
    **dict.fromkeys(("seen", "waiting", "reservoir"), "telemetry"),
    **{"failures": "failures", "cost": "outcome"},
}  # the file that a section shows


def run_page(run: RunFolder) -> str:
    """Return the page of a run; what cannot be shown is said, and the rest is shown."""
    makers: tuple[tuple[str, str, Callable[[RunFolder, Section], None]], ...] = (
        ("warnings", "Warnings", _warnings),
        ("commands", "Repeat and predict", _commands),
        ("learning", "Learning curves", _learning),
        ("rollout", "Error at each time", _rollout),
        ("cases", "Best, median and worst case", _cases),
        ("parameters", "Error over each parameter", _parameters),
        ("seen", "Times seen", _seen),
        ("waiting", "Waiting times", _waiting),
        ("reservoir", "Reservoir", _reservoir),
        ("failures", "Failures", _failures),
        ("cost", "Cost", _cost),
        ("settings", "Settings and versions", _settings),
    )
    sections = [filled(name, title, partial(fill, run)) for name, title, fill in makers]
    unread = [said for said in run.missing if " cannot be read: " in said]
    for section in sections:
        mine = [s for s in unread if s.startswith(_SHOWN.get(section.name, " "))]
        section.absent = " ".join(mine) or section.absent
    started = run.about.get("started")
    footer = f"{run.path}{f', started {started}' if started else ''}."
    return render(f"{name_of(run)}, {run.path.name}", headline(run), sections, footer)


def _units(run: RunFolder) -> dict[str, str]:
    """Return the units of each parameter, by run.json, cases.nc or the table alone."""
    known = {p["name"]: p.get("units", "") for p in spec_of(run).get("parameters", ())}
    columns = [str(c) for c in run.validation]
    taken = ("simulation", "relative_l2", "rank", "validated")
    names = [c for c in columns if c not in taken and not c.startswith("rmse_")]
    cases = run.cases
    for name in names:
        if cases is not None and name in cases.variables:
            known.setdefault(name, cases[name].attrs.get("units", ""))
        known.setdefault(name, "")
    return known


def _warnings(run: RunFolder, section: Section) -> None:
    for problem in run.problems:
        section.add("warning", problem)
    section.absent = "Nothing is wrong, and nothing is missing."
    if run.resumed_from:
        section.add(
            "note",
            f"This run went on from {run.resumed_from}: simulations, curves, waits and "
            "cost are those of this part, and batches count from the beginning.",
        )
    if run.missing:
        section.add("note", " ".join(run.missing))


def _commands(run: RunFolder, section: Section) -> None:
    if again := repeat_command(run):
        said = "The same again, with the same settings and the same seed:"
        section.add("code", again, said)
    if predict := predict_command(run):
        section.add("code", predict, "A field for parameters of yours:")
    else:
        section.add("text", "There is no checkpoint to predict with.")
    section.add(
        "note",
        f"To be typed in {Path.cwd()}, where this page was made; of a folder that was "
        "moved since, surrogate-flow report FOLDER makes it again.",
    )


def _learning(run: RunFolder, section: Section) -> None:
    section.absent = "No loss has been logged."
    for plot, caption in plots.learning({"": run.metrics}):
        section.plot(plot, caption)


def _rollout(run: RunFolder, section: Section) -> None:
    section.absent = (
        "There is no rollout.csv that can be read: a fit and a test write it at their "
        "end."
    )
    table = rollout_of(run)
    plot = plots.rollout({"": table}, str(spec_of(run).get("time_units", "")))
    # A surrogate that goes on from first steps has no errors of these.
    rolled = len(table) and table.get("step", table.index)[0] > 0
    how = "rolled out from first steps" if rolled else "each predicted by itself"
    section.plot(
        plot,
        f"The error at each time, {how}, relative to the size over all times, mean "
        "over the held-out simulations; rollout.csv has it in the units of the "
        "variables, too.",
    )


def _cases(run: RunFolder, section: Section) -> None:
    section.absent = "There is no cases.nc: a fit writes it at its end."
    if run.cases is None:
        return
    if of_error(run):
        section.add("text", _SINGLE)
    mesh = spec_of(run).get("cells") is not None
    shown = film.film_of(run.cases, mesh=mesh)
    for picture, caption in film.stills(run.cases, mesh=mesh):
        section.add("picture", picture, caption)
    if shown is None:
        section.add("text", "The pictures show all times, so none is animated.")
    else:
        all_times = spec_of(run).get("times", {}).get("count", 0)
        frames = len(shown.frames)
        few = f" It shows {frames} of {all_times} times." * (frames < all_times)
        section.add("film", caption=f"{shown.caption}{few}", film=shown)


def _parameters(run: RunFolder, section: Section) -> None:
    section.absent = (
        "There is no validation.csv: a fit and a test write it at their end."
    )
    if "relative_l2" not in run.validation:
        return
    units = _units(run)
    shown = dict([*units.items()][:_PARAMETERS])
    drawn = [
        *plots.over_parameters(
            *(run.validation, shown, bounds_of(run), logarithmic(run))
        )
    ]
    if drawn:
        if of_error(run):
            section.add("text", _SINGLE)
        left = len(units) - len(drawn)
        median = len(run.validation) >= plots.ENOUGH
        section.plot(
            drawn,
            f"Each point is one of {len(run.validation)} held-out simulations"
            + "; the line is their running median" * median
            + ". Where errors are high, more simulations help."
            + (
                f" {counted(left, 'parameter')} more are not drawn." if left > 0 else ""
            ),
        )


def _seen(run: RunFolder, section: Section) -> None:
    section.absent = "Times seen are those of a reservoir; this run has noted none."
    table = run.telemetry
    table = table[table.times_seen.map(counts_of).map(bool)] if len(table) else table
    if not len(table):
        return
    counts = counts_of((last := table.iloc[-1]).times_seen)
    total, mean = sum(counts), last.drawn / max(last.inserted, 1)
    section.plot(
        plots.times_seen(counts),
        f"How many of {total:,} samples the network has seen 0, 1, 2, ... times; "
        f"on average {number(mean, digits=3)}.",
    )


def _waiting(run: RunFolder, section: Section) -> None:
    section.absent = "No waiting times have been recorded."
    table = while_training(run.telemetry)
    if not len(table):
        return
    section.plot(
        plots.rates({"": table}), "Samples trained in a second, repetitions counted."
    )
    plot = plots.waiting(table)
    drawing, putting = (
        table[name].dropna() for name in ("draw_wait_seconds", "put_wait_seconds")
    )
    if plot is None or not len(drawing) or not len(putting):
        return
    whole = float(table.seconds.iloc[-1])
    share = drawing.iloc[-1] / whole if whole else None
    section.plot(
        plot,
        f"In the {seconds(whole)} to its last batch the trainer waited "
        f"{seconds(drawing.iloc[-1])} for samples ({percent(share)}), and "
        f"simulations {seconds(putting.iloc[-1])} for room in the reservoir: the side "
        "that waits is the faster one.",
    )


def _reservoir(run: RunFolder, section: Section) -> None:
    section.absent = "This run has no reservoir, or was too short to draw it."
    plot = plots.population(run.telemetry) if len(run.telemetry) else None
    section.plot(
        plot,
        "Samples in the reservoir, seen and not yet seen; dashed are its capacity and "
        "the number of samples at which training begins.",
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)


def _failures(run: RunFolder, section: Section) -> None:
    section.absent = "No attempt at a simulation has failed."
    if not len(run.failures):
        return
    columns = [*("simulation", "outcome", "worker", "error", "message", "parameters")]
    table = run.failures.reindex(columns=columns).astype(object).fillna("").astype(str)
    reasons = table.error + ": " + table.message
    kinds = table.groupby(reasons.map(kind_of))
    alike = sorted((attempts for _, attempts in kinds), key=len, reverse=True)
    shown = alike[:_REASONS]
    points = [point_of(attempts.parameters.iloc[0]) for attempts in shown]
    names = [*dict.fromkeys(name for point in points for name in point)][:_PARAMETERS]
    units = _units(run)
    rows = []
    for attempts, point in zip(shown, points, strict=True):
        lost = attempts.simulation[attempts.outcome == "failed permanently"].nunique()
        workers = attempts.worker.unique()
        first = attempts.iloc[0]
        rows.append(
            [
                in_a_line(reasons[first.name], 300),
                *map(str, (len(attempts), lost)),
                workers[0] if len(workers) == 1 else f"{len(workers)} workers",
                first.simulation,
                *(_shown(point.get(n, "")) for n in names),
            ]
        )
    head = [f"{n} [{units.get(n) or '1'}]" for n in names]
    head = ["reason", "attempts", "lost", "on", "first simulation", *head]
    section.add(
        "table",
        head=head,
        rows=rows,
        caption=f"{counted(len(table), 'attempt')} at a simulation failed, by their "
        "reasons; lost are simulations that failed permanently, and parameters are "
        "those of the first one. failures.csv has all"
        + (
            f", also {len(alike) - _REASONS} more reasons." if alike[_REASONS:] else "."
        ),
    )


def _cost(run: RunFolder, section: Section) -> None:
    section.absent = "It is in outcome.json, which a fit writes at its end."
    cost = RunCost.of(run)
    if cost is None:
        return
    section.add("text", str(cost))
    batch = f"{counted(cost.batch, 'simulation')} predicted at once"
    history = run.outcome.history if run.outcome else 0.0
    share = f", and {percent(history)} of the solver's" if history else ""
    rows = [
        (
            "solver time, of all simulations",
            _hours(cost.solver, cost.cores, "core"),
            "outcome.json, solver_seconds; config.yaml, cores_per_simulation: "
            f"{cost.cores}",
        ),
        (
            "training time",
            _hours(cost.training, cost.ranks, "trainer"),
            f"outcome.json, training_seconds; run.json, ranks: {cost.ranks}",
        ),
        (
            "solver, one simulation",
            seconds(cost.per_simulation),
            "outcome.json, quickest_seconds: of the one that others disturbed least"
            if cost.shared and not cost.beside
            else f"solver time over {counted(cost.simulations, 'simulation')}",
        ),
        (
            "surrogate, one evaluation",
            seconds(cost.surrogate),
            "outcome.json, surrogate_seconds: a whole simulation predicted at the end"
            f"{share}",
        ),
        (
            "the same in a batch",
            seconds(cost.many),
            f"outcome.json, batch_seconds: one of {batch}{share}",
        ),
        (
            "evaluations to break even",
            _paid(cost),
            "solver time and training time, over what one saves",
        ),
        (
            "the same, one at a time",
            number(cost.one_by_one),
            "with the seconds of one evaluation by itself",
        ),
    ]
    peer = at_equal_error(run.path)
    if peer is not None:
        rows.append(
            (
                f"solver at equal error: {peer['peer']}",
                f"{seconds(peer['peer_seconds'])}, error {percent(peer['peer_error'])}",
                "payback.json, by benchmarks/payback.py",
            )
        )
    section.add(
        "table",
        head=("quantity", "value", "where from"),
        rows=rows,
        caption="What the run took, and what one more evaluation takes.",
    )
    known = cost.per_simulation is not None and cost.evaluation is not None
    if known and not cost.part:
        section.add(
            "equation",
            "N = (solver time + training time) / (solver, one simulation - surrogate, "
            f"one evaluation) = ({number(cost.solver)} s + {number(cost.training)} s) "
            f"/ ({number(cost.per_simulation)} s - {number(cost.evaluation)} s) = "
            f"{_paid(cost)}",
        )
    if cost.beside:
        section.add(
            "text",
            "The solver's seconds are those of simulations that shared a machine with "
            "each other and with the training: alone, one may take a fraction of that, "
            "and the surrogate pays later.",
        )
    if peer is None:
        section.add(
            "text",
            "How long the solver takes at the surrogate's error, on a coarser grid or "
            "with longer steps, is not known; such a solver is the fair peer.",
        )
        if solver_of(run) in PAID_BACK:
            words = ["python", "benchmarks/payback.py", str(run.path)]
            words += ["--json", str(run.path / "payback.json")]
            section.add("code", shlex.join(words), "In a clone, it is measured by:")


def _hours(each: float | None, count: int, of: str) -> str:
    """Return so many hours of cores or trainers, and the seconds that they are.

    Examples
    --------
    >>> _hours(7200.0, 4, "core"), _hours(36.0, 1, "trainer")
    ('8 core-hours (120 min on 4 cores)', '0.01 trainer-hours (36 s)')
    """
    if each is None:
        return number(each)
    on = f" on {count} {of}s" if count > 1 else ""
    return f"{number(each * count / 3600, f'{of}-hours', 3)} ({seconds(each)}{on})"


def _paid(cost: RunCost) -> str:
    return (
        "never: the solver takes no longer" if cost.never else number(cost.break_even)
    )


def _settings(run: RunFolder, section: Section) -> None:
    section.absent = "Neither config.yaml nor run.json can be read."
    if run.about:
        flat = {
            name: ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, Mapping)
            else str(value)
            for name, value in run.about.items()
            if name not in ("spec", "next") and value not in (None, "", {})
        }
        section.add(
            "table",
            head=("name", "value"),
            rows=[*flat.items()],
            caption="How and where it was run, as run.json has it.",
        )
    if run.settings:
        shown = without_secrets(run.settings)
        text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
        section.add("folded", text, "config.yaml: all settings")
