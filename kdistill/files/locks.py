"""Locks against other processes and threads; a killed process lets go of its own.

A lock is held on a hidden file, which is removed when it is let go.  Where the file system has no
locks, nothing is held.
"""

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from kdistill.errors import ConfigError, DataError
from kdistill.files.atomic_write import explained

_log = logging.getLogger("kdistill")
LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_POLL = 0.1  # seconds


class _Mine(threading.local):
    """The lock files that this thread holds: it may enter again what it holds already."""

    def __init__(self) -> None:
        self.files: set[str] = set()


_mine = _Mine()


@contextmanager
def locked(path: str | Path, *, wait: bool | float = True) -> Iterator[bool]:
    """Hold the lock of ``path``, so that reading, changing and writing it is one step.

    The same thread may hold it several times over, unless it says that it does not wait.

    Args:
        path: File or folder; it need not exist, its parent is made.  The lock is that of
            ``.<name>.lock`` beside it.
        wait: Wait for the holder (for so many seconds, if it is a number); else yield False while
            there is one, even if it is this thread.

    Raises:
        DataError: The place cannot be written.
    """
    path = Path(path)
    with _held(path.with_name(f".{path.name[:200]}.lock"), wait) as is_mine:
        yield is_mine


@contextmanager
def sole_use(folder: str | Path, *, wait: float = 0.0) -> Iterator[None]:
    """Work in ``folder`` alone: a run for as long as it takes, a save for a moment.

    The same thread may enter several times over, so a run may save into its own folder.

    Args:
        folder: Made if it is missing.
        wait: Seconds to wait for the other.

    Raises:
        ConfigError: Another process or thread works in the folder.
        DataError: The place cannot be written.
    """
    folder = Path(folder)
    with _held(folder / LOCK, wait) as is_mine:
        if not is_mine:
            raise ConfigError(
                f"{folder}: expected a folder in which nothing else works, got one that another "
                "run is using; wait until it has "
                "finished, or choose another folder"
            )
        yield


@contextmanager
def _held(file: Path, wait: bool | float) -> Iterator[bool]:
    with ExitStack() as stack:
        with explained(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            is_mine = _enter(stack, os.path.realpath(file.parent) + os.sep + file.name, wait)
        yield is_mine


def _enter(stack: ExitStack, file: str, wait: bool | float) -> bool:
    if file in _mine.files:
        return wait is not False
    if os.path.islink(file):  # never opened: what it points to is not ours
        raise DataError(
            f"{file}: expected no lock or a regular file, got a symbolic link; delete it"
        )
    try:
        stack.enter_context(
            FileLock(file).acquire(
                timeout=-1.0 if wait is True else float(wait), poll_interval=_POLL
            )
        )
    except Timeout:
        return False
    except NotImplementedError:  # what filelock makes of ENOSYS: the file system has no locks
        return _unlocked(file)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return _unlocked(file)
    _mine.files.add(file)
    stack.callback(
        _let_go, file
    )  # before the lock itself: one who waits finds that the file is gone, and makes it anew
    return True


@cache
def _unlocked(file: str) -> bool:
    """Say, once per place, that nothing keeps other processes away there."""
    _log.warning(
        "%s: this file system has no locks; let no two processes work there at the same time",
        os.path.dirname(file),
    )
    return True


def _let_go(file: str) -> None:
    _mine.files.discard(file)
    with suppress(OSError):
        os.unlink(file)
