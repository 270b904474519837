"""Snapshots of a run: the set as it was every k iterations, one file each in ``snapshots``.

A snapshot holds what changes during a run, the images, the label logits and the learned learning
rate; the rest stands in the artefact.  Files are written whole or not at all, and read only beside
the artefact whose configuration they name.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kdistill.artifacts.contents import SetContents
from kdistill.artifacts.tensors import decode, digest, encode, to_json
from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular, write_atomic

T = TypeVar("T", bound=SetContents)

FOLDER = "snapshots"
MAX_SNAPSHOTS = 100  # of one run
_SCHEMA = 1
_HEADER_BYTES = 1 << 16  # of a snapshot beside its tensors
_NAME = re.compile(r"(\d{8})\.safetensors")


def check_every(every: int | None, out: str | Path | None) -> None:
    """Raise ConfigError unless snapshots, if asked for, have an interval and a place."""
    if every is None:
        return
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(
            f"snapshot_every: expected at least 1 iteration between snapshots, got {every!r}; 100 "
            "is usual"
        )
    if out is None:
        raise ConfigError(
            "snapshot_every: expected a folder to keep snapshots in, got none; pass out="
        )


def check_count(every: int, iterations: int) -> None:
    """Raise ConfigError if a run would leave more than ``MAX_SNAPSHOTS`` snapshots."""
    count = max(iterations - 1, 0) // every
    if count > MAX_SNAPSHOTS:
        least = -(-iterations // (MAX_SNAPSHOTS + 1))
        raise ConfigError(
            f"snapshot_every: expected at most {MAX_SNAPSHOTS} snapshots of {iterations} "
            f"iterations, got {count}; take {least} or more"
        )


def save_snapshot(run: Path, iteration: int, contents: SetContents) -> Path:
    """Write the set as it is after ``iteration`` iterations of the run in the folder ``run``.

    Raises:
        DataError: The place cannot be written, or the disk is full.
    """
    tensors, path = contents.learned(), _path(run, iteration)
    metadata = {"schema_version": _SCHEMA, "iteration": iteration, "config": _identity(contents)}
    write_atomic(path, encode(tensors, {**metadata, "sha256": digest(tensors, metadata)}))
    return path


def snapshot_iterations(run: str | Path) -> list[int]:
    """Return the iterations of which the folder of a run holds a snapshot, rising."""
    folder = _folder(Path(run))
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def load_snapshot(run: str | Path, iteration: int, last: T) -> T:
    """Return the set of a finished run as it was after ``iteration`` iterations.

    Args:
        run: Folder of the run.
        iteration: Iterations of the run.
        last: The artefact in ``run``.

    Raises:
        ConfigError: There is no such snapshot; names those that there are.
        DataError: The snapshot is damaged or of another run.
    """
    iterations = snapshot_iterations(run)
    if iteration not in iterations:
        listed = ", ".join(map(str, iterations)) or "none at all"
        raise ConfigError(
            f"snapshot: expected an iteration of which {run} holds one ({listed}), got "
            f"{iteration}; distill with snapshot_every"
        )
    path = _path(Path(run), iteration)
    try:
        data = read_regular(path, limit=last.nbytes + _HEADER_BYTES)
    except OSError as error:
        raise DataError(
            f"{path}: expected a snapshot, got: {error.strerror}; restore it or remove it"
        ) from error
    tensors, metadata = decode(data, path)
    if metadata.pop("sha256", None) != digest(tensors, metadata):
        raise DataError(
            f"{path}: expected the contents that its checksum names, got others; it was damaged: "
            "remove it"
        )
    if metadata.get("config") != _identity(last) or metadata.get("iteration") != iteration:
        raise DataError(
            f"{path}: expected a snapshot of the run in {run}, got one of another run; remove it"
        )
    shapes, expected = (
        {name: list(tensor.shape) for name, tensor in each.items()}
        for each in (tensors, last.learned())
    )
    if shapes != expected:
        raise DataError(
            f"{path}: expected the tensors of a snapshot {expected}, got {shapes}; it was changed: "
            "remove it"
        )
    return replace(
        last,
        images=tensors["images"],
        label_logits=tensors.get("label_logits"),
        learned_lr=tensors["learned_lr"].item() if "learned_lr" in tensors else None,
        metrics={"distillation": {"iterations": iteration, "snapshot": True}},
        files={},
    )


def remove_snapshots(run: Path) -> None:
    """Remove the snapshots that an earlier run left in a folder; anything else stays."""
    for iteration in snapshot_iterations(run):
        _path(run, iteration).unlink(missing_ok=True)


def _path(run: Path, iteration: int) -> Path:
    return _folder(run) / f"{iteration:08d}.safetensors"


def _folder(run: Path) -> Path:
    folder = run / FOLDER
    if folder.is_symlink():
        raise DataError(
            f"{folder}: expected a folder of this run, got a link to another place; remove the link"
        )
    return folder


def _identity(contents: SetContents) -> str:
    """Return a digest that tells runs apart: of settings and data, not of versions and machine."""
    identity = {key: contents.config.get(key) for key in ("run", "source")}
    return hashlib.sha256(to_json(identity)).hexdigest()
