"""The cache: where it is, what is trusted in it, and what happens without it."""

import logging
import sys
from pathlib import Path

import pytest

from kdistill.cache import CacheFile, cache_folder, digest_of

FILE = CacheFile("things", "one.txt", "the thing is made again", max_bytes=100)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "things" / "one.txt"


def as_text(content: bytes, path: Path) -> str:
    return content.decode()


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("KDISTILL_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "kdistill"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "kdistill"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "kdistill"


def test_a_digest_does_not_depend_on_the_order_of_the_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1})
    assert len(digest_of({}, 32)) == 32 and digest_of({}, 32).startswith(digest_of({}))


def test_a_file_is_written_for_its_owner_and_read_again(place, caplog):
    assert FILE.read(as_text) is None
    assert FILE.write(b"content") and FILE.path == place and FILE.read(as_text) == "content"
    assert place.stat().st_mode & 0o777 == 0o600
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in place.parent.iterdir()] == ["one.txt"] and not caplog.records


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("not text", "invalid start byte"),
        ("too large", "more than the 100 that it may have"),
        ("others can write", "got one that others can write; chmod go-w it, or delete it"),
        ("a link", "a symbolic link, which is not followed"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_and_replaced(place, tmp_path, caplog, damage, reason):
    FILE.write(b"content")
    if damage == "others can write":
        place.chmod(0o666)
    elif damage == "a link":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.write_bytes({"not text": b"\xff", "too large": b"x" * 101}[damage])
    assert FILE.read(as_text) is None
    assert reason in caplog.text and f"{place}: " in caplog.text
    assert caplog.text.endswith("; the thing is made again\n")
    assert FILE.write(b"content") and FILE.read(as_text) == "content"


def test_a_folder_that_others_can_write_is_neither_read_nor_written(place, caplog):
    FILE.write(b"content")
    place.parent.chmod(0o777)
    assert FILE.read(as_text) is None and not FILE.write(b"other")
    assert place.read_bytes() == b"content"
    (record,) = caplog.records
    assert "what it holds is not used but made again" in record.getMessage()


def test_a_place_that_cannot_be_written_is_said_and_survived(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KDISTILL_CACHE", str(tmp_path / "file"))
    assert FILE.read(as_text) is None and not FILE.write(b"content")
    assert "next time the thing is made again" in caplog.text


def test_a_user_without_a_home_folder_has_no_cache(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KDISTILL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    quiet = CacheFile("things", "one.txt", "the thing is made again", level=logging.DEBUG)
    assert FILE.path is None and FILE.read(as_text) is None and not quiet.write(b"content")
    assert not caplog.records and not FILE.write(b"content")
    assert "no cache folder; next time the thing is made again" in caplog.text
