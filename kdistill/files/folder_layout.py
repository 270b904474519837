"""Folders of several files that change together: the old files or the new ones, never a mixture.

The new files are prepared under a temporary name, which becomes ``.next`` in one rename: from then
on they count, and readers look there first.  They are moved to their places one by one, the one
that names the others last; if that is interrupted, the next write completes it.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kdistill.errors import DataError
from kdistill.files.atomic_write import (
    explained,
    new_folder,
    remove_leftovers,
    sync_folder,
    write_new,
)
from kdistill.files.locks import sole_use
from kdistill.files.regular_files import JSON_LIMIT, PLAIN_NAME, read_regular

NEXT = ".next"
T = TypeVar("T")
PATIENCE = 10.0  # seconds that a write waits for another one


def no_others(content: bytes) -> Iterable[str]:
    """Name no files beside the fixed ones."""
    return ()


@dataclass(frozen=True)
class FolderLayout:
    """What a kind of folder may hold.

    Attributes:
        files: Names that every folder of the kind may have.
        last: The one of them that is moved last: while it is in ``.next``, what lies there counts.
        others: From the content of ``last`` to further file names that it names; only plain ones
            are used.
    """

    files: tuple[str, ...]
    last: str
    others: Callable[[bytes], Iterable[str]] = no_others

    def write(self, folder: str | Path, contents: Mapping[str, bytes]) -> None:
        """Write ``contents`` in the place of the files of this kind that are there; other files stay.

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
        """Return what ``act`` makes of several files; done again if a write came between its reads."""
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
        """Say whether there is a file of that name."""
        ahead = _ahead(Path(folder))
        return (ahead is not None and (ahead / name).exists()) or os.path.lexists(
            Path(folder) / name
        )

    def settle(self, folder: Path) -> None:
        """Move the files of a write that counts to their places; also completes one that was killed here.

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
                "not made by kdistill: look at "
                "it, and delete it"
            )
        return set(regular)

    def _named_by(self, folder: Path) -> set[str]:
        """Return the files beside those that all have, as the last one names them."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            named = self.others(read_regular(folder / self.last, limit=JSON_LIMIT))
            return {
                name for name in named if isinstance(name, str) and PLAIN_NAME.fullmatch(name)
            } - {*self.files}
        return set()


def _ahead(folder: Path) -> Path | None:
    """Return ``.next``, if it is there.

    Raises:
        DataError: It is a symbolic link or a file: what it points to is not of this folder.
    """
    ahead = folder / NEXT
    try:
        mode = os.lstat(ahead).st_mode
    except OSError:
        return None
    if not stat.S_ISDIR(mode):
        got = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
        raise DataError(
            f"{ahead}: expected a folder that an interrupted save left, got {got}; delete it"
        )
    return ahead
