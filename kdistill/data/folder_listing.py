"""Which pictures a folder holds: regular files, one folder per class, every real folder entered once."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdistill.data.picture_files import HEIF_SUFFIXES, SUFFIXES, is_picture
from kdistill.data.raw_data import counted, unusable

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NAMED = 5  # files that a note names

Visited = set[tuple[int, int]]  # device and inode of every folder that is entered


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: Where it is.
        label: Number of its class, or the label that a list gives it.
        stamp: Size, times and inode, by which a changed file is recognised.
    """

    path: Path
    label: Any
    stamp: tuple[int, ...]


@dataclass
class Listing:
    """The pictures of one part, and what is not read.

    Attributes:
        root: Folder of the part.
        classes: Names of the class folders that hold a picture, sorted.
        pictures: Class by class, each sorted by path.
        ignored: Endings of files that are no pictures, counted.
        outside: Files that lie beside the class folders and belong to no class.
        empty: Class folders without a picture.
        strange: What is neither a file nor a folder, and folders that were entered already, each
            with the reason in brackets.
    """

    root: Path
    classes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def notes(self, where: str) -> list[str]:
        """Return what is not read, one phrase each."""
        notes = []
        if self.ignored:
            count = counted(sum(self.ignored.values()), "other file")
            endings = ", ".join(f"{n} {ending}" for ending, n in self.ignored.most_common())
            notes.append(f"{count} in {where} ignored ({endings})")
        if missing := [ending for ending in self.ignored if ending in HEIF_SUFFIXES]:
            notes.append(f'{" ".join(missing)} needs pip install "kdistill[heif]"')
        if self.outside:
            verbs = ("belongs", "is") if len(self.outside) == 1 else ("belong", "are")
            notes.append(
                f"{counted(len(self.outside), 'file')} directly in {self.root} {verbs[0]} to no "
                f"class and {verbs[1]} ignored ({_some(self.outside)})"
            )
        if self.empty:
            noun = "class folder" if len(self.empty) == 1 else "class folders"
            notes.append(f"{noun} without a picture left out ({_some(self.empty)})")
        if self.strange:
            notes.append(f"not read: {_some(self.strange)}")
        return notes

    def add_outside(self, beside: list[Path]) -> None:
        """Enter what lies beside the class folders."""
        for path in beside:
            if _status(path) is None:
                self.strange.append(f"{path} (a link that leads nowhere)")
            else:
                self.outside.append(path.name)


def list_parts(root: Path) -> dict[str, Listing]:
    """Return the parts of a folder of pictures.

    They are those of ``root/{train,val,test}/<class>/**``, or ``"train"`` alone of
    ``root/<class>/**``.

    Raises:
        DataError: No class folder, or no picture in any of them.
    """
    folders, beside = _entries(root)
    roots = {
        which: folder
        for which, names in SPLITS.items()
        if (folder := next((f for f in folders if f.name.lower() in names), None)) is not None
    }
    if "train" not in roots or not _entries(roots["train"])[0]:
        roots = {"train": root}
    # a link that leads to one of these from elsewhere would give a class the pictures of another
    classes = [folder for part in roots.values() for folder in _entries(part)[0]]
    visited = {_identity(folder.stat()) for folder in (root, *roots.values(), *classes)}
    parts = {which: _list(folder, visited) for which, folder in roots.items()}
    if roots["train"] != root:
        parts["train"].add_outside(beside)
    return parts


def _list(root: Path, visited: Visited) -> Listing:
    listing = Listing(root)
    folders, beside = _entries(root)
    listing.add_outside(beside)
    if not folders:
        fix = f"sort the pictures into {root}/<class>/"
        raise unusable(f"one folder per class in {root}", "none", fix)
    for folder in folders:
        pictures = list(_walk(folder, len(listing.classes), listing, visited))
        listing.pictures += sorted(pictures, key=lambda picture: picture.path)
        (listing.classes if pictures else listing.empty).append(folder.name)
    if not listing.classes:
        raise unusable(f"pictures ({' '.join(SUFFIXES)}) in {root}", "none", "add some")
    return listing


def _walk(folder: Path, label: int, listing: Listing, visited: Visited) -> Iterator[Picture]:
    visible = (entry for entry in _scanned(folder) if not entry.name.startswith("."))
    for entry in sorted(visible, key=lambda entry: entry.name):
        path = Path(entry.path)
        status = _status(path)
        if status is None:
            listing.strange.append(f"{path} (a link that leads nowhere)")
        elif stat.S_ISDIR(status.st_mode):
            if _identity(status) in visited:
                listing.strange.append(f"{path} (a link to a folder that is read already)")
                continue
            visited.add(_identity(status))
            yield from _walk(path, label, listing, visited)
        elif not stat.S_ISREG(status.st_mode):
            listing.strange.append(f"{path} (not a regular file)")
        elif is_picture(entry.name):
            yield picture_at(path, label, status)
        else:
            listing.ignored[path.suffix.lower() or "without ending"] += 1


def picture_at(path: Path, label: Any, status: os.stat_result) -> Picture:
    """Return the entry of a regular file."""
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Picture(path, label, stamp)


def _entries(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in ``root`` and everything else, each sorted.

    Hidden entries and those that archives leave behind are left out.
    """
    visible = [entry for entry in _scanned(root) if not entry.name.startswith((".", "__"))]
    # not entry.is_dir(), which raises for a link to itself
    folders = {entry.path for entry in visible if os.path.isdir(entry.path)}
    beside = (Path(entry.path) for entry in visible if entry.path not in folders)
    return sorted(map(Path, folders)), sorted(beside)


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        got, fix = f"{folder} ({error.strerror})", "change its permissions, or move it elsewhere"
        raise unusable("folders that can be listed", got, fix) from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
