"""Files and folders: opened safely, written whole or not at all, used by one at a time."""

from kdistill.files.safe_files import (
    append_regular,
    check_plain,
    explained,
    new_folder,
    open_regular,
    read_regular,
    remove_leftovers,
    sync_folder,
    write_atomic,
)
from kdistill.files.shared_folders import FolderLayout, locked, sole_use

__all__ = [
    "FolderLayout",
    "append_regular",
    "check_plain",
    "explained",
    "locked",
    "new_folder",
    "open_regular",
    "read_regular",
    "remove_leftovers",
    "sole_use",
    "sync_folder",
    "write_atomic",
]
