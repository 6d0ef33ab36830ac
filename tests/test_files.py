"""Folders that one process writes into, and files that are complete or absent."""

import subprocess
import sys

import pytest

from surrogate_flow.files import LOCK, DirectoryLock, write_atomically

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
