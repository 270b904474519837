import os
import socket

import pytest

from kdistill.errors import DataError
from kdistill.files import append_regular, check_plain, read_regular


def refused(path, **options):
    with pytest.raises(OSError) as caught:
        read_regular(path, **options)
    return caught.value.strerror


def test_a_regular_file_is_read_and_a_large_one_is_not(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file") == read_regular(tmp_path / "file", limit=5) == b"12345"
    assert refused(tmp_path / "file", limit=4) == "5 bytes, more than the 4 that it may have"


def test_a_link_is_followed_only_if_asked(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert refused(tmp_path / "link") == "a symbolic link, which is not followed"
    assert read_regular(tmp_path / "link", follow=True) == b"x"
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert refused(tmp_path / "zero", follow=True) == "a device"


def test_what_is_no_file_is_neither_opened_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert refused(tmp_path / "socket") == "a socket"
    assert [refused(tmp_path / name) for name in ("pipe", "folder", "missing")] == [
        "a named pipe", "a folder", "No such file or directory",
    ]  # fmt: skip
    assert refused("/dev/zero") == "a device"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/dev/zero", "a/b", ".hidden", "a\\b", "a\n", "é", "x" * 101, 7, None],
)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(
        DataError,
        match=r"^index: expected plain names of files in the same folder, got .*restore it$",
    ):
        check_plain(name, "index")
    assert check_plain("expert-00001.safetensors", "index")


def test_lines_are_appended_to_a_regular_file_only(tmp_path):
    for line in ("1\n", "2\n"):
        append_regular(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_text() == "1\n2\n"
    (tmp_path / "link").symlink_to("lines")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        ("link", "a symbolic link, which is not followed"),
        ("pipe", "a named pipe"),
    ):
        with pytest.raises(OSError) as caught:
            append_regular(tmp_path / name, "3\n")
        assert caught.value.strerror == what
    assert (tmp_path / "lines").read_text() == "1\n2\n"
