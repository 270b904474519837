import errno
import os
import secrets
import subprocess
import sys

import pytest
import torch

from kdistill.artifacts import DistilledDataset, save_checkpoint, write_atomic
from kdistill.errors import DataError
from kdistill.files import new_folder, remove_leftovers
from kdistill.files.safe_files import _machine, temporary_name


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_is_replaced_and_followed_only_where_the_user_named_it(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, b"one", follow=True)
    assert link.is_symlink() and target.read_bytes() == b"one"
    write_atomic(link, b"two")
    assert not link.is_symlink() and link.read_bytes() == b"two" and target.read_bytes() == b"one"


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError,
        match="pipe: expected a place that can be written, got: a named pipe; check the path",
    ):
        write_atomic(tmp_path / "pipe", b"x")


def test_temporary_names_cannot_be_guessed_and_are_not_followed(tmp_path, monkeypatch):
    assert temporary_name(tmp_path / "file") != temporary_name(tmp_path / "file")
    (tmp_path / "victim").write_bytes(b"mine")
    monkeypatch.setattr(secrets, "token_hex", lambda n: "0" * 2 * n)
    temporary_name(tmp_path / "file").symlink_to(tmp_path / "victim")
    with pytest.raises(DataError, match="got: File exists"):
        write_atomic(tmp_path / "file", b"x")
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_a_full_disk_leaves_the_old_file(tmp_path, disk_with_room_for):
    write_atomic(tmp_path / "file", b"old")
    with (
        disk_with_room_for(1000),
        pytest.raises(
            DataError, match=r"file: expected 100\.0 kB of free disk space, got: .*unchanged"
        ),
    ):
        write_atomic(tmp_path / "file", b"x" * 100_000)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_names_the_place_that_was_asked_for(tmp_path, disk_with_room_for):
    small = DistilledDataset(images=torch.rand(4, 1, 8, 8), labels=torch.arange(4))
    with disk_with_room_for(100):
        with pytest.raises(
            DataError, match=r"/set: expected [\d.]+ kB of free disk space, got"
        ) as caught:
            small.save_pretrained(tmp_path / "set")
        assert "tmp:" not in str(caught.value) and ".next" not in str(caught.value)
        with pytest.raises(DataError, match=r"/state: expected 1\.8 kB of free disk space, got"):
            save_checkpoint(tmp_path / "state", {"x": torch.zeros(400)}, {})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_and_quota_are_named(tmp_path, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="free disk space"):
        write_atomic(tmp_path / "file", b"x")
    assert not os.listdir(tmp_path)


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="expected a place that can be written"):
        write_atomic(tmp_path / "file" / "below", b"x")
    with pytest.raises(DataError, match="expected a place that can be written"):
        write_atomic(tmp_path, b"x")


def test_files_that_the_user_names_leave_nothing_of_killed_writers(tmp_path, killed_at):
    def fill():
        with new_folder(tmp_path / "folder") as staging:
            (staging / "x").write_text("1")

    for step, act in ((1, lambda: write_atomic(tmp_path / "file", b"x", follow=True)), (2, fill)):
        assert killed_at(step, act)
        assert [name.endswith(".tmp") for name in os.listdir(tmp_path)] == [True]
        write_atomic(tmp_path / "other", b"y", follow=True)
        assert os.listdir(tmp_path) == ["other"]
        (tmp_path / "other").unlink()


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a") as staging:
        (staging / "x").write_text("1")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    (tmp_path / "a").mkdir()  # empty: may be used
    with new_folder(tmp_path / "a") as staging:
        (staging / "x").write_text("1")
    assert os.listdir(tmp_path / "a") == ["x"]
    with (
        pytest.raises(DataError, match="expected a new or empty folder"),
        new_folder(tmp_path / "a"),
    ):
        pass


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine, token = _machine(), "0123456789abcdef"
    gone = [f".file.{machine}-{dead.pid}-{token}.tmp", f".other.{machine}-{dead.pid}-{token}.tmp"]
    stay = [
        f".file.{machine}-{os.getpid()}-{token}.tmp",
        f".file.00000000-{dead.pid}-{token}.tmp",
        ".mine.tmp",
    ]
    for name in [*gone, *stay]:
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / f".folder.{machine}-{dead.pid}-{token}.tmp"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)
    os.utime(tmp_path / stay[1], (0, 0))  # of another machine, long ago
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([stay[0], stay[2]])
    remove_leftovers(tmp_path / "missing")
