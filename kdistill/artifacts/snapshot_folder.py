"""Snapshots of a run: the set as it was every k iterations, one file each in the folder ``snapshots`` of the run.

A snapshot holds what changes during a run, the images, the label logits and the learned rate; the
rest stands in the artefact. Files are written whole or not at all, and read only beside the
artefact whose configuration they name.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kdistill.artifacts.dataset import DistilledDataset
from kdistill.artifacts.tensors import decode, digest, encode, to_json
from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular, write_atomic

FOLDER = "snapshots"
MOST = 100  # snapshots of a run
_SCHEMA = 1
_HEADER_BYTES = 1 << 16  # of a snapshot beside its tensors
_NAME = re.compile(r"(\d{8})\.safetensors")


def check_every(every: int | None, out: str | Path | None) -> None:
    """Raise ConfigError unless snapshots, if they are asked for, have a distance and a place."""
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
    """Raise ConfigError if a run would leave more than ``MOST`` snapshots."""
    count = max(iterations - 1, 0) // every
    if count > MOST:
        least = -(-iterations // (MOST + 1))
        raise ConfigError(
            f"snapshot_every: expected at most {MOST} snapshots of {iterations} iterations, got "
            f"{count}; take {least} or more"
        )


def save_snapshot(run: Path, iteration: int, small: DistilledDataset) -> Path:
    """Write the set as it is after ``iteration`` iterations of the run in the folder ``run``.

    Raises:
        DataError: The place cannot be written, or the disk is full.
    """
    tensors = _tensors(small)
    about = {"schema_version": _SCHEMA, "iteration": iteration, "config": _identity(small)}
    path = _folder(run) / f"{iteration:08d}.safetensors"
    write_atomic(path, encode(tensors, {**about, "sha256": digest(tensors, about)}))
    return path


def snapshot_iterations(run: str | Path) -> list[int]:
    """Return the iterations of which the folder of a run holds a snapshot, rising."""
    folder = _folder(Path(run))
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def load_snapshot(run: str | Path, iteration: int) -> DistilledDataset:
    """Return the set of a finished run as it was after ``iteration`` iterations.

    Raises:
        ConfigError: There is no such snapshot; names those that there are.
        DataError: The run has no artefact, or the snapshot is damaged or of another run.
    """
    last = DistilledDataset.from_pretrained(run)
    there = snapshot_iterations(run)
    if iteration not in there:
        listed = ", ".join(map(str, there)) or "none at all"
        raise ConfigError(
            f"snapshot: expected an iteration of which {run} holds one ({listed}), got "
            f"{iteration}; distill with snapshot_every"
        )
    path = _folder(Path(run)) / f"{iteration:08d}.safetensors"
    try:
        data = read_regular(path, limit=last.nbytes + _HEADER_BYTES)
    except OSError as error:
        raise DataError(
            f"{path}: expected a snapshot, got: {error.strerror}; restore it or remove it"
        ) from error
    tensors, about = decode(data, path)
    checksum = about.pop("sha256", None) if isinstance(about, dict) else None
    if checksum != digest(tensors, about):
        raise DataError(
            f"{path}: expected the contents that its checksum names, got others; it was damaged: "
            "remove it"
        )
    if about.get("config") != _identity(last) or about.get("iteration") != iteration:
        raise DataError(
            f"{path}: expected a snapshot of the run in {run}, got one of another run; remove it"
        )
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if shapes != (
        expected := {name: list(tensor.shape) for name, tensor in _tensors(last).items()}
    ):
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
        (_folder(run) / f"{iteration:08d}.safetensors").unlink(missing_ok=True)


def _tensors(small: DistilledDataset) -> dict[str, Tensor]:
    tensors = {"images": small.images}
    if small.label_logits is not None:
        tensors["label_logits"] = small.label_logits
    if small.learned_lr is not None:
        tensors["learned_lr"] = torch.tensor(small.learned_lr, dtype=torch.float64)
    return tensors


def _folder(run: Path) -> Path:
    folder = run / FOLDER
    if folder.is_symlink():
        raise DataError(
            f"{folder}: expected a folder of this run, got a link to another place; remove the link"
        )
    return folder


def _identity(small: DistilledDataset) -> str:
    """Return what tells runs apart: settings and data, not the versions that a record of the machine holds."""
    return hashlib.sha256(
        to_json({key: small.config.get(key) for key in ("run", "source")})
    ).hexdigest()
