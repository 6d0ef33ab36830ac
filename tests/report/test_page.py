"""report.html: all sections from a folder alone, whatever is missing, in one file."""

import dataclasses
import importlib
import json
import math
import os
import re
import shlex
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import browser as chromium
import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.io.doc import patch_curdoc
from bokeh.models import CustomJS, Div, Scatter
from folders import OUTCOME, SETTINGS, spec, write_run
from rocrate.rocrate import ROCrate

from surrogate_flow.cli.app import main
from surrogate_flow.report.callbacks import WritePage
from surrogate_flow.report.folder.commands import predict_command, repeat_command
from surrogate_flow.report.folder.cost import PAID_BACK, RunCost
from surrogate_flow.report.folder.crate import CRATE, write_crate
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.words import number
from surrogate_flow.report.html import plots
from surrogate_flow.report.html.comparison_page import comparison_page, runs_in
from surrogate_flow.report.html.run_page import run_page
from surrogate_flow.report.live.follow import Changes

SECTIONS = [
    *("warnings", "commands", "learning", "rollout", "cases", "parameters", "seen"),
    *("waiting", "reservoir", "failures", "cost", "settings"),
]


def sections(page):
    """Return what stands in each section, without the tags."""
    parts = re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL)
    return {name: unescape(re.sub(r"<[^>]*>", " ", text)) for name, text in parts}


