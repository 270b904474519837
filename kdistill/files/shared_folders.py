"""Folders that several processes use: locks, and files that change together.

A lock is held on a hidden file, which is removed when it is released; a killed process releases its
own.  Where the file system has no locks, nothing is held.

Of files that change together a reader sees the old ones or the new ones, never a mixture.  The new
ones are prepared under a temporary name, which becomes ``.next`` in one rename: from then on they
count, and readers look there first.  They are moved to their places one by one, the one that names
the others last; if that is interrupted, the next write completes it.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from kdistill.errors import ConfigError, DataError
from kdistill.files.safe_files import (
    JSON_LIMIT,
    PLAIN_NAME,
    explained,
    new_folder,
    read_regular,
    remove_leftovers,
    sync_folder,
    write_new,
)

_log = logging.getLogger("kdistill")
LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_POLL = 0.1  # seconds
NEXT = ".next"
PATIENCE = 10.0  # seconds that a write waits for another one
# lock files, and the threads that hold them: a thread may enter again what it holds already
_holders: set[tuple[int, str]] = set()

T = TypeVar("T")


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
                "run is using; wait until it has finished, or choose another folder"
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
    holder = (threading.get_ident(), file)
    if holder in _holders:
        return wait is not False
    if os.path.islink(file):  # never opened: what it points to is not ours
        raise DataError(
            f"{file}: expected no lock or a regular file, got a symbolic link; delete it"
        )
    try:
        timeout = -1.0 if wait is True else float(wait)
        stack.enter_context(FileLock(file).acquire(timeout=timeout, poll_interval=_POLL))
    except Timeout:
        return False
    except (NotImplementedError, OSError) as error:  # filelock makes the first of ENOSYS
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        _warn_of_no_locks(os.path.dirname(file))
        return True
    _holders.add(holder)
    # before the lock itself: one who waits finds that the file is gone, and makes it anew
    stack.callback(_release, holder)
    return True


@cache
def _warn_of_no_locks(folder: str) -> None:
    """Warn, once per place, that nothing keeps other processes away there."""
    _log.warning(
        "%s: this file system has no locks; let no two processes work there at the same time",
        folder,
    )


def _release(holder: tuple[int, str]) -> None:
    _holders.discard(holder)
    with suppress(OSError):
        os.unlink(holder[1])


@dataclass(frozen=True)
class FolderLayout:
    """What a kind of folder may hold.

    Attributes:
        files: Names that every folder of the kind may have.
        last: The one of them that is moved last: while it is in ``.next``, what lies there counts.
        others: Function from the content of ``last`` to further file names that it names, or None;
            only plain ones are used.
    """

    files: tuple[str, ...]
    last: str
    others: Callable[[bytes], Iterable[str]] | None = None

    def write(self, folder: str | Path, contents: Mapping[str, bytes]) -> None:
        """Write ``contents`` in the place of the files of this kind that are there.

        Other files stay.

        Raises:
            ConfigError: Another process works in the folder.
            DataError: The place cannot be written, the disk is full, or ``.next`` is not what an
                interrupted write leaves; what was there is unchanged.
        """
        folder = Path(folder)
        with explained(folder, sum(map(len, contents.values()))), sole_use(folder, wait=PATIENCE):
            remove_leftovers(folder)
            self.settle(folder)
            with new_folder(folder / NEXT, follow=False) as staging:
                for name, content in contents.items():
                    write_new(staging / name, content)
                sync_folder(staging)
            self.settle(folder)

    def read(self, folder: str | Path, name: str, *, limit: int | None = None) -> bytes:
        """Return the content of a file: what was written last, even if its move was interrupted.

        Raises:
            OSError: As ``read_regular``.
            DataError: ``.next`` is no folder.
        """
        ahead = _ahead(Path(folder))
        if ahead is not None and (ahead / self.last).exists():
            with suppress(FileNotFoundError):  # moved already, maybe just now
                return read_regular(ahead / name, limit=limit)
        return read_regular(Path(folder) / name, limit=limit)

    def read_together(self, folder: str | Path, act: Callable[[], T]) -> T:
        """Return what ``act`` makes of several files.

        It is called again if a write came between its reads.
        """
        while True:
            before = self._content_of_last(Path(folder))
            try:
                return act()
            except DataError:
                if self._content_of_last(Path(folder)) == before:
                    raise

    def _content_of_last(self, folder: Path) -> bytes | None:
        with suppress(OSError, DataError):
            return self.read(folder, self.last, limit=JSON_LIMIT)
        return None

    def has(self, folder: str | Path, name: str) -> bool:
        """Return whether there is a file of that name."""
        folder = Path(folder)
        ahead = _ahead(folder)
        is_ahead = ahead is not None and (ahead / name).exists()
        return is_ahead or os.path.lexists(folder / name)

    def settle(self, folder: Path) -> None:
        """Move the files of a write that counts to their places.

        This also completes a write that was killed.

        Raises:
            DataError: ``.next`` is no folder, or holds something that no interrupted write leaves
                there; nothing is moved then.
        """
        ahead = _ahead(folder)
        if ahead is None:
            return
        names = self._names_in(ahead)
        if names:
            for name in self._named_by(folder) - self._named_by(ahead):
                (folder / name).unlink(missing_ok=True)
            for name in sorted(names, key=lambda name: (name == self.last, name)):
                os.replace(ahead / name, folder / name)
            sync_folder(folder)
        ahead.rmdir()

    def _names_in(self, ahead: Path) -> set[str]:
        with os.scandir(ahead) as entries:
            regular = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        known = {*self.files} | self._named_by(ahead)
        odd = sorted(
            name for name, is_regular in regular.items() if name not in known or not is_regular
        )
        if odd or (regular and self.last not in regular):
            what = f"'{odd[0]}'" if odd else f"no {self.last}"
            raise DataError(
                f"{ahead}: expected the files of an interrupted save, got one with {what}; it was "
                "not made by kdistill: look at it, and delete it"
            )
        return set(regular)

    def _named_by(self, folder: Path) -> set[str]:
        """Return the files beside those that all have, as the last one names them."""
        if self.others is None:
            return set()
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            named = self.others(read_regular(folder / self.last, limit=JSON_LIMIT))
            texts = {name for name in named if isinstance(name, str)}
            return {name for name in texts if PLAIN_NAME.fullmatch(name)} - {*self.files}
        return set()


def _ahead(folder: Path) -> Path | None:
    """Return ``.next``, if it is there.

    Raises:
        DataError: It is a symbolic link or a file: what it points to is not of this folder.
    """
    ahead = folder / NEXT
    if not os.path.lexists(ahead):
        return None
    if ahead.is_symlink() or not ahead.is_dir():
        got = "a symbolic link" if ahead.is_symlink() else "a file"
        raise DataError(
            f"{ahead}: expected a folder that an interrupted save left, got {got}; delete it"
        )
    return ahead
