"""The folders of runs, and the checkpoint to go on from."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from surrogate_flow.data.checkpoint import is_steps_file, steps_files
from surrogate_flow.files import LOCK, DirectoryLock

__all__ = ["discard", "job_checkpoint", "last_checkpoint", "new_folder", "tidy"]

logger = logging.getLogger(__name__)

_GIVEN = "SURROGATE_FLOW_RUN"  # to the processes of a run's other ranks
_WATCHED = ("events.out.tfevents.", "telemetry")
_ROOM = 2**16  # bytes that a run writes at its very beginning


def new_folder(root: Path, workflow: str, kind: str = "") -> tuple[Path, list[Path]]:
    """Make the folder of a run, ``root/workflow/<time>[_job<id>][_kind]``.

    The id is that of Slurm. Runs that begin in the same second get folders of their
    own. All ranks of a run get the same: they inherit it, find it in Slurm's variables,
    or begin in the same second.

    Returns
    -------
    folder : Path
    made : list of Path
        The folders above it that were made for it, the nearest first.

    Raises
    ------
    RuntimeError
        If it cannot be made, or not be written.
    """
    if (given := os.environ.get(_GIVEN)) and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(given), []
    parent = root / workflow
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(_ROOM))
        folder = _claimed(parent, kind)
    except OSError as error:
        raise RuntimeError(
            f"The run's folder in {parent} cannot be written ({error}). Make room "
            "there, or name another place with --trainer.default_root_dir."
        ) from error
    os.environ[_GIVEN] = str(folder)
    return folder, made


def _claimed(parent: Path, kind: str) -> Path:
    job = os.environ.get("SLURM_JOB_ID", "")
    after = [f"job{job}" if job else "", kind]
    time = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if slurm or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Ranks that do not inherit it, and make it together.
        parts = [time]
        if slurm:
            step = os.environ.get("SLURM_STEP_ID", "0")
            parts = [f"step{step}", os.environ.get("SLURM_RESTART_COUNT", "")]
        folder = _named(parent, *parts, *after)
        folder.mkdir(exist_ok=True)
        return folder
    for number in itertools.count(1):
        folder = _named(parent, time if number == 1 else f"{time}-{number}", *after)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _named(parent: Path, *parts: str) -> Path:
    return parent / "_".join(part for part in parts if part)


def discard(folder: Path, made: Sequence[Path]) -> None:
    """Remove what a run has left that was refused before it began; a full one stays.

    Parameters
    ----------
    folder : Path
        Of the run. Until a run begins there are only the empty events of TensorBoard
        in it, and the first seconds of its telemetry.
    made : sequence of Path
        As `new_folder` returned it.
    """
    with contextlib.suppress(OSError):
        left = list(folder.glob("*"))
        if all(path.name.startswith(_WATCHED) for path in left):
            for path in left:
                path.unlink()
            for empty in (folder, *made):
                if empty.is_dir():
                    empty.rmdir()


def last_checkpoint(
    root: Path, workflow: str, name: str = "last", mine: Path | None = None
) -> Path:
    """Return the newest ``<name>.ckpt`` of all runs of a workflow but `mine`.

    Raises
    ------
    FileNotFoundError
        If no run has one.
    """
    found = _newest(root / workflow, f"*/checkpoints/{name}.ckpt")
    if found is None:
        raise FileNotFoundError(
            f"--ckpt_path {name}: no run in {root / workflow} has a checkpoint of that "
            "name. The first is written at the first validation; begin without "
            "--ckpt_path, or name a file."
        )
    for folder in (root / workflow).iterdir():
        # Of validate, test and predict there are no checkpoints.
        trains = folder.name.rpartition("_")[2] not in ("validate", "test", "predict")
        newer = trains and folder.name > found.parents[1].name
        if newer and folder != mine and not any(folder.glob("checkpoints/*.ckpt")):
            logger.warning(
                "%s is newer, but was cut off before its first checkpoint: this goes "
                "on with an older run.",
                folder,
            )
    return found


def tidy(checkpoint: Path) -> None:
    """Remove what a killed run had just written, and no checkpoint names.

    A run that is still alive is left alone, and so is a folder with files in it that no
    run has written.

    Parameters
    ----------
    checkpoint : Path
        To go on from; its folder is meant.
    """
    folder = checkpoint.parent
    lock = DirectoryLock(folder)
    try:
        if lock.acquired:
            _tidy(folder, checkpoint)
    finally:
        lock.release()


def _tidy(folder: Path, checkpoint: Path) -> None:
    for part in folder.glob("*.part"):
        part.unlink(missing_ok=True)
    named: set[str] = set()
    steps = {path for path in folder.iterdir() if is_steps_file(path.name)}
    checkpoints = {*folder.glob("*.ckpt"), checkpoint}
    if {*folder.iterdir()} - steps - checkpoints - {folder / LOCK}:
        return
    for path in checkpoints:
        try:
            saved = torch.load(path, "cpu", weights_only=True, mmap=True)
            named |= steps_files(saved)
        except Exception as error:
            # Damage has many kinds, and what such a checkpoint names is not known.
            logger.warning("%s cannot be read (%s).", path, type(error).__name__)
            return
    for path in steps:
        if path.name not in named:
            path.unlink(missing_ok=True)


def job_checkpoint(root: Path, workflow: str) -> Path | None:
    """Return the last checkpoint of this Slurm job, if it was requeued and has one."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") in ("", "0"):
        return None
    job = os.environ.get("SLURM_JOB_ID", "")
    return _newest(root / workflow, f"*_job{job}/checkpoints/last.ckpt")


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda p: p.stat().st_mtime_ns, default=None)
