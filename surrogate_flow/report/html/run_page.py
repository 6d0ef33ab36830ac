"""The page of one run, from its folder alone."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import yaml

from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.folder.cost import RunCost, at_equal_error
from surrogate_flow.report.folder.headline import headline, name_of, rollout_of
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.tables import while_training
from surrogate_flow.report.folder.words import counted_large, number, percent, seconds
from surrogate_flow.report.html import film, plots
from surrogate_flow.report.html.page import Section, filled, render

__all__ = ["run_page"]

_FAILURES = 50  # rows of the table
_PARAMETERS = 12  # plots
_COMMANDS = ("fit", "validate", "test")


def run_page(run: RunFolder) -> str:
    """Return the page of a run; what cannot be shown is said, and the rest is shown."""
    makers: tuple[tuple[str, str, Callable[[RunFolder, Section], None]], ...] = (
        ("warnings", "Warnings", _warnings),
        ("commands", "Repeat and predict", _commands),
        ("learning", "Learning curves", _learning),
        ("rollout", "Error along the rollout", _rollout),
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
    started = run.about.get("started")
    footer = f"{run.path}{f', started {started}' if started else ''}."
    return render(f"{name_of(run)}, {run.path.name}", headline(run), sections, footer)


def _spec(run: RunFolder) -> Mapping[str, Any]:
    spec = run.about.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def _units(run: RunFolder) -> dict[str, str]:
    """Return the units of each parameter, by run.json, cases.nc or the table alone."""
    known = {p["name"]: p.get("units", "") for p in _spec(run).get("parameters", ())}
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
    if run.missing:
        section.add("note", " ".join(run.missing))


def _commands(run: RunFolder, section: Section) -> None:
    config, typed = run.path / "config.yaml", str(run.about.get("command", ""))
    if config.is_file():
        command = next((word for word in typed.split() if word in _COMMANDS), "fit")
        section.add(
            "code",
            shlex.join(["surrogate-flow", command, "--config", str(config)]),
            "The same again, with the same settings and the same seed:",
        )
    elif typed:
        section.add("code", typed, "The same again, as it was typed:")
    best = [run.path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    found = next((path for path in best if path.is_file()), None)
    predict = run.about.get("next")
    if predict is None and found is not None:
        values = ", ".join(
            f"{p['name']}: {(p['low'] + p['high']) / 2:.4g}"
            for p in _spec(run).get("parameters", ())
        )
        past = run.path / "history.nc"
        words = ["surrogate-flow", "predict", "--ckpt_path", str(found)]
        words += ["--parameters", f"{{{values or 'NAME: VALUE, ...'}}}"]
        words += ["--history", str(past)] if past.is_file() else []
        predict = shlex.join([*words, "--output", "field.nc"])
    if predict is not None:
        section.add("code", str(predict), "A field for parameters of yours:")
    else:
        section.add("text", "There is no checkpoint to predict with.")


def _learning(run: RunFolder, section: Section) -> None:
    section.absent = "No loss has been logged."
    for plot, caption in plots.learning({"": run.metrics}):
        section.plot(plot, caption)


def _rollout(run: RunFolder, section: Section) -> None:
    section.absent = "There is no rollout.csv: a fit and a test write it at their end."
    table = rollout_of(run)
    plot = plots.rollout({"": table}, str(_spec(run).get("time_units", "")))
    section.plot(
        plot,
        "The error at each step, relative to the size of whole rollouts, mean over the "
        "held-out simulations; rollout.csv has it in the units of the variables, too.",
    )


def _cases(run: RunFolder, section: Section) -> None:
    section.absent = "There is no cases.nc: a fit writes it at its end."
    if run.cases is None:
        return
    mesh = _spec(run).get("cells") is not None
    shown = film.film_of(run.cases, mesh=mesh)
    for case in film.stills(run.cases, mesh=mesh):
        section.add("picture", case.picture, case.caption)
    if shown is None:
        section.add("text", "The pictures show whole rollouts, so none is animated.")
    else:
        all_times, frames = len(_spec(run).get("times", ())), len(shown.frames)
        few = f" It shows {frames} of {all_times} times." * (frames < all_times)
        section.add("film", caption=f"{shown.caption}{few}", film=shown)


def _parameters(run: RunFolder, section: Section) -> None:
    section.absent = (
        "There is no validation.csv: a fit and a test write it at their end."
    )
    if "relative_l2" not in run.validation:
        return
    units = _units(run)
    drawn = [
        *plots.over_parameters(run.validation, dict([*units.items()][:_PARAMETERS]))
    ]
    if drawn:
        left = len(units) - len(drawn)
        median = len(run.validation) >= plots.ENOUGH
        section.plot(
            plots.grid(drawn),
            f"Each point is one of {len(run.validation)} held-out simulations"
            + "; the line is their running median" * median
            + ". Where errors are high, more simulations help."
            + (
                f" {counted(left, 'parameter')} more are not drawn." if left > 0 else ""
            ),
        )


def _seen(run: RunFolder, section: Section) -> None:
    section.absent = "Times seen are those of a reservoir; this run has noted none."
    texts = [text for text in run.telemetry.get("times_seen", ()) if text]
    if not texts:
        return
    counts = [int(float(word)) for word in texts[-1].split()]
    total = sum(counts)
    mean = sum(n * count for n, count in enumerate(counts)) / max(total, 1)
    section.plot(
        plots.times_seen(counts),
        f"How many of {total:,} samples the network has seen 0, 1, 2, ... times; "
        f"on average {number(mean, digits=3)}.",
    )


def _waiting(run: RunFolder, section: Section) -> None:
    section.absent = "Nobody's waiting has been noted."
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
    section.absent = "This run has no reservoir, or has noted nothing of it."
    plot = plots.population(run.telemetry) if len(run.telemetry) else None
    section.plot(
        plot,
        "Samples in the reservoir, seen and not yet seen; dashed are its capacity and "
        "the number of samples at which training begins.",
    )


def _failures(run: RunFolder, section: Section) -> None:
    section.absent = "No attempt at a simulation has failed."
    table = run.failures
    if not len(table):
        return
    more = len(table) - _FAILURES
    known = [column for column in table if column not in ("host", "traceback")]
    shown = table[known].head(_FAILURES).fillna("").astype(str)
    if "parameters" in shown:
        shown["parameters"] = shown["parameters"].map(_point)
    section.add(
        "table",
        head=[*map(str, known)],
        rows=[[text[:300] for text in row] for row in shown.to_numpy().tolist()],
        caption=f"{counted(len(table), 'attempt')} at a simulation failed"
        + (
            f"; the first {_FAILURES} are shown, failures.csv has all."
            if more > 0
            else "."
        ),
    )


def _point(text: str) -> str:
    """Return the parameters of an attempt with four digits."""
    try:
        point = ast.literal_eval(text)
        return ", ".join(f"{name} {number(value)}" for name, value in point.items())
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return text  # Of another version, or cut off.


def _cost(run: RunFolder, section: Section) -> None:
    section.absent = "It is known when the run has ended."
    cost = RunCost.of(run)
    if cost is None:
        return
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
            f"solver time over {counted_large(cost.simulations, 'simulation')}",
        ),
        (
            "surrogate, one evaluation",
            seconds(cost.surrogate),
            "outcome.json, surrogate_seconds: a whole simulation predicted at the end",
        ),
        (
            "evaluations until it has paid for itself",
            _paid(cost),
            "solver and training time, over what one saves",
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
    if cost.per_simulation is not None and cost.surrogate is not None:
        section.add(
            "equation",
            "N = (solver time + training time) / (solver, one simulation - surrogate, "
            f"one evaluation) = ({number(cost.solver)} s + {number(cost.training)} s) "
            f"/ ({number(cost.per_simulation)} s - {number(cost.surrogate)} s) = "
            f"{_paid(cost)}",
        )
    if peer is None:
        section.add(
            "text",
            "How long the solver takes at the surrogate's error, on a coarser grid or "
            "with longer steps, is not known; such a solver is the fair peer. In a "
            "clone, for the heat equation, the combined equation and Navier-Stokes, it "
            "is measured by: "
            + shlex.join(
                [
                    *("python", "benchmarks/payback.py", str(run.path)),
                    *("--json", str(run.path / "payback.json")),
                ]
            ),
        )


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
    section.absent = "There is neither config.yaml nor run.json."
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
        text = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)
        section.add("folded", text, "config.yaml: all settings")
