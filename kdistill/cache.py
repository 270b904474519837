"""The cache of kdistill: where it is, and files in it that only their owner can write.

What is read from a cache is believed, so nobody else may have put it there.  Losing it costs time
only: what cannot be read is made again, what cannot be written is made again the next time.
"""

import hashlib
import json
import logging
import os
import stat
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from kdistill.errors import DataError
from kdistill.files import read_regular, remove_leftovers, write_atomic

_log = logging.getLogger("kdistill")
_refused: set[str] = set()
# what the decoders of cached files raise for damaged ones; DataError is a ValueError
_UNUSABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    SafetensorError,
)

T = TypeVar("T")


def cache_folder() -> Path:
    """Return ``$KDISTILL_CACHE``, or ``kdistill`` in the user's cache folder.

    Raises:
        RuntimeError: The user has no home folder.
    """
    if os.environ.get("KDISTILL_CACHE"):
        return Path(os.environ["KDISTILL_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kdistill"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdistill"


def folder_nbytes(folder: Path) -> int:
    """Return the size of the regular files in ``folder`` and below."""
    files = (Path(top, name).lstat() for top, _, names in os.walk(folder) for name in names)
    return sum(status.st_size for status in files if stat.S_ISREG(status.st_mode))


def digest_of(identity: Any, length: int = 16) -> str:
    """Return ``length`` hexadecimal digits that name what JSON text of ``identity`` describes."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class CacheFile:
    """One file of the cache.

    Attributes:
        folder: Name of its folder in the cache, such as ``"scores"``.
        name: File name, with a digest of all that decides the content and is not said inside.
        remedy: What happens without the file, as messages say it: ``"the images are scored
            again"``.
        max_bytes: Largest size that is read, or None.
        level: Logging level of the message that the file cannot be written.
    """

    folder: str
    name: str
    remedy: str
    max_bytes: int | None = None
    level: int = logging.WARNING

    @property
    def path(self) -> Path | None:
        """Where the file is; None for a user without a home folder."""
        with suppress(RuntimeError):
            return cache_folder() / self.folder / self.name
        return None

    def read(self, decode: Callable[[bytes, Path], T]) -> T | None:
        """Return what ``decode`` makes of the content and the path.

        Returns:
            None where there is no file, or (with a warning) none that can be used.
        """
        path = self.path
        if path is None or not os.path.lexists(path) or not is_trusted(path.parent):
            return None
        try:
            return decode(read_regular(path, limit=self.max_bytes, check=check_private), path)
        except _UNUSABLE as error:
            _log.warning("cache: %s; %s", _reason(error, path), self.remedy)
            return None

    def write(self, content: bytes) -> bool:
        """Write the file, and return whether that was possible; if not, the reason is logged."""
        path = self.path
        if path is None:
            _log.log(self.level, "cache: no cache folder; next time %s", self.remedy)
            return False
        if not is_trusted(path.parent):
            return False
        try:
            make_private(path.parent)
            remove_leftovers(path.parent)
            write_atomic(path, content, mode=0o600)
        except (OSError, DataError) as error:
            _log.log(self.level, "cache: %s; next time %s", _reason(error, path), self.remedy)
            return False
        return True


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, DataError):  # such a sentence names the file
        return str(error)
    return f"{path}: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can use, if it is missing; its parents are made as usual.

    Raises:
        OSError: It cannot be made.
        DataError: Others can write it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)


def check_private(path: str | Path, status: os.stat_result | None = None) -> None:
    """Refuse what somebody else could have written.

    Args:
        path: Regular file or folder.
        status: Status of the open file, where it is open.

    Raises:
        OSError: There is none.
        DataError: It belongs to another user, others can write it, or it is neither file nor
            folder.
    """
    status = status or os.lstat(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise DataError(f"{path}: expected a regular file or folder, got something else; delete it")
    if hasattr(os, "getuid") and (
        status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise DataError(
            f"{path}: expected a cache that only its owner can write, got one that others can "
            "write; chmod go-w it, or delete it"
        )


def is_trusted(folder: Path) -> bool:
    """Return whether what lies in a folder of the cache may be believed.

    One warning per process and folder says why it is not.  A folder that is missing is trusted:
    ``make_private`` makes it.
    """
    try:
        check_private(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, DataError) as error:
        if str(folder) not in _refused:
            _refused.add(str(folder))
            reason = _reason(error, folder)
            _log.warning("%s; what it holds is not used but made again", reason)
        return False
    return True
