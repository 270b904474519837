"""The one way to open a file that another file, a folder or a cache names.

Such a name may come from a stranger: it must be a plain file name, and what it names a regular
    file.  A symbolic link is not
followed, a named pipe does not block, a device is not touched.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from kdistill.errors import DataError

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
JSON_LIMIT = 1 << 26  # bytes of a description, an index or a table of metrics
_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
)
_APPEND = _FLAGS & ~os.O_RDONLY | os.O_WRONLY | os.O_APPEND | os.O_CREAT
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    stat.S_IFLNK: "a symbolic link, which is not followed",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_plain(name: object, where: str | Path) -> str:
    """Return ``name`` if it is a plain file name: no folder, not hidden, ASCII, at most 100 characters.

    Raises:
        DataError: It is not; ``where`` says which file names it.
    """
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise DataError(
            f"{where}: expected plain names of files in the same folder, got {str(name)[:60]!r}; "
            "the file was changed: restore it"
        )
    return name


def open_regular(path: str | Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: File; its folder may be reached through links.
        follow: Follow a symbolic link at ``path`` itself: for paths that the user names, never for
            names read from a file.

    Raises:
        OSError: There is none, it cannot be read, or it is no regular file; ``strerror`` is part of
            a sentence.
    """
    _check_kind(os.stat(path, follow_symlinks=follow), path)
    handle = os.open(path, _FLAGS | (0 if follow else _NO_FOLLOW))
    try:
        _check_kind(os.fstat(handle), path)  # again: it may have been exchanged in between
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, *, limit: int | None = None, follow: bool = False) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: As ``open_regular``, or the file is larger; it has not been read then.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise OSError(
                errno.EFBIG, f"{size:,} bytes, more than the {limit:,} that it may have", str(path)
            )
        return file.read()


def append_regular(path: Path, text: str) -> None:
    """Append to a regular file, which is made if it is missing.

    Raises:
        OSError: It is no regular file (a symbolic link counts), or it cannot be written.
    """
    check_replaceable(path)
    if path.is_symlink():
        raise OSError(errno.EINVAL, _KINDS[stat.S_IFLNK], str(path))
    with open(os.open(path, _APPEND | _NO_FOLLOW, 0o666), "a", encoding="utf-8") as file:
        _check_kind(os.fstat(file.fileno()), path)
        file.write(text)


def check_replaceable(path: Path) -> None:
    """Raise OSError if ``path`` is something that writing a file must not replace: a folder, a named pipe, a device."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not (
        stat.S_ISREG(mode) or stat.S_ISLNK(mode)
    ):  # the link itself is replaced, not what it points to
        raise OSError(errno.EINVAL, _KINDS.get(stat.S_IFMT(mode), "no regular file"), str(path))


def _check_kind(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(
            errno.EINVAL, _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file"), str(path)
        )
