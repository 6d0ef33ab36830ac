"""Folders that one process writes into, and files that are complete or absent."""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from surrogate_flow.files import LOCK, DirectoryLock, own_folder, write_atomically

HOLD = """
import sys
from pathlib import Path
from surrogate_flow.files import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print(lock.acquired, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path, holder):
    for _ in range(2):
        lock = DirectoryLock(tmp_path)
        assert not lock.acquired
        assert f"process {holder.pid} on " in lock.holder
    holder.kill()
    holder.wait()
    lock = DirectoryLock(tmp_path)
    assert (lock.acquired, lock.holder) == (True, "")
    lock.release(remove=True)
    assert not (tmp_path / LOCK).exists()


def test_a_folder_without_room_for_a_lock_has_no_holder(tmp_path):
    (tmp_path / "file").touch()
    lock = DirectoryLock(tmp_path / "file" / "folder")
    assert (lock.acquired, lock.holder) == (False, "")
    lock.release()


OWN = """
import sys
from surrogate_flow.files import own_folder
with own_folder(sys.argv[2], sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_processes_go_with_the_next_run(tmp_path, monkeypatch):
    """Not those of living ones, others, or other machines, nor data sets called so."""
    with ExitStack() as ended:

        def own(kind):
            process = ended.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OWN, str(tmp_path), kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            ended.callback(process.kill)
            return process, Path(process.stdout.readline().strip())

        (first, left), (second, also) = own("plan-"), own("")
        _, lives = own("plan-")
        for killed in (first, second):
            killed.kill()
            killed.wait()
        (owner,) = left.iterdir()
        elsewhere, renamed, data, results = (
            tmp_path / f"flow-{name}"
            for name in ("plan-elsewher", "renamed", "held_out", "results")
        )
        for folder in (elsewhere, renamed):
            shutil.copytree(left, folder)
        (elsewhere / owner.name).write_text("process 1 on another.machine")
        for folder in (data, results):
            folder.mkdir()
            # As an import leaves it that was killed.
            shutil.copy(owner, folder / LOCK)
        kept = {lives, elsewhere, renamed, data, results}
        with monkeypatch.context() as patch, own_folder("", str(tmp_path)) as mine:
            assert set(tmp_path.iterdir()) == {*kept, mine}
            shutil.copytree(elsewhere, left)
            shutil.copy(lives / owner.name, left)
            other = os.getuid() + 1
            patch.setattr(os, "getuid", lambda: other)
            with own_folder("", str(tmp_path)):
                assert left.is_dir()
        with own_folder("", str(tmp_path)) as mine:
            assert set(tmp_path.iterdir()) == {*kept, mine}
        assert not also.exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_fails_leaves_the_one_before(tmp_path, linked):
    path = target = tmp_path / "file"
    if linked:
        (tmp_path / "there").mkdir()
        target = tmp_path / "there" / "file"
        path.symlink_to(target)
    with write_atomically(path, sync=True) as part:
        part.write_text("first", "utf-8")
    with pytest.raises(RuntimeError, match="no room"), write_atomically(path) as part:
        part.write_text("second", "utf-8")
        raise RuntimeError("no room")
    assert path.read_text("utf-8") == "first"
    assert [p.name for p in target.parent.iterdir() if p.is_file()] == ["file"]
    assert path.is_symlink() == linked
