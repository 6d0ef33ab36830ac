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
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.names import RecipeError
from surrogate_flow.files import LOCK, DirectoryLock

__all__ = [
    "discard",
    "given_checkpoint",
    "job_checkpoint",
    "last_checkpoint",
    "new_folder",
    "newest",
    "tidy",
]

logger = logging.getLogger(__name__)

_GIVEN = "SURROGATE_FLOW_RUN"  # to the processes of a run's other ranks
# Written before anything is trained.
_EARLY = ("config.yaml", "events.out.tfevents.", "jobs", "run.json", "telemetry")
_ROOM = 2**16  # bytes that a run writes at its beginning


def new_folder(root: Path, workflow: str, kind: str = "") -> tuple[Path, list[Path]]:
    """Make the folder of a run, ``root/workflow/<time>[_job<id>][_kind]``.

    The id is that of Slurm. Runs that begin in the same second get different folders.
    All ranks of a run get the same: they inherit it, find it by Slurm's variables, or
    begin in the same second.

    Returns
    -------
    folder : Path
    made : list of Path
        The folders above it that were made for it, the nearest first.

    Raises
    ------
    UserError
        If it cannot be made, or not be written.
    """
    given = os.environ.get(_GIVEN)
    if given and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(given), []
    parent = root / workflow
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(bytes(_ROOM))
        folder = _make(parent, kind)
    except OSError as error:
        raise UserError(
            f"The run's folder in {parent} cannot be written ({error}). Make room "
            "there, or name another place with --trainer.default_root_dir."
        ) from error
    os.environ[_GIVEN] = str(folder)
    return folder, made


def _make(parent: Path, kind: str) -> Path:
    environ = os.environ
    name = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    slurm = int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if slurm:
        step = environ.get("SLURM_STEP_ID", "0")
        name = f"step{step}_{environ.get('SLURM_RESTART_COUNT', '')}".rstrip("_")
    job = environ.get("SLURM_JOB_ID", "")
    after = (f"_job{job}" if job else "") + (f"_{kind}" if kind else "")
    if slurm or int(environ.get("WORLD_SIZE", "1")) > 1:
        # Ranks that do not inherit it, and make it together.
        folder = parent / f"{name}{after}"
        folder.mkdir(exist_ok=True)
        return folder
    for number in itertools.count(1):
        folder = parent / f"{name}{f'-{number}' if number > 1 else ''}{after}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def discard(folder: Path, made: Sequence[Path]) -> None:
    """Remove the folder of a run that ended before it began; a full one stays.

    Parameters
    ----------
    folder : Path
        Until something is trained or fails there are only the settings, empty events of
        TensorBoard, the first seconds of telemetry and no job's log in it.
    made : sequence of Path
        As `new_folder` returned it.
    """
    left = [path for path in folder.rglob("*") if path != folder / "jobs"]
    with contextlib.suppress(OSError):
        if all(path.parent == folder and path.name.startswith(_EARLY) for path in left):
            for path in left:
                path.unlink()
            if (folder / "jobs").exists():
                (folder / "jobs").rmdir()
            for empty in (folder, *made):
                empty.rmdir()


def last_checkpoint(
    root: Path, workflow: str, name: str = "last", mine: Path | None = None
) -> Path:
    """Return the newest ``<name>.ckpt`` of all runs of a workflow but `mine`.

    Raises
    ------
    RecipeError
        If there is none.
    """
    found = newest(root / workflow, f"*/checkpoints/{name}.ckpt")
    if found is None:
        raise RecipeError(
            f"--ckpt_path {name}: no run in {root / workflow} has a checkpoint of that "
            "name. A fit writes the first at its first validation, and begins without "
            "--ckpt_path. Or name a file."
        )
    for folder in (root / workflow).iterdir():
        # validate, test and predict write no checkpoints.
        trains = folder.name.rpartition("_")[2] not in ("validate", "test", "predict")
        ended = (folder / "outcome.json").is_file()
        newer = trains and not ended and folder.name > found.parents[1].name
        if newer and folder != mine and not any(folder.glob("checkpoints/*.ckpt")):
            logger.warning(
                "%s is newer, but has no checkpoint: it runs, or was cut off before "
                "its first. This goes on with an older run.",
                folder,
            )
    return found


def tidy(checkpoint: Path) -> None:
    """Remove the files of a killed run that no checkpoint names.

    The folder of a run that still writes stays as it is, and so does one with files
    that no run has written.

    Parameters
    ----------
    checkpoint : Path
        Where to go on; files beside it are removed.
    """
    lock = DirectoryLock(checkpoint.parent)
    try:
        if lock.acquired:
            _tidy(checkpoint.parent, checkpoint)
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
            named |= steps_files(torch.load(path, "cpu", weights_only=True, mmap=True))
        except Exception as error:
            # Of any type, by the damage; the files that it names are not known.
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
    return newest(root / workflow, f"*_job{job}/checkpoints/last.ckpt")


def newest(folder: Path, pattern: str) -> Path | None:
    """Return the file of a pattern that was written last, if there is one."""
    return max(folder.glob(pattern), key=lambda p: p.stat().st_mtime_ns, default=None)


def given_checkpoint(path: str) -> str:
    """Return the path of a checkpoint; ``last`` and ``best`` are of the newest run."""
    named = path in ("last", "best")
    if named and (found := newest(Path("runs"), f"*/*/checkpoints/{path}.ckpt")):
        workflow = found.parents[2].name
        what = "From the checkpoint %s: the newest run of any workflow is of %s"
        logger.info(what, found, workflow)
        return str(found)
    return path