def resources(page):
    """Return the addresses of what a browser would load."""
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    found = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)", body)
    found += re.findall(r"<script[^>]*src=[\"']?([^\"'\s>]+)", page)
    found += re.findall(r"@import\s+(\S+)|url\(([^)]*)\)", body)
    return [address for address in found if not str(address).startswith(("data:", "#"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "heat" / "first")
    return run_page(RunFolder(folder)), folder


def test_every_section_says_something_of_a_whole_run(whole):
    """In the order of a reader in a hurry, each with its figures and what they are."""
    page, folder = whole
    shown = sections(page)
    assert [*shown] == SECTIONS
    assert f"fit --config {folder}/config.yaml" in shown["commands"]
    assert f"predict --ckpt_path {folder}/checkpoints/best.ckpt" in shown["commands"]
    assert "left: 300, speed: 0.5" in shown["commands"]
    for name in ("learning", "rollout", "parameters", "seen", "waiting", "reservoir"):
        plots = re.findall(
            r"<figure>.*?data-root-id.*?<figcaption>(.*?)<", page, re.DOTALL
        )
        assert all(caption.strip().endswith(".") for caption in plots)
        assert (
            "data-root-id"
            in page.split(f'<section id="{name}">')[1].split("</section>")[0]
        )
    assert "1, 2, ... times; on average 41.6." in shown["seen"]  # drawn / inserted
    for caption in ("best", "median", "worst"):
        assert f"The {caption} of the held-out simulations" in shown["cases"]
    assert page.count('src="data:image/webp;base64,') == 4  # three cases and a film
    assert "surrogate-flow 0.1.0, python 3.13.5, torch 2.13.0" in shown["settings"]
    assert "cores_per_simulation: 2" in shown["settings"]


def test_the_headline_has_the_numbers_of_the_files(whole):
    """The error, the skill, the cost; the break-even by an own calculation."""
    headline = unescape(re.search(r'class="headline">(.*?)</p>', whole[0])[1])
    paid = math.ceil((80.0 + 40.0) / (80.0 / 200 - 0.1))
    assert headline == (
        "The FNO surrogate of heat, trained on 1,900 batches from 160 simulations, has an error of 3.21 % ± "
        "0.45 % (relative L2 over 40 held-out simulations; skill 0.876), took 80 s of "
        f"solvers and 40 s of training, and breaks even after {paid} evaluations."
    )
    cost = sections(whole[0])["cost"]
    assert f"(80 s + 40 s) / (0.4 s - 0.1 s) = {paid}" in cost
    assert "0.0444 core-hours (80 s on 2 cores)" in cost  # two of a simulation
    assert "0.0111 trainer-hours (40 s)" in cost
    assert "is not known" in cost  # the solver at equal error
    assert "payback.py" not in cost  # nor is the solver


def test_a_run_that_went_on_says_which_numbers_are_of_a_part(tmp_path):
    """Its simulations and seconds are; no break-even is made of them."""
    about = {"resumed_from": "runs/heat/1/checkpoints/last.ckpt"}
    folder = write_run(tmp_path / "run", about=about, without=["cases.nc"])
    page = unescape(run_page(RunFolder(folder)))
    said = page.split('class="headline">')[1].split("</p>")[0]
    trained = "1,900 batches, the last of them from 160 simulations of this part"
    assert trained in said
    assert said.endswith("and took 80 s of solvers and 40 s of training in this part.")
    assert f"went on from {about['resumed_from']}:" in sections(page)["warnings"]
    assert " = (80 s" not in sections(page)["cost"]
    compared = sections(comparison_page([RunFolder(folder)]))["numbers"]
    assert "200 (last part)" in compared


@pytest.mark.parametrize(
    ("cluster", "shared"),
    [(None, True), ("distributed.LocalCluster", True), ("slurm.Slurm", False)],
)
def test_a_shared_machine_is_said(cluster, shared, tmp_path):
    """Beside the break-even, and in the headline; and how to measure the fair peer."""
    data = {
        "solver": {"class_path": "surrogate_flow.solvers.Heat2D"},
        "cluster": cluster and {"class_path": cluster},
    }
    settings = {"data": {"init_args": {"name": "heat", **data}}}
    settings["trainer"] = {"logger": [{"api_key": "s3cret", "uri": "http://me:pw@h"}]}
    folder = write_run(tmp_path / "run", settings=settings, without=["cases.nc"])
    page = run_page(RunFolder(folder))
    assert "s3cret" not in page
    assert "uri: http://***@h" in sections(page)["settings"]
    said = unescape(page.split('class="headline">')[1].split("</p>")[0])
    assert ("beside the training (break-even: see Cost)." in said) == shared
    assert ("breaks even after" in said) != shared
    assert ("that shared a machine" in sections(page)["cost"]) == shared
    assert "benchmarks/payback.py" in sections(page)["cost"]


def test_failures_are_shown_by_their_reasons(tmp_path):
    """The most frequent first, each with how often it was and the point of the first."""
    folder = write_run(tmp_path / "run", without=["cases.nc", "failures.csv"])
    numbers = [5, 5, 6, 7]
    kinds = ["Overflow", "Overflow", "Overflow", "OSError"]
    outcomes = ["retried", *["failed permanently"] * 3]
    says = [*(f"at t = {n}: NaN" for n in range(3)), "<b>no file</b>"]
    rows = [
        dict(
            simulation=n, attempt=1, outcome=o, worker="w", error=e, message=m,
            parameters={"left": 100.0 + n, "speed": 0.12345678},
        )
        for n, o, e, m in zip(numbers, outcomes, kinds, says, strict=True)
    ]  # fmt: skip
    pd.DataFrame(rows[::-1]).to_csv(folder / "failures.csv", index=False)
    page = run_page(RunFolder(folder)).split('<section id="failures">')[1]
    lines = re.findall(r"<tr>(.*?)</tr>", page.split("</section>")[0], re.DOTALL)
    head, *cells = [re.findall(r"<t[dh]>(.*?)</t", line) for line in lines]
    assert head[-2:] == ["left [K]", "speed [m/s]"]
    assert cells == [
        ["Overflow: at t = 2: NaN", "3", "2", "w", "6", "106", "0.1235"],
        ["OSError: &lt;b&gt;no file&lt;/b&gt;", "1", "1", "w", "7", "107", "0.1235"],
    ]


def test_plots_show_a_single_point_and_where_there_is_none():
    """One validation has a mark; a parameter is drawn between its bounds."""
    one = pd.DataFrame({"step": [9], "val_relative_l2": [0.1], "val_loss": [0.2]})
    for plot, _ in plots.learning({"": one}):
        assert any(isinstance(r.glyph, Scatter) for r in plot.renderers)
    cases = pd.DataFrame({"left": [2.0, 3.0], "relative_l2": 0.1})
    (plot,) = plots.over_parameters(cases, {"left": "K"}, {"left": (0.0, 100.0)})
    assert plot.x_range.start <= 0 < 100 <= plot.x_range.end


def test_a_plot_of_many_held_out_simulations_stays_small():
    """A thousand dots, from all over the parameter's range."""
    cases = pd.DataFrame({"left": np.linspace(0, 1, 9_999), "relative_l2": 0.5})
    (plot,) = plots.over_parameters(cases, {"left": "K"}, {"left": (0.0, 1.0)})
    for drawn in plot.renderers:
        (x,) = (v for k, v in drawn.data_source.data.items() if k == "x")
        assert 700 < len(x) <= 1000
        assert min(x) < 0.11
        assert max(x) > 0.89


def test_nothing_is_loaded_and_text_is_text(whole):
    """No address of another machine; a message of a failure is not a script."""
    page, _ = whole
    assert resources(page) == []
    assert "<script>alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert resources("<img src='http://a/b.png'><script src=https://c></script>")


def test_a_live_page_that_is_drawn_meanwhile_leaves_nothing_in_it(whole):
    """A server draws its page in another thread, and Bokeh's document is the process's."""
    live = Document()
    lost = Div(text="The connection is lost.")
    live.js_on_event("connection_lost", CustomJS(args={"lost": lost}, code="lost"))
    with patch_curdoc(live):
        page = run_page(RunFolder(whole[1]))
    assert "The connection is lost." not in page


def test_a_name_is_escaped(tmp_path):
    """In the title, in the headline and in the names of curves."""
    data = {"init_args": {"name": "<script>x</script>"}}
    run = write_run(
        tmp_path / "r", settings={**SETTINGS, "data": data}, without=["cases.nc"]
    )
    other = write_run(tmp_path / "<zz>", without=["cases.nc"])
    pages = (
        run_page(RunFolder(run)),
        comparison_page([RunFolder(run), RunFolder(other)]),
    )
    for page in pages:
        assert "<script>x</script>" not in page
        assert "&lt;script&gt;x" in page
        assert "<zz>" not in page


@pytest.mark.parametrize(
    "missing",
    [
        {
            "cases.nc": ("cases", "There is no cases.nc"),
            "validation.csv": ("parameters", "There is no validation.csv"),
            "metrics.csv": ("learning", "No loss has been logged"),
            "rollout.csv": ("rollout", "There is no rollout.csv"),
            "failures.csv": ("failures", "No attempt at a simulation has failed"),
            "config.yaml": ("commands", "surrogate-flow fit --data heat --model fno"),
        },
        {
            "cases.nc": ("warnings", "cases.nc is not there"),
            "telemetry.csv": ("waiting", "No waiting times have been recorded"),
            "outcome.json": ("warnings", "Skill and cost are not known; only a fit"),
            "run.json": ("settings", "all settings"),
        },
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(missing, tmp_path):
    """Every section is there, and none gives up."""
    folder = write_run(tmp_path / "gone", without=missing)
    shown = sections(run_page(RunFolder(folder)))
    assert [*shown] == SECTIONS
    for section, said in missing.values():
        assert said in shown[section]
    assert not any("cannot be shown" in text for text in shown.values())


def test_what_is_damaged_is_said_and_the_rest_is_shown(tmp_path):
    """No file can be read, but one: a page with its numbers."""
    folder = write_run(tmp_path / "damaged")
    for path in folder.glob("*.*"):
        if path.name != "outcome.json":
            path.write_bytes(b"\x89\x00\xff,,\n{")
    page = run_page(RunFolder(folder))
    shown = sections(page)
    assert [*shown] == SECTIONS
    assert "an error of 3.21 %" in page
    for name in ("warnings", "cases"):
        assert "cases.nc cannot be read" in shown[name]
    assert "There is no cases.nc" not in shown["cases"]
    assert not any("cannot be shown" in text for text in shown.values())


def test_a_run_that_diverged_or_was_killed_is_shown(tmp_path):
    """NaN is no number and stops nothing; without an outcome it says how far it is."""
    errors = {"val_relative_l2": math.nan, "val_skill": math.nan}
    few = {"of": spec((4, 3), 2), "noise": math.nan}
    nan = write_run(tmp_path / "nan", outcome={"errors": errors}, **few)
    page = run_page(RunFolder(nan))
    assert "smallest" not in comparison_page([RunFolder(nan)])
    assert "an error of not a number (relative L2" in page
    assert not any("cannot be shown" in text for text in sections(page).values())
    killed = write_run(
        tmp_path / "killed", without=["outcome.json", "cases.nc", "run.json"]
    )
    page = run_page(RunFolder(killed))
    assert "was cut off after 1,800 batches with a loss of 0.04979" in page
    compared = sections(comparison_page([RunFolder(killed)]))["numbers"]
    assert re.search(r"batches\s+1,800\s+simulations\s+180", compared)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "telemetry.csv").touch()
    assert [*sections(run_page(RunFolder(tmp_path / "empty")))] == SECTIONS


def test_an_older_outcome_has_no_break_even(tmp_path):
    """What was not measured is not known; a solver as fast is never paid back."""
    old = write_run(
        tmp_path / "old", outcome={"surrogate_seconds": None}, without=["cases.nc"]
    )
    assert RunCost.of(RunFolder(old)).break_even is None
    assert re.search(
        r"to break even\s+not known", sections(run_page(RunFolder(old)))["cost"]
    )
    fast = write_run(
        tmp_path / "fast", outcome={"surrogate_seconds": 0.4}, without=["cases.nc"]
    )
    said = "never breaks even, since an evaluation takes 0.4 s and the solver 0.4 s"
    assert said in run_page(RunFolder(fast))


@pytest.mark.parametrize(
    "outcome",
    [{"batches": None}, {"errors": {"val_relative_l2": None}}, {"errors": "none"}],
)
def test_an_outcome_without_a_number_ends_no_page(outcome, tmp_path):
    """The headline, the crate and the table of several go without it."""
    without = ["cases.nc"]
    runs = [
        RunFolder(write_run(tmp_path / name, outcome=outcome, without=without))
        for name in "ab"
    ]
    assert [*sections(run_page(runs[0]))] == SECTIONS
    assert len(sections(comparison_page(runs))) == 4
    write_crate(runs[0])


def test_a_data_set_of_others_has_no_solver_time(tmp_path):
    """Nothing is not what it took; its samples a second are shown, without a reservoir."""
    folder = write_run(
        tmp_path / "run", outcome={"solver_seconds": 0.0}, without=["cases.nc"]
    )
    table = pd.read_csv(folder / "telemetry.csv")
    table.drop(columns=["draw_wait_seconds", "put_wait_seconds"]).to_csv(
        folder / "telemetry.csv", index=False
    )
    page = run_page(RunFolder(folder))
    shown = sections(page)
    assert re.search(r"of all simulations\s+not known", shown["cost"])
    assert ", and took 40 s of training." in page
    assert "Samples trained in a second" in shown["waiting"]


def test_commands_of_folders_with_blanks_can_be_typed(tmp_path, monkeypatch):
    """As one word each, for a shell; a killed run, too, says how to go on."""
    folder = write_run(tmp_path / "my runs" / "a", without=["cases.nc", "outcome.json"])
    about = json.loads((folder / "run.json").read_text())
    del about["ended"]
    (folder / "run.json").write_text(json.dumps(about))
    page = unescape(run_page(RunFolder(folder)))
    typed = [
        shlex.split(c) for c in re.findall(r"<code>(surrogate-flow.*)</code>", page)
    ]
    again, predict = typed
    assert again == ["surrogate-flow", "fit", "--config", f"{folder}/config.yaml"]
    assert f"{folder}/checkpoints/best.ckpt" in predict
    assert "{left: 300, speed: 0.5}" in predict
    # Its folder was elsewhere when it ran, and its solver and network are the user's.
    place = Path("old") / "checkpoints" / "best.ckpt"
    about["next"] = (
        f"surrogate-flow predict --ckpt_path {place} --history old/history.nc"
    )
    (folder / "run.json").write_text(json.dumps(about))
    for name in ("history.nc", "../mine.py"):
        (folder / name).touch()
    solver = {
        "class_path": "mine.Solver",
        "init_args": {"n": [{"class_path": "gone.N"}]},
    }
    (folder / "config.yaml").write_text(json.dumps({"data": {"solver": solver}}))
    monkeypatch.setenv("PYTHONPATH", f"/none:{folder.parent}")
    said = f"PYTHONPATH='FOLDER_OF_gone:{folder.parent}' surrogate-flow "
    assert repeat_command(RunFolder(folder)).startswith(f"{said}fit --config ")
    predict = predict_command(RunFolder(folder))
    assert predict.startswith(f"{said}predict --ckpt_path ")
    best, past = folder / "checkpoints" / "best.ckpt", folder / "history.nc"
    assert shlex.split(predict)[4::2] == [str(best), str(past)]
    on = next(p for p in RunFolder(folder).problems if "To go on" in p)
    assert shlex.split(on)[-1] == f"{folder}/checkpoints/last.ckpt"
    assert f"type: {said}fit --data heat --model fno" in on


def test_the_page_elsewhere_leaves_the_folder_as_it_is(
    tmp_path, monkeypatch, caplog, capsys
):
    """It may be somebody else's; without the list of files there is a report; what is replaced is said."""
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "runs" / "heat" / "run", without=["cases.nc"])
    before = {*folder.rglob("*")}
    elsewhere = ["report", str(folder), "--output=mine.html"]
    main(elsewhere)
    assert Path("mine.html").is_file()
    assert "replaced" not in capsys.readouterr().out
    main(elsewhere)
    replaced = "mine.html: the file that was there is replaced.\n"
    assert capsys.readouterr().out.startswith(replaced)
    assert {*folder.rglob("*")} == before

    def fail(run):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surrogate_flow.cli.reports.write_crate", fail)
    main(["report"])
    assert {*folder.rglob("*")} - before == {folder / "report.html"}
    assert "ro-crate-metadata.json was not written" in caplog.text


def test_a_run_that_fails_leaves_its_page(tmp_path, capsys):
    """And the list of its files; not before its first batch, nor by a second Ctrl-C.

    It says where they are.
    """
    trainer = SimpleNamespace(is_global_zero=True, loggers=[])
    without = ["cases.nc", "failures.csv", "outcome.json"]
    folder = write_run(tmp_path / "run", without=without)
    before, callback = {*folder.rglob("*")}, WritePage(folder)
    callback.on_exception(trainer, None, RuntimeError())
    callback.on_fit_end(trainer)
    callback.on_train_batch_start()
    callback.on_exception(trainer, None, KeyboardInterrupt())
    trainer.is_global_zero = False
    callback.on_exception(trainer, None, RuntimeError())
    assert {*folder.rglob("*")} == before
    trainer.is_global_zero = True
    callback.on_exception(trainer, None, RuntimeError())
    left = {path.name for path in {*folder.rglob("*")} - before}
    assert left == {"report.html", "ro-crate-metadata.json"}
    said = capsys.readouterr().out.replace("\n", "")
    assert said == f"Run: {folder}Report: {folder / 'report.html'}"


def test_what_payback_measures_is_shown(tmp_path, monkeypatch):
    """In the form in which the benchmark writes it, of which the first row counts."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    payback = importlib.import_module("payback")
    known = {f.name: 1.0 for f in dataclasses.fields(payback.Row)}
    row = payback.Row(**{**known, "peer": "cells 20", "peer_seconds": 0.012})
    folder = write_run(tmp_path / "run", without=["cases.nc"])
    (folder / "payback.json").write_text(json.dumps([dataclasses.asdict(row)]))
    cost = sections(run_page(RunFolder(folder)))["cost"]
    assert "solver at equal error: cells 20" in cost
    assert "12 ms, error 100 %" in cost
    assert {*PAID_BACK} == {
        f"surrogate_flow.solvers.{c.__name__}"
        for c in importlib.import_module("coarser").LADDERS
    }


@pytest.mark.parametrize(
    ("outcome", "solver", "about", "said"),
    [
        # (620 + 60) / (3 - 0.002), of the quickest.
        (
            dict(quickest_seconds=3.0, solver_seconds=620.0, simulations=100,
                 training_seconds=60.0, batch_seconds=0.002, batch=256),
            True,
            {},
            "Pays after 227 evaluations, against the solver as it ran: a simulation takes 3 s at its quickest and a prediction 2 ms (in "
            "batches of 256); simulations took 10.3 min and training 60 s.",
        ),
        # The solver makes a tenth of a simulation, alone: (620 + 60) / (3 - 0.302).
        (
            dict(quickest_seconds=3.0, solver_seconds=620.0, simulations=100, history=0.1,
                 training_seconds=60.0, batch_seconds=0.002, batch=256),
            True,
            {},
            "Pays after 253 evaluations, against the solver as it ran: a simulation takes 3 s at its quickest and a prediction 0.302 s (in "
            "batches of 256); simulations took 10.3 min and training 60 s.",
        ),
        # A step takes as long as its sending: (2 + 60) / (0.002 - 0.001).
        (
            dict(quickest_seconds=0.002, solver_seconds=2.0, simulations=100,
                 training_seconds=60.0, batch_seconds=0.001, batch=256),
            True,
            {"spec": {"times": {"count": 100}}},
            "Pays after 62,000 evaluations, against the solver as it ran: a simulation takes 2 ms at its quickest and a "
            "prediction 1 ms (in batches of 256); simulations took 2 s and training 60 s. Its steps take less than a "
            "millisecond each, with their sending: by itself the solver is quicker, and the surrogate may never pay.",
        ),
        # Of an older version: (620 + 60) / (6.2 - 0.1), one at a time.
        (
            dict(quickest_seconds=None, solver_seconds=620.0, simulations=100,
                 training_seconds=60.0),
            True,
            {},
            "Pays after 112 evaluations, against the solver as it ran: a simulation takes 6.2 s beside the training, "
            "which is longer than alone, and a prediction 0.1 s; simulations took 10.3 min "
            "and training 60 s.",
        ),
        # Of a data set, whatever was noted there: (80 + 40) / (0.4 - 0.01).
        (
            dict(quickest_seconds=0.4, batch_seconds=0.01, batch=30),
            False,
            {},
            "Pays after 308 evaluations, against the solver as it ran: a simulation takes 0.4 s and a prediction 10 ms (in "
            "batches of 30); simulations took 80 s and training 40 s.",
        ),
        (
            dict(batch_seconds=0.5, batch=8),
            False,
            {},
            "Never pays: a prediction takes 0.5 s, and a simulation 0.4 s.",
        ),
        (
            dict(solver_seconds=0.0),
            False,
            {},
            "When it pays is not known: the data set does not say what simulations took.",
        ),
        (
            dict(batch_seconds=0.01),
            True,
            {"resumed_from": "last.ckpt"},
            "When it pays is not known: the run went on from a checkpoint, and has the "
            "seconds since then.",
        ),
        (
            dict(surrogate_seconds=None),
            False,
            {},
            "When it pays is not known: no prediction was measured.",
        ),
    ],
)  # fmt: skip
def test_when_it_pays_is_said_by_figures_that_can_be_checked(
    outcome, solver, about, said, tmp_path
):
    """By hand, for each kind of run; on its page, and on the live page once it has ended."""
    data = {"name": "heat"} | (
        {"solver": {"class_path": "mine.Solver"}} if solver else {"path": "d.zarr"}
    )
    settings = {"data": {"init_args": data}}
    without = ["cases.nc", "telemetry.csv", "metrics.csv", "rollout.csv"]
    folder = write_run(
        tmp_path / "r", outcome=outcome, settings=settings, about=about, without=without
    )
    run = RunFolder(folder)
    assert str(RunCost.of(run)) == said
    assert said in unescape(sections(run_page(run))["cost"])
    assert Changes(folder).message(RunFolder(folder))["cost"] == said


def test_what_is_left_out_is_said(tmp_path):
    """Variables beside the first three, and times that are no frame of the film."""
    of = spec((6, 5), 30, "abcde")
    cases = sections(run_page(RunFolder(write_run(tmp_path / "run", of=of))))["cases"]
    assert cases.count("2 variables more are in cases.nc.") == 3
    assert "It shows 24 of 30 times." in cases


def test_the_simulations_of_all_ranks_are_paid_for(tmp_path):
    """The file is of the first of two, which had 90 of 180; both trained as long."""
    half = {"simulations": 90, "solver_seconds": 36.0}
    folder = write_run(
        tmp_path / "r", outcome=half, without=["cases.nc"], about={"ranks": 2}
    )
    cost = RunCost.of(RunFolder(folder))
    assert (cost.simulations, cost.ranks, cost.shared) == (180, 2, False)
    assert cost.solver == pytest.approx(72.0)
    assert cost.break_even == math.ceil((72 + 40) / (36 / 90 - 0.1))
    # Side by side, too.
    numbers = sections(comparison_page([RunFolder(folder)] * 2))["numbers"]
    assert re.search(r"simulations\s+180\s+180\s+solvers\s+72 s\s+72 s", numbers)


def test_a_test_is_repeated_as_one(tmp_path):
    """And has its errors from validation.csv alone."""
    command = "surrogate-flow test --data heat --model fno --ckpt_path best"
    without = ["cases.nc", "outcome.json", "metrics.csv"]
    folder = write_run(tmp_path / "r", without=without, about={"command": command})
    page = run_page(RunFolder(folder))
    assert f"surrogate-flow test --config {folder}/config.yaml" in page
    errors = pd.read_csv(folder / "validation.csv").relative_l2
    said = (
        "it has ended after 1,800 batches with a loss of 0.04979 and has an error of "
    )
    assert f"{said}{100 * errors.mean():.3g} % (relative L2 over 40 held-out" in page


@pytest.mark.parametrize(
    ("of", "film"),
    [
        (spec((), 9, ("a", "b")), False),
        (spec((9,), 5), True),
        (spec((5, 4, 3), 4), True),
        (spec((6,), 4, cells=[[0, 1, 2], [2, 3, 4, 5]]), True),
        (spec((5,), 4, cells=[[0, 1, 2], [7, 8, 9]]), True),  # thinned
    ],
    ids=["numbers", "line", "3D", "mesh", "nodes of a mesh"],
)
def test_fields_of_every_kind_are_drawn(of, film, tmp_path):
    """Three cases, and a film of what has a place."""
    page = run_page(RunFolder(write_run(tmp_path / "run", of=of)))
    assert page.count('alt="The ') == 3
    assert ('id="film"' in page) == film
    if film:
        frames = re.search(r"const frames = \[(.*?)\], times", page)[1].split(", ")
        assert len(frames) == len({*frames}) == len(of["times"])


def test_the_largest_folder_makes_less_than_five_megabytes(tmp_path):
    """Cases of 2 MB of noise, which no picture compresses; three megabytes are aimed at."""
    folder = write_run(tmp_path / "run", of=spec((44, 44), 40), noise=3.0)
    assert 1_800_000 < (folder / "cases.nc").stat().st_size < 2_000_000
    assert len(run_page(RunFolder(folder)).encode()) < 3_500_000


@pytest.mark.parametrize("count", [2, 3])
def test_runs_are_compared(count, tmp_path):
    """Errors, settings that differ, all curves; what one lacks is said."""
    folders = []
    stored = {"class_path": "surrogate_flow.StoredData", "init_args": {"name": "heat"}}
    data = SETTINGS["data"], stored
    for k in range(count):
        known = {"width": 8 + k, "token": k, **({"unset": None} if k else {})}
        network = {"class_path": "surrogate_flow.nn.FNO", "init_args": known}
        folders.append(
            write_run(
                tmp_path / f"run{k}",
                settings={
                    **SETTINGS,
                    "model": {"network": network},
                    "data": data[k > 0],
                },
                outcome={
                    "errors": {**OUTCOME["errors"], "val_relative_l2": 0.03 - 0.01 * k}
                },
                without=["cases.nc", *["metrics.csv"] * (k == 0)],
            )
        )
    page = comparison_page([RunFolder(folder) for folder in folders])
    shown = sections(page)
    assert f"{count} runs side by side; run{count - 1} has the smallest error" in page
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[dh]>(.*?)</t", row) for row in rows]
    table = {row[0]: row[1:] for row in cells}
    errors = [f"{3 - k} %" for k in range(count)]
    assert table["relative L2 error"] == errors
    assert table["model.network.width"] == [str(8 + k) for k in range(count)]
    assert [name for name in table if "." in name] == ["model.network.width"]
    assert table["data"][:2] == [
        "surrogate_flow.OnlineData",
        "surrogate_flow.StoredData",
    ]
    assert "run0: metrics.csv is not there" in shown["warnings"]
    assert page.count("data-root-id") >= 4
    assert resources(page) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"about": {"spec": spec((4,), 2)}}, "different problems"),
        ({"solver": {"class_path": "Burgers"}}, "different problems"),
        ({"outcome": {"validated": 39}}, "different numbers of held-out simulations"),
    ],
)
def test_no_run_is_best_where_errors_do_not_compare(other, said, tmp_path):
    """Not of other fields, of another solver, nor over other counts."""
    folders = []
    for name, known in (("a", {}), ("b", other)):
        more = dict(known)
        solver = more.pop("solver", {"class_path": "Heat"})
        data = {"init_args": {"name": "heat", "solver": solver}}
        settings = {**SETTINGS, "data": data}
        without = ["cases.nc"]
        folders.append(
            write_run(tmp_path / name, settings=settings, without=without, **more)
        )
    page = comparison_page([RunFolder(folder) for folder in folders])
    assert said in sections(page)["numbers"]
    assert "has the smallest error" not in page


def test_runs_of_a_comparison_are_found(tmp_path):
    """Of a folder that 'compare' or 'sweep' left, the newest run of each trial; else all below."""
    for trial in ("0000", "0001"):
        place = tmp_path / "both" / "trials" / trial / "heat"
        write_run(place / "cut", without=["cases.nc", "outcome.json"])
        os.utime(place / "cut" / "telemetry.csv", (1, 1))
        write_run(place / "whole", without=["cases.nc"])
    assert len(runs_in(tmp_path / "both")) == 4
    (tmp_path / "both" / "sweep.yaml").write_text("{}")
    found = runs_in(tmp_path / "both")
    assert [run.name for run in found] == ["whole", "whole"]
    page = comparison_page([RunFolder(run) for run in found])
    assert ">0001<" in page
    assert runs_in(found[0]) == [found[0]]


def test_numbers_are_short():
    """With commas and units, and in words where there is none."""
    assert number(60800, "samples") == "60,800 samples"
    assert number(np.float64(0.123456)) == "0.1235"


def test_the_folder_is_a_crate(tmp_path):
    """Opened by the library: each file with what it is, the command that made it; nothing copied."""
    folder = write_run(tmp_path / "run", without=["cases.nc", "failures.csv"])
    (folder / "jobs").mkdir()
    (folder / "jobs" / "1.out").write_text("log")
    hidden = folder / ".keys-ab" / "private.pem"
    hidden.parent.mkdir()
    files = {p for p in folder.rglob("*") if p.is_file()}
    hidden.touch()
    write_crate(RunFolder(folder))
    hidden.unlink()
    assert {p for p in folder.rglob("*") if p.is_file()} - files == {folder / CRATE}
    crate = ROCrate(folder)
    assert crate.name == "heat, run"
    assert "an error of 3.21 %" in crate.description
    named = {entity.id: entity for entity in crate.data_entities}
    kept = {str(p.relative_to(folder)) for p in files if p.parent.name != "jobs"}
    assert {*named} == kept | {"jobs/"}
    assert named["metrics.csv"]["encodingFormat"] == "text/csv"
    assert named["checkpoints/best.ckpt"]["contentSize"] == "7"
    assert all(entity["description"] for entity in named.values())
    (action,) = (e for e in crate.contextual_entities if e.type == "CreateAction")
    assert action["name"] == "surrogate-flow fit --data heat --model fno"
    assert action["startTime"] == "2026-11-27T10:00:00+00:00"
    assert action["endTime"] == "2026-11-27T10:01:02+00:00"
    assert action["instrument"]["version"] == "0.1.0"
    assert "torch 2.13.0" in action["instrument"]["softwareRequirements"]
    # Written again, it does not name itself.
    write_crate(RunFolder(folder))
    assert {e.id for e in ROCrate(folder).data_entities} == {*named}
    plain = json.loads((folder / CRATE).read_text())
    assert plain["@context"].startswith("https://w3id.org/ro/crate/1.")
    assert "license" not in (folder / CRATE).read_text()


@pytest.mark.browser
def test_the_page_is_seen_as_it_is_meant(whole, tmp_path):
    """In Chromium: all plots hold data, the film plays, nothing is asked of the network."""
    if why := chromium.missing():
        pytest.skip(why)
    page, folder = whole
    (folder / "report.html").write_text(page)
    with (
        chromium.Browser(tmp_path) as browser,
        browser.page(folder / "report.html") as shown,
    ):
        shown.wait_for_data()
        image = 'return document.querySelector("#film img").src'
        first = shown.driver.execute_script(image)
        shown.driver.execute_script('document.querySelector("#film button").click()')
        shown.wait(lambda p: p.driver.execute_script(image) != first, "the film stands")
