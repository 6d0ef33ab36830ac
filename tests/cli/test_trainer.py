"""What the command line makes of the trainer's arguments: ours stays beside the user's."""

import os
import signal
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from jsonargparse import _typehints
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.profilers import SimpleProfiler

from surrogate_flow.cli.lightning import _graceful, execute
from surrogate_flow.cli.parser import parse
from surrogate_flow.cli.recipes import CommandLine
from surrogate_flow.cli.trainer import in_slurm
from surrogate_flow.fields.errors import UserError
from surrogate_flow.report.monitor import MetricsTable
from surrogate_flow.report.progress import ProgressLine

FIT = ["fit", "--data", "heat2d", "--model", "fully_connected"]
TASKS = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "train"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def trainer_of(*words):
    line = CommandLine.of([*FIT, "--trainer.accelerator=cpu", *words])
    before = _typehints.discard_init_args_on_class_path_change
    cli = parse(line, lambda words: execute(words[1:], run=False))
    # Other programs in this process parse as jsonargparse does.
    assert before.__module__ == _typehints.__name__
    assert _typehints.discard_init_args_on_class_path_change is before
    return cli.trainer


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ([], [MetricsTable, TensorBoardLogger]),
        (["--trainer.logger=true"], [MetricsTable, TensorBoardLogger]),
        (["--trainer.logger=false"], [MetricsTable]),
        (
            ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x"],
            [CSVLogger, MetricsTable],
        ),
        (
            [
                "--trainer.logger=[{class_path: CSVLogger, init_args: {save_dir: x}}, "
                "{class_path: TensorBoardLogger, init_args: {save_dir: y}}]"
            ],
            [CSVLogger, TensorBoardLogger, MetricsTable],
        ),
        (["--trainer.fast_dev_run=true"], [object]),
    ],
)
def test_a_run_has_its_folder_whatever_logs_beside_it(words, kinds):
    """metrics.csv is written, and everything else is in the folder of the run."""
    trainer = trainer_of(*words)
    assert Path(trainer.log_dir) == Path("runs/heat2d")
    assert len(trainer.loggers) == len(kinds)
    for theirs, kind in zip(trainer.loggers, kinds, strict=True):
        assert isinstance(theirs, kind)
        assert isinstance(theirs, MetricsTable) == (kind is MetricsTable)


def test_checkpoints_of_the_user_s_lie_beside_ours():
    """Unless they name a folder."""
    trainer = trainer_of(
        "--trainer.logger=false",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.dirpath=elsewhere",
        "--trainer.callbacks.monitor=train_loss",
    )
    folders = [Path(callback.dirpath) for callback in trainer.checkpoint_callbacks]
    assert all(isinstance(c, ModelCheckpoint) for c in trainer.checkpoint_callbacks)
    assert folders[1].name == "elsewhere"
    for path in folders[:1]:
        assert path == Path("runs/heat2d/checkpoints").absolute()


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ([], [ProgressLine]),
        (["--trainer.callbacks+=RichProgressBar"], [RichProgressBar]),
        (["--trainer.enable_progress_bar=false"], []),
    ],
)
def test_a_progress_bar_takes_the_place_of_ours(words, kinds):
    bars = [c for c in trainer_of(*words).callbacks if isinstance(c, ProgressBar)]
    assert [type(bar) for bar in bars] == kinds


def test_hooks_take_no_time_to_be_profiled_unless_a_profiler_is_named():
    """Lightning asks for a context eighty times a step."""
    profiler = trainer_of().profiler
    with profiler.profile("outer") as outer, profiler.profile("inner") as inner:
        assert outer is inner is None
    theirs = trainer_of("--trainer.profiler=simple").profiler
    assert type(theirs) is SimpleProfiler


def test_one_process_trains_in_a_job_of_several_tasks_without_srun(monkeypatch):
    """Its workers have the cores of the other tasks."""
    for name, value in TASKS.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of()
    assert trainer.world_size == 1
    environment = trainer._accelerator_connector.cluster_environment
    assert environment.auto_requeue
    with pytest.raises(UserError, match="Write srun before the command"):
        trainer_of("--trainer.num_nodes=2", "--trainer.strategy=ddp")
    # Of another launcher each process trains.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert TorchElasticEnvironment.detect()
    environment = trainer_of()._accelerator_connector.cluster_environment
    assert isinstance(environment, TorchElasticEnvironment)


def test_a_job_of_one_task_trains_on_all_devices(monkeypatch):
    """Its process starts the others; Lightning trains with one rank of Slurm's one task."""
    for name, value in {**TASKS, "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of("--trainer.devices=2", "--trainer.strategy=ddp")
    assert trainer.world_size == 2
    environment = trainer._accelerator_connector.cluster_environment
    assert not environment.creates_processes_externally
    assert environment.main_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("words", "gpus", "ours"),
    [
        (["devices=auto"], 2, True),
        (["devices=-1"], 4, True),
        (["devices=auto"], 1, False),
        (["devices=auto", "accelerator=cpu"], 2, False),
    ],
)
def test_all_gpus_of_a_job_of_one_task_are_counted(words, gpus, ours, monkeypatch):
    """Slurm's one task would train on the first of them."""
    for name, value in {**TASKS, "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = {"accelerator": "auto", "devices": "auto", "num_nodes": 1}
    config |= {"plugins": None, "strategy": "auto"}
    config |= dict(word.split("=") for word in words)
    assert bool(in_slurm(config)) is ours


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["limit_train_batches=0.5"], "an int, the number of batches, or 1.0"),
        (["overfit_batches=0.5"], "--trainer.overfit_batches: expected an int"),
        (["devices=99"], r"--trainer.devices: expected at most \d+, as there is no"),
        (["strategy=ddp_spawn"], "--trainer.strategy: expected one that starts"),
        (
            ["callbacks+=EarlyStopping", "callbacks.monitor=val_los"],
            "monitor of EarlyStopping: no metric 'val_los'. Did you mean 'val_loss'",
        ),
        (
            ["callbacks+=ModelCheckpoint", "callbacks.monitor=val_los"],
            "monitor of ModelCheckpoint: no metric 'val_los'",
        ),
        (
            ["enable_progress_bar=false", "callbacks+=RichProgressBar"],
            "--trainer.enable_progress_bar: ",
        ),
        (
            ["callbacks+=ModelCheckpoint", "callbacks.filename=best"],
            "filename of ModelCheckpoint: expected another than the run's own best",
        ),
        (["barebones=true", "profiler=simple"], "--trainer.barebones"),
        (["max_time=abc"], "--trainer.max_time: expected days:hours.* got abc"),
        (["max_time={hour: 1}"], "--trainer.max_time: expected days:hours"),
        (["callbacks+=LearningRateFinder"], "got LearningRateFinder. Set --model.opti"),
        (["callbacks+=BatchSizeFinder"], "got BatchSizeFinder. Set --data.batch_size"),
        (["callbacks+=BackboneFinetuning"], "got BackboneFinetuning. The network"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_in_a_sentence(words, said):
    """Before anything is simulated."""
    with pytest.raises(UserError, match=said):
        trainer_of(*(f"--trainer.{word}" for word in words))


def test_a_stop_that_fails_ends_the_run_with_its_error():
    """What waits for a batch would wait for ever."""
    trainer, data = mock.Mock(world_size=1), mock.Mock()
    data.stop.side_effect = ArithmeticError("no lock")
    with pytest.raises(ArithmeticError, match="no lock"), _graceful(trainer, data):
        signal.raise_signal(signal.SIGTERM)
        threading.Event().wait(60)
