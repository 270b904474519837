import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdistill.artifacts import DistilledDataset, save_checkpoint, write_atomic
from kdistill.artifacts.atomic import _amount, locked, new_folder, remove_leftovers
from kdistill.errors import DataError


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, b"one")
    write_atomic(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_link_is_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file(tmp_path, disk_with_room_for):
    write_atomic(tmp_path / "file", b"old")
    with (
        disk_with_room_for(1000),
        pytest.raises(DataError, match=r"file: expected 100 kB of free disk space, got: .*unchanged"),
    ):
        write_atomic(tmp_path / "file", b"x" * 100_000)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_names_the_place_that_was_asked_for(tmp_path, disk_with_room_for):
    small = DistilledDataset(images=torch.rand(4, 1, 8, 8), labels=torch.arange(4))
    with disk_with_room_for(100):
        with pytest.raises(DataError, match=r"/set: expected \d+ kB of free disk space, got") as caught:
            small.save_pretrained(tmp_path / "set")
        assert "tmp:" not in str(caught.value) and ".next" not in str(caught.value)
        with pytest.raises(DataError, match=r"/state: expected 2 kB of free disk space, got"):
            save_checkpoint(tmp_path / "state", {"x": torch.zeros(400)}, {})


def test_sizes_have_a_unit_that_fits():
    assert [_amount(n) for n in (1, 999_999, 1_000_000, 2_500_000_000)] == ["1 kB", "1000 kB", "1.0 MB", "2.5 GB"]


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


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a") as staging:
        (staging / "x").write_text("1")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    (tmp_path / "a").mkdir()  # empty: may be used
    with new_folder(tmp_path / "a") as staging:
        (staging / "x").write_text("1")
    assert os.listdir(tmp_path / "a") == ["x"]
    with pytest.raises(DataError, match="expected a new or empty folder"), new_folder(tmp_path / "a"):
        pass


def test_leftovers_of_dead_processes_go_and_others_stay(tmp_path):
    code = "import os, sys; print(os.getpid())"
    dead = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    names = [f".file.{dead}-0.tmp", f"..file.{dead}-0.tmp.{dead}-1.tmp", f".file.{os.getpid()}-0.tmp", f".other.{dead}-0.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".file.{dead}-2.tmp").mkdir()
    remove_leftovers(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])
    remove_leftovers(Path(tmp_path / "missing" / "file"))


def test_a_lock_is_held_by_one_and_let_go(tmp_path):
    with locked(tmp_path / "new" / "file"), locked(tmp_path / "new" / "file", wait=False) as second:
        assert not second
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new" / "file"):
        raise ZeroDivisionError
    with locked(tmp_path / "new" / "file", wait=False) as again:
        assert again
    assert not (tmp_path / "new" / "file").exists()


def test_a_lock_in_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a place that can be written"), locked(tmp_path / "file" / "x"):
        pass
