"""Snapshots of a run: the set as it was every k iterations, and what was measured on it.

A snapshot is one file in ``snapshots``: it holds what changes during a run, the images, the label
logits and the learned learning rate; the rest stands in the artefact.  It is read only beside the
artefact whose configuration it names.  What was measured on it stands beside it in a table, which
is read only by the measurement whose identity it names.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kdistill.artifacts.contents import SetContents
from kdistill.artifacts.tensors import decode, digest, encode, parse_table, to_json
from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular, write_atomic

_log = logging.getLogger("kdistill")
T = TypeVar("T", bound=SetContents)

SCHEMA_VERSION = 1
SNAPSHOTS = "snapshots"
MAX_SNAPSHOTS = 100  # of one run
_SNAPSHOT_NAME = re.compile(r"(\d{8})\.safetensors")
_MEASURED_NAME = re.compile(r"\d{8}\.json")
_SNAPSHOT_HEADER = 1 << 16  # bytes of a snapshot beside its tensors, or of what was measured on it


def check_snapshot_every(
    every: int | None, out: str | Path | None, name: str = "snapshot_every"
) -> None:
    """Raise ConfigError unless snapshots, if asked for, have an interval and a place.

    Args:
        every: Iterations between two snapshots; None is none.
        out: Folder of the run.
        name: Argument by which the interval was asked for.
    """
    if every is None:
        return
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(
            f"{name}: expected at least 1 iteration between snapshots, got {every!r}; 100 is usual"
        )
    if out is None:
        raise ConfigError(f"{name}: expected a folder to keep snapshots in, got none; pass out=")


def check_snapshot_count(every: int, iterations: int, name: str = "snapshot_every") -> None:
    """Raise ConfigError if a run would leave more than ``MAX_SNAPSHOTS`` snapshots."""
    count = max(iterations - 1, 0) // every
    if count > MAX_SNAPSHOTS:
        least = -(-iterations // (MAX_SNAPSHOTS + 1))
        raise ConfigError(
            f"{name}: expected at most {MAX_SNAPSHOTS} snapshots of {iterations} iterations, got "
            f"{count}; take {least} or more"
        )


def save_snapshot(run: Path, iteration: int, contents: SetContents) -> Path:
    """Write the set as it is after ``iteration`` iterations of the run in the folder ``run``.

    Raises:
        DataError: The place cannot be written, or the disk is full.
    """
    tensors, path = contents.learned(), _snapshot_path(run, iteration)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "iteration": iteration,
        "config": _run_digest(contents),
    }
    write_atomic(path, encode(tensors, {**metadata, "sha256": digest(tensors, metadata)}))
    return path


def snapshot_iterations(run: str | Path) -> list[int]:
    """Return the iterations of which the folder of a run holds a snapshot, rising."""
    folder = _snapshot_folder(Path(run))
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _SNAPSHOT_NAME.fullmatch(name)))


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
    path = _snapshot_path(Path(run), iteration)
    try:
        data = read_regular(path, limit=last.nbytes + _SNAPSHOT_HEADER)
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
    if metadata.get("config") != _run_digest(last) or metadata.get("iteration") != iteration:
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


def save_measured(run: Path, iteration: int, identity: str, facts: Mapping[str, Any]) -> None:
    """Write what was measured on the set of ``iteration`` beside its snapshot.

    Args:
        run: Folder of the run.
        iteration: Iterations of the run that made the set.
        identity: Digest of everything that decides what was measured, the set included.
        facts: What was measured; JSON content.

    Raises:
        DataError: The place cannot be written, or the disk is full.
    """
    content = {"schema_version": SCHEMA_VERSION, "identity": identity, "facts": facts}
    write_atomic(_measured_path(run, iteration), to_json(content))


def load_measured(run: Path, iteration: int, identity: str) -> dict[str, Any] | None:
    """Return the facts that ``save_measured`` wrote for ``identity``.

    Returns:
        None where nothing was written, something else was measured, or (with a warning) the file is
        damaged: what it held can be measured again.
    """
    path = _measured_path(run, iteration)
    if not os.path.lexists(path):
        return None
    fix = "the set is evaluated again"
    try:
        content = parse_table(read_regular(path, limit=_SNAPSHOT_HEADER), path, fix)
    except (OSError, DataError) as error:
        reason = str(error) if isinstance(error, DataError) else f"{path}: {error}; {fix}"
        _log.warning("%s", reason)
        return None
    facts = content.get("facts")
    return facts if content.get("identity") == identity and isinstance(facts, dict) else None


def remove_snapshots(run: Path) -> None:
    """Remove what an earlier run left in its folder of snapshots; anything else stays."""
    folder = _snapshot_folder(run)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _SNAPSHOT_NAME.fullmatch(path.name) or _MEASURED_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _snapshot_path(run: Path, iteration: int) -> Path:
    return _snapshot_folder(run) / f"{iteration:08d}.safetensors"


def _measured_path(run: Path, iteration: int) -> Path:
    return _snapshot_path(run, iteration).with_suffix(".json")


def _snapshot_folder(run: Path) -> Path:
    folder = run / SNAPSHOTS
    if folder.is_symlink():
        raise DataError(
            f"{folder}: expected a folder of this run, got a link to another place; remove the link"
        )
    return folder


def _run_digest(contents: SetContents) -> str:
    """Return a digest that tells runs apart: of settings and data, not of versions and machine."""
    identity = {key: contents.config.get(key) for key in ("run", "source")}
    return hashlib.sha256(to_json(identity)).hexdigest()
