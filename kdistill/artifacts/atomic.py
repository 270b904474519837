"""Files and folders that appear whole or not at all.

Everything is written under a temporary name beside its place, flushed to the disk, and moved there with one atomic rename; an
interrupted or failed write leaves what was there before.
"""

import errno
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdistill.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: without locks, as on file systems that have none
    fcntl = None  # type: ignore[assignment]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_counter = itertools.count()


class _Unwritten(DataError):
    """What ``explained`` raises: an enclosing ``explained``, which knows the place that the user named, says it again."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the new one, never a part.

    Missing parent folders are made; a symbolic link is followed, so the file it points to is replaced.

    Raises:
        DataError: The place cannot be written, or the disk is full; a file that was there is unchanged.
    """
    path = Path(os.path.realpath(path))
    with explained(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, handle = _open_beside(path)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends without an error, it becomes ``path``.

    Raises:
        DataError: ``path`` exists and is no empty folder, cannot be written, or the disk is full; nothing is left behind.
    """
    path = Path(os.path.realpath(path))
    with explained(path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise DataError(f"{path}: expected a new or empty folder, got one with contents; choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
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
def locked(path: str | Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path`` against other processes and threads, so that reading, changing and writing it is one step.

    The lock is that of a hidden file beside ``path``, which stays; a killed process lets go of it.  Where the file system has
    no locks, nothing is held.

    Args:
        path: File or folder; it need not exist.
        wait: Wait for the holder; else yield False while there is one.

    Raises:
        DataError: The place cannot be written.
    """
    path = Path(os.path.realpath(path))
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name[:200]}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _take_lock(handle, wait)
    finally:
        os.close(handle)


def _take_lock(handle: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


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
            f"{path}: expected a place that can be written, got: {reason}; check the path and its permissions"
        ) from error


def _amount(nbytes: int) -> str:
    if nbytes < 1e6:
        return f"{math.ceil(nbytes / 1e3)} kB"
    return f"{nbytes / 1e6:.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:.1f} GB"


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no running process uses."""
    return path.with_name(f".{path.name[:100]}.{os.getpid()}-{next(_counter)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that processes of this machine left when they were killed."""
    pattern = re.compile(rf"\.+{re.escape(path.name[:100])}\.(\d+)-\d+\.tmp.*")  # also the temporary file of a temporary file
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        found = pattern.fullmatch(entry.name)
        if found is None or _is_running(int(found[1])):
            continue
        with suppress(OSError):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


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


def _open_beside(path: Path) -> tuple[Path, int]:
    while True:  # a crashed process with our number may have left a file: take the next name
        temporary = temporary_name(path)
        with suppress(FileExistsError):
            return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
