"""The command line: one clear message for each mistake, before anything is submitted."""

import sys

import pytest

import surrogate_flow.study
from surrogate_flow.cli import main

FIT = ["fit", "--data", "heat2d", "--model", "fully_connected"]
SMALL = ["--data.solver.cells=[4,4]", "--data.solver.steps=2"]


@pytest.fixture(autouse=True)
def nothing_is_submitted(monkeypatch, tmp_path):
    """Opening a cluster fails the test."""

    def refuse(*arguments, **others):
        pytest.fail("a cluster was opened")

    monkeypatch.setattr(surrogate_flow.study, "open_cluster", refuse)
    monkeypatch.chdir(tmp_path)


def run(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, capsys.readouterr()


MISTAKES = {
    "missing recipe": (
        ["fit", "--data", "heat", "--model=fully_connected"],
        "Did you mean 'heat2d'",
    ),
    "missing model": ([*FIT[:3], "--model=fulli_connected"], "'fully_connected'"),
    "capacity below threshold": (
        [*FIT, "--data.reservoir.capacity=500", "--data.reservoir.threshold=501"],
        "threshold",
    ),
    "capacity below a batch": (
        [*FIT, "--data.reservoir.capacity=5", "--data.reservoir.threshold=5"],
        "batch",
    ),
    "simulations shorter than a sample": (
        [*FIT[:3], "--model=fully_connected_autoregressive", *SMALL],
        "at least 3 steps",
    ),
    "threshold never reached": (
        [*FIT, *SMALL, "--data.simulations=3"],
        "The threshold can never be reached",
    ),
    "bounds upside down": (
        [*FIT, "--data.solver.low=500", "--data.solver.high=100"],
        "500",
    ),
    "no cells": ([*FIT, "--data.solver.cells=[0,4]"], "cells"),
    "no simulations": ([*FIT, "--data.simulations=0"], "simulations"),
    "unknown option": ([*FIT, "--data.simulation=3"], "Did you mean 'simulations'"),
    "unknown nested option": (
        [*FIT, "--data.solver.cell=[4,4]"],
        "Did you mean 'cells'",
    ),
    "unknown fault": ([*FIT, "--data.faults.retry", "3"], "Did you mean 'retries'"),
    "unknown class": (
        [*FIT, "--data.solver", "surrogate_flow.solvers.Heat2"],
        "Did you mean 'Heat2D'",
    ),
    "unknown bare class": ([*FIT, "--data.reservoir", "Resevoir"], "'Reservoir'"),
    "unknown sampler": ([*FIT, "--data.sampler", "Sobl"], "Did you mean 'Sobol'"),
    "unknown path of a sampler": (
        [*FIT, "--data.sampler=surrogate_flow.sampling.Sobl"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown sampler, the long way": (
        [*FIT, "--data.sampler.class_path=Sobl"],
        "Did you mean 'Sobol'",
    ),
    "unknown sampler in YAML": (
        [*FIT, "--data.sampler={class_path: surrogate_flow.sampling.Sobl}"],
        "has no 'Sobl'. Did you mean 'Sobol'",
    ),
    "unknown option of a sampler in YAML": (
        [
            *FIT,
            "--data.sampler={class_path: surrogate_flow.sampling.Sobol, "
            "init_args: {sed: 3}}",
        ],
        "Did you mean 'seed'",
    ),
    "unknown cluster": (
        [*FIT, "--data.cluster", "dask_jobqueue.SLURMClustr"],
        "Did you mean 'SLURMCluster'",
    ),
    "unknown limiter": (
        [*FIT, "--data.reservoir.limiter", "SamplesPerInser"],
        "Did you mean 'SamplesPerInsert'",
    ),
    "unknown window": ([*FIT, "--model.window=Directt"], "Did you mean 'Direct'"),
    "unknown loss": (
        [*FIT, "--model.loss=torch.nn.L1Los"],
        "has no 'L1Los'. Did you mean 'L1Loss'",
    ),
    "unknown bare loss": ([*FIT, "--model.loss=L1Los"], "Did you mean 'L1Loss'"),
    "unknown option of the network": ([*FIT, "--model.network.width=3"], "'widths'"),
    "unknown option of the trainer": (
        [*FIT, "--trainer.max_step=3"],
        "--trainer.max_step: unknown option 'max_step' of Trainer. "
        "Did you mean 'max_steps'",
    ),
    "a shortened option": ([*FIT, "--seed_every=3"], "--seed_every=3"),
    "generate: a shortened option": (
        ["generate", *FIT[1:3], "--outp=x.zarr"],
        "--outp=x.zarr",
    ),
    "predict: a shortened option": (["predict", "--ckpt=a"], "--ckpt=a"),
    "no checkpoint": (["validate", *FIT[1:]], "validate needs --ckpt_path"),
    "no data": (["fit", "--model=fully_connected"], "fit needs --data"),
    "a path that is none": (["fit", "--data", "./nope"], "No recipe './nope'"),
    "a class that is none": (
        ["fit", "--data", "nowhere.Data"],
        "cannot import 'nowhere'",
    ),
    "no widths": ([*FIT, "--model.network.widths=[]"], "widths"),
    "a command that is none": (["generat", *FIT[1:]], "Did you mean 'generate'"),
    "generate: no output": (["generate", *FIT[1:3]], "output"),
    "generate: no data": (["generate", "--output=x.zarr"], "generate needs --data"),
    "generate: missing recipe": (
        ["generate", "--data=heat", "--output=x.zarr"],
        "Did you mean 'heat2d'",
    ),
    "generate: unknown option": (
        ["generate", *FIT[1:3], "--output=x.zarr", "--data.solver.cell=[4,4]"],
        "Did you mean 'cells'",
    ),
    "generate: a data set": (["generate", "--data=x.zarr"], "expected a workflow"),
    "no data set": (["fit", "--data=x.zarr", *FIT[3:]], "x.zarr is no data set"),
    "unknown option of a data set": (
        ["fit", "--data=x.zarr", "--data.memry=1", *FIT[3:]],
        "Did you mean 'memory'",
    ),
    "missing checkpoint": (
        ["predict", "--ckpt_path=none.ckpt", "--parameters={a: 1}"],
        "No checkpoint",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(words, message, monkeypatch, capsys):
    """Each mistake ends with status 2 and one message on stderr, without a traceback."""
    code, shown = run(words, monkeypatch, capsys)
    assert code == 2
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert "Namespace(" not in shown.err


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["fit", "--help"],
        ["predict", "--help"],
        ["generate", "--help"],
        ["fit", "--data.help"],
        ["fit", "--data", "lorenz", "--data.help"],
        ["fit", "--data.help", "lorenz"],
        ["fit", "--model.help"],
    ],
)
def test_help_helps(words, monkeypatch, capsys):
    """Help exits with 0 and explains."""
    code, shown = run(words, monkeypatch, capsys)
    assert code == 0
    assert "surrogate" in shown.out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--data.help"], "--data.batch_size"),
        (["--model", "fno", "--model.help"], "--model.normalisation"),
        (["--data", "lorenz", "--data.solver.help"], "--data.solver.time_step"),
        (["--model", "fno", "--model.network.help"], "--model.network.modes"),
        (["--model.network.help", "surrogate_flow.nn.UNet"], "--model.network.widths"),
        (
            ["--data", "surrogate_flow.OnlineData", "--data.solver.help"]
            + ["surrogate_flow.solvers.Heat2D"],
            "--data.solver.cells",
        ),
    ],
)
def test_help_shows_the_options_of_a_recipe_and_of_its_classes(
    words, shown, monkeypatch, capsys
):
    """A user finds what may be overridden without reading a recipe."""
    code, said = run(["fit", *words], monkeypatch, capsys)
    assert code == 0
    assert shown in said.out
    assert "--model.spec" not in said.out
    code, said = run(["fit", "--data.help", "lorentz"], monkeypatch, capsys)
    assert code == 2
    assert "Did you mean 'lorenz'" in said.err


