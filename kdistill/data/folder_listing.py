"""Which pictures a folder holds: regular files, one folder per class, every real folder entered once."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
    """A picture file; ``stamp`` is its size, times and inode, by which a changed file is known."""

    path: Path
    label: int
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
        strange: What is neither a file nor a folder, and folders that were entered already, with
            the reason.
    """

    root: Path
    classes: tuple[str, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    strange: list[tuple[Path, str]] = field(default_factory=list)

    def notes(self, where: str) -> list[str]:
        """Return what is not read, one phrase each."""
        found = []
        if self.ignored:
            count = counted(sum(self.ignored.values()), "other file")
            found.append(
                f"{count} in {where} ignored "
                f"({', '.join(f'{n} {end}' for end, n in self.ignored.most_common())})"
            )
        if missing := [end for end in self.ignored if end in HEIF_SUFFIXES]:
            found.append(f'{" ".join(missing)} needs pip install "kdistill[heif]"')
        if self.outside:
            verb = (
                "belongs to no class and is"
                if len(self.outside) == 1
                else "belong to no class and are"
            )
            found.append(
                f"{counted(len(self.outside), 'file')} directly in {self.root} {verb} ignored "
                f"({_some(self.outside)})"
            )
        if self.empty:
            noun = "class folder" if len(self.empty) == 1 else "class folders"
            found.append(f"{noun} without a picture left out ({_some(self.empty)})")
        if self.strange:
            found.append(
                f"not read: {_some([f'{path} ({reason})' for path, reason in self.strange])}"
            )
        return found


def list_parts(root: Path) -> dict[str, Listing]:
    """Return the parts of ``root/<class>/**`` (``"train"`` alone) or ``root/{train,val,test}/<class>/**``.

    Raises:
        DataError: No class folder, or no picture in any of them.
    """
    folders, beside = _entries(root)
    named = {
        which: next((f for f in folders if f.name.lower() in names), None)
        for which, names in SPLITS.items()
    }
    roots = {which: folder for which, folder in named.items() if folder is not None}
    if "train" not in roots or not _entries(roots["train"])[0]:
        roots = {"train": root}
    # a link that leads to one of these from elsewhere would give a class the pictures of another
    own = [
        root,
        *roots.values(),
        *(folder for part in roots.values() for folder in _entries(part)[0]),
    ]
    visited = {_identity(folder) for folder in own}
    parts = {which: _list(folder, visited) for which, folder in roots.items()}
    if roots["train"] != root:
        _sort_out(beside, parts["train"])
    return parts


def _list(root: Path, visited: Visited) -> Listing:
    listing = Listing(root)
    folders, beside = _entries(root)
    _sort_out(beside, listing)
    if not folders:
        raise unusable(
            f"one folder per class in {root}", "none", f"sort the pictures into {root}/<class>/"
        )
    names = []
    for folder in folders:
        pictures = sorted(
            _walk(folder, len(names), listing, visited), key=lambda picture: picture.path
        )
        if pictures:
            names.append(folder.name)
            listing.pictures += pictures
        else:
            listing.empty.append(folder.name)
    if not names:
        raise unusable(f"pictures ({' '.join(SUFFIXES)}) in {root}", "none", "add some")
    listing.classes = tuple(names)
    return listing


def _walk(folder: Path, label: int, listing: Listing, visited: Visited) -> Iterator[Picture]:
    visible = (entry for entry in _scanned(folder) if not entry.name.startswith("."))
    for entry in sorted(visible, key=lambda entry: entry.name):
        path = Path(entry.path)
        status = _status(path)
        if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            listing.strange.append(
                (path, "a link that leads nowhere" if status is None else "not a regular file")
            )
        elif stat.S_ISDIR(status.st_mode):
            if _identity(path) in visited:
                listing.strange.append((path, "a link to a folder that is read already"))
                continue
            visited.add(_identity(path))
            yield from _walk(path, label, listing, visited)
        elif is_picture(entry.name):
            yield picture_at(path, label, status)
        else:
            listing.ignored[ending(entry.name)] += 1


def picture_at(path: Path, label: int, status: os.stat_result) -> Picture:
    """Return the entry of a regular file."""
    return Picture(
        path, label, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )


def ending(name: str) -> str:
    """Return ``".mov"``, or ``"without ending"``."""
    return Path(name).suffix.lower() or "without ending"


def _entries(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders in ``root`` and everything else, sorted, without hidden ones and those that archives leave behind."""
    visible = [entry for entry in _scanned(root) if not entry.name.startswith((".", "__"))]
    # not entry.is_dir(), which raises for a link to itself
    folders = {entry.path for entry in visible if os.path.isdir(entry.path)}
    return sorted(map(Path, folders)), sorted(
        Path(entry.path) for entry in visible if entry.path not in folders
    )


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        reason = f"{folder} ({error.strerror})"
        raise unusable(
            "folders that can be listed", reason, "change its permissions, or move it elsewhere"
        ) from error


def _sort_out(beside: list[Path], listing: Listing) -> None:
    for path in beside:
        if _status(path) is None:
            listing.strange.append((path, "a link that leads nowhere"))
        else:
            listing.outside.append(path.name)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
