"""Caches that only their owner can write: what is read from them is believed, so nobody else may have put it there."""

import os
import stat
from pathlib import Path

from kdistill.errors import DataError


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can use, if it is missing; its parents are made as usual.

    Raises:
        OSError: It cannot be made.
        DataError: Others can write it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)


def check_private(path: Path, status: os.stat_result | None = None) -> None:
    """Refuse what somebody else could have written.

    Args:
        path: Regular file or folder.
        status: Of the open file, where it is open.

    Raises:
        OSError: There is none.
        DataError: It belongs to another user, others can write it, or it is neither file nor folder.
    """
    status = status or path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise DataError(f"{path}: expected a regular file or folder, got something else; delete it")
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise DataError(
            f"{path}: expected a cache that only its owner can write, got one that others can write; chmod go-w it, or delete it"
        )
