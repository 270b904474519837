import json
import os

import pytest

from kdistill.errors import ConfigError, DataError
from kdistill.files import FolderLayout
from tests.files.test_locks import elsewhere

LAYOUT = FolderLayout(files=("a", "index"), last="index", others=json.loads)
OLD = {"a": b"old", "old": b"old", "index": b'["old"]'}
NEW = {"a": b"new", "new": b"new", "index": b'["new"]'}


def content(folder):
    names = {"index", "a", *json.loads(LAYOUT.read(folder, "index"))}
    return {name: LAYOUT.read(folder, name) for name in names}


@pytest.mark.parametrize("step", range(24))
def test_killed_at_any_step_the_old_files_or_the_new_ones_are_there(tmp_path, killed_at, step):
    LAYOUT.write(tmp_path, OLD)
    (tmp_path / "mine").write_bytes(b"mine")
    was_killed = killed_at(step, lambda: LAYOUT.write(tmp_path, NEW))
    assert content(tmp_path) in ([OLD, NEW] if was_killed else [NEW])
    LAYOUT.write(tmp_path, NEW)
    assert content(tmp_path) == NEW
    assert sorted(os.listdir(tmp_path)) == ["a", "index", "mine", "new"]
    assert was_killed or step > 12


def test_a_write_between_two_reads_is_not_taken_for_damage(tmp_path):
    LAYOUT.write(tmp_path, OLD)
    writes = [NEW]

    def act():
        index = LAYOUT.read(tmp_path, "index")
        if writes:
            LAYOUT.write(tmp_path, writes.pop())
        a = LAYOUT.read(tmp_path, "a")
        if a.decode() not in index.decode():
            raise DataError("they do not belong together")
        return index, a

    assert LAYOUT.read_together(tmp_path, act) == (NEW["index"], NEW["a"])
    (tmp_path / "a").write_bytes(b"damaged")
    with pytest.raises(DataError, match="do not belong together"):
        LAYOUT.read_together(tmp_path, act)


def test_a_link_in_the_place_of_prepared_files_moves_nothing(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "set"
    LAYOUT.write(victim, OLD)
    LAYOUT.write(folder, NEW)
    (folder / ".next").symlink_to(victim)
    for act in (
        lambda: LAYOUT.write(folder, NEW),
        lambda: LAYOUT.read(folder, "a"),
        lambda: LAYOUT.settle(folder),
    ):
        with pytest.raises(
            DataError,
            match=r"\.next: expected a folder that an interrupted save left, got a symbolic link",
        ):
            act()
    assert content(victim) == OLD


@pytest.mark.parametrize("odd", ["checkpoint", "link", "folder", "nothing named"])
def test_only_known_names_are_moved(tmp_path, odd):
    LAYOUT.write(tmp_path, OLD)
    ahead = tmp_path / ".next"
    ahead.mkdir()
    if odd != "nothing named":
        (ahead / "index").write_bytes(b"[]")
    if odd == "link":
        (tmp_path / "elsewhere").write_bytes(b"mine")
        (ahead / "a").symlink_to(tmp_path / "elsewhere")
    elif odd == "folder":
        (ahead / "a").mkdir()
    else:
        (ahead / ("a" if odd == "nothing named" else odd)).write_bytes(b"x")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(
        DataError,
        match=r"\.next: expected the files of an interrupted save, got one with .*; it was not",
    ):
        LAYOUT.write(tmp_path, NEW)
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "a").read_bytes() == b"old"


def test_names_in_the_last_file_lead_nowhere(tmp_path):
    (tmp_path / "victim").write_bytes(b"mine")
    folder = tmp_path / "set"
    LAYOUT.write(folder, {**OLD, "index": b'["../victim", "old"]'})
    LAYOUT.write(folder, NEW)
    assert (tmp_path / "victim").exists() and not (folder / "old").exists()


def test_a_full_disk_changes_nothing(tmp_path, disk_with_room_for):
    LAYOUT.write(tmp_path, OLD)
    with (
        disk_with_room_for(100),
        pytest.raises(DataError, match=r"expected 1\.0 kB of free disk space, got: .*unchanged"),
    ):
        LAYOUT.write(tmp_path, {**NEW, "new": b"x" * 1001})
    assert content(tmp_path) == OLD and sorted(os.listdir(tmp_path)) == ["a", "index", "old"]


def test_a_write_waits_for_another_and_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr("kdistill.files.shared_folders.PATIENCE", 0.0)
    LAYOUT.write(tmp_path, OLD)

    def write():
        with pytest.raises(ConfigError, match="another run is using"):
            LAYOUT.write(tmp_path, NEW)

    from kdistill.files import sole_use

    with sole_use(tmp_path):
        elsewhere(write)
        LAYOUT.write(tmp_path, NEW)  # a run saves into the folder that it holds
    assert content(tmp_path) == NEW
