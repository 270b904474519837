"""Files and folders on the disk: opened safely, written whole or not at all, used by one process at a time."""

from kdistill.files.atomic_write import (
    explained,
    new_folder,
    remove_leftovers,
    sync_folder,
    write_atomic,
)
from kdistill.files.folder_layout import FolderLayout
from kdistill.files.locks import locked, sole_use
from kdistill.files.regular_files import append_regular, check_plain, open_regular, read_regular

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
