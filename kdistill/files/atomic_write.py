"""Files and folders that appear whole or not at all.

Everything is written under a temporary name beside its place, flushed to the disk, and moved there
with one atomic rename; an interrupted or failed write leaves what was there before.
"""

import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from kdistill.errors import DataError
from kdistill.files.regular_files import check_replaceable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DAY = 86_400.0  # seconds
_CREATE = (
    os.O_WRONLY
    | os.O_CREAT
    | os.O_EXCL
    | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))
)
_TEMPORARY = re.compile(r"\.+(?s:.+)\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")


class _Unwritten(DataError):
    """What ``explained`` raises: an enclosing ``explained``, which knows the place that the user named, says it again."""


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
    with explained(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if follow:  # elsewhere the owner of the folder does it
            remove_leftovers(path.parent)
        check_replaceable(path)
        temporary = temporary_name(path)
        try:
            write_new(temporary, data, mode)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


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
        path.parent.mkdir(parents=True, exist_ok=True)
        if follow:
            remove_leftovers(path.parent)
        temporary = temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


@contextmanager
def explained(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors while writing ``path`` (``size`` bytes, if known) into one clear sentence.

    In nested blocks the outermost one names the place: what lies within is temporary.
    """
    try:
        yield
    except (OSError, _Unwritten) as caught:
        error = caught.__cause__ if isinstance(caught, _Unwritten) else caught
        assert isinstance(error, OSError)
        if error.errno in _FULL:
            wanted = "free disk space" if size is None else f"{_amount(size)} of free disk space"
            raise _Unwritten(
                f"{path}: expected {wanted}, got: {os.strerror(error.errno)}; "
                "free some or write elsewhere (what was there is unchanged)"
            ) from error
        reason = error.strerror or str(error)
        raise _Unwritten(
            f"{path}: expected a place that can be written, got: {reason}; check the path and its "
            "permissions"
        ) from error


def _amount(nbytes: int) -> str:
    if nbytes < 1e6:
        return f"{math.ceil(nbytes / 1e3)} kB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.1f} GB"


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside ``path`` that nobody can guess; it says which process of which machine it belongs to."""
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
            if not is_dead and time.time() - entry.lstat().st_mtime < _DAY:
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


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