def test_print_config_shows_everything(monkeypatch, capsys):
    """The configuration is printed whole, defaults included, and nothing runs."""
    code, shown = run([*FIT, "--print_config"], monkeypatch, capsys)
    assert code == 0
    for word in ("batch_size: 32", "retries: 2", "widths:", "max_epochs: 1"):
        assert word in shown.out


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--data.sampler=Sobol", "surrogate_flow.sampling.Sobol"),
        ("--data.sampler=surrogate_flow.sampling.Halton", "Halton"),
        (
            "--data.reservoir={class_path: surrogate_flow.reservoir.FIFO, "
            "init_args: {capacity: 77}}",
            "capacity: 77",
        ),
        ("--data.reservoir.init_args={threshold: 7}", "threshold: 7"),
        ("--data.cluster=distributed.LocalCluster", "distributed.LocalCluster"),
        ("--data.reservoir.limiter={ratio: 2.5}", "ratio: 2.5"),
        ("--model.window=Autoregressive", "windows.Autoregressive"),
        ("--model.loss=torch.nn.L1Loss", "torch.nn.L1Loss"),
        ("--model.loss={class_path: torch.nn.HuberLoss}", "torch.nn.HuberLoss"),
    ],
)
def test_whatever_names_a_class_may_be_given(word, shown, monkeypatch, capsys):
    """A class by name, by path, or with its arguments as YAML: none is refused."""
    code, said = run([*FIT, "--print_config", word], monkeypatch, capsys)
    assert (code, said.err) == (0, "")
    assert shown in said.out
