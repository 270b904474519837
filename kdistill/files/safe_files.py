"""Files that are opened safely, and files and folders that appear whole or not at all.

A name that another file, a folder or a cache holds may come from a stranger: it must be a plain
file name, and what it names a regular file.  A symbolic link is not followed, a named pipe does not
block, a device is not touched.

Everything is written under a temporary name beside its place, flushed to the disk, and moved there
with one atomic rename; an interrupted or failed write leaves what was there before.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from kdistill.errors import DataError
from kdistill.formatting import byte_count

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

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAY = 86_400.0  # seconds
_CREATE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
)
_TEMPORARY = re.compile(r"\.+(?s:.+)\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")


def check_plain(name: object, where: str | Path) -> str:
    """Return ``name`` if it is a plain file name.

    That has no folder, is not hidden, is ASCII and has at most 100 characters.

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


def read_regular(
    path: str | Path,
    *,
    limit: int | None = None,
    follow: bool = False,
    check: Callable[[str | Path, os.stat_result], None] | None = None,
) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: As for ``open_regular``.
        limit: Most bytes that it may have, or None.
        follow: As for ``open_regular``.
        check: Called with the path and the status of the open file before it is read, to refuse it.

    Raises:
        OSError: As ``open_regular``, or the file is larger; it has not been read then.
    """
    with open_regular(path, follow=follow) as file:
        status = os.fstat(file.fileno())
        if check is not None:
            check(path, status)
        size = status.st_size
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
    """Raise OSError if ``path`` is what a file must not replace: a folder, a pipe, a device."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):  # which is replaced itself
            _check_kind(status, path)


def _check_kind(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise OSError(errno.EINVAL, kind, str(path))


class _Unwritten(DataError):
    """What ``explained`` raises.

    An enclosing ``explained``, which knows the place that the user named, says it again.
    """


def write_atomic(path: str | Path, data: bytes, *, follow: bool = False, mode: int = 0o666) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the new one, never a part.

    Missing parent folders are made.

    Args:
        path: File.
        data: Its content.
        follow: Where ``path`` is a symbolic link, replace the file that it points to instead of the
            link: for paths that the user names.
        mode: Permissions of the file, less the umask.

    Raises:
        DataError: The place cannot be written, or the disk is full; a file that was there is
            unchanged.
    """
    path = Path(os.path.realpath(path)) if follow else Path(path)
    with explained(path, len(data)), _prepared(path, follow) as temporary:
        check_replaceable(path)
        write_new(temporary, data, mode)


def write_new(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that does not exist yet, through to the disk.

    Raises:
        OSError: There is something of that name (a symbolic link counts), or it cannot be written.
    """
    with open(os.open(path, _CREATE, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: str | Path, *, follow: bool = True) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends without an error, it becomes ``path``.

    Args:
        path: New, or an empty folder.
        follow: Where ``path`` is a symbolic link, replace the empty folder that it points to.

    Raises:
        DataError: ``path`` exists and is no empty folder, cannot be written, or the disk is full;
            nothing is left behind.
    """
    path = Path(os.path.realpath(path)) if follow else Path(path)
    with explained(path):
        if os.path.lexists(path) and (
            path.is_symlink() or not path.is_dir() or any(path.iterdir())
        ):
            raise DataError(
                f"{path}: expected a new or empty folder, got one with contents; choose another "
                "place"
            )
        with _prepared(path, follow) as temporary:
            temporary.mkdir()
            yield temporary


@contextmanager
def _prepared(path: Path, owns_parent: bool) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is made under it becomes ``path`` at the end.

    After an error nothing is left behind.

    Args:
        path: Place of the file or folder.
        owns_parent: Remove what killed processes left in its parent; of a parent that no path of
            the user names the owner does that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if owns_parent:
        remove_leftovers(path.parent)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(path.parent)


@contextmanager
def explained(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors while writing ``path`` into one clear sentence.

    In nested blocks the outermost one names the place: what lies within is temporary.

    Args:
        path: Place that is written.
        size: Bytes that are written, if that is known.
    """
    try:
        yield
    except (OSError, _Unwritten) as caught:
        error = caught.__cause__ if isinstance(caught, _Unwritten) else caught
        assert isinstance(error, OSError)
        if error.errno in _FULL:
            wanted = "free disk space" if size is None else f"{byte_count(size)} of free disk space"
            raise _Unwritten(
                f"{path}: expected {wanted}, got: {os.strerror(error.errno)}; free some or write "
                "elsewhere (what was there is unchanged)"
            ) from error
        reason = error.strerror or str(error)
        raise _Unwritten(
            f"{path}: expected a place that can be written, got: {reason}; check the path and its "
            "permissions"
        ) from error


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside ``path`` that nobody can guess.

    It says which process of which machine it belongs to.
    """
    return path.with_name(
        f".{path.name[:100]}.{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in ``folder`` that killed processes left.

    A process of another machine cannot be asked whether it lives, and a number may be that of a new
    process: what such ones left goes after a day.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        temporary = _TEMPORARY.fullmatch(entry.name)
        if temporary is None:
            continue
        with suppress(OSError):
            is_dead = temporary[1] == _machine() and not _is_running(int(temporary[2]))
            if is_dead or time.time() - entry.lstat().st_mtime >= _DAY:
                _remove(entry)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@cache
def _machine() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, as somebody else
    return True


def sync_folder(path: Path) -> None:
    """Make renames inside ``path`` survive a power cut, where the system can do that."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
