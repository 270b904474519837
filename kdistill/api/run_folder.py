"""The folder that ``distill(out=...)`` works in: whether it may be used, and whether the run in it was interrupted."""

from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts import DistilledDataset, check_output
from kdistill.artifacts import snapshot_folder as snapshots
from kdistill.artifacts.artifact_folder import recorded_run
from kdistill.artifacts.checkpoint import checkpoint_meta
from kdistill.errors import ConfigError, DataError
from kdistill.files import write_atomic
from kdistill.runner import CHECKPOINT


def is_unfinished(folder: Path) -> bool:
    """Say whether ``folder`` holds an interrupted run: a checkpoint of a run that the artefact beside it does not record.

    An artefact of the same run that records fewer iterations counts as none.  Times of files have
    no part in it: a copy of a finished run is finished.
    """
    if not has_checkpoint(folder):
        return False
    artefact = recorded_run(folder)
    if artefact is None:
        return True
    meta = checkpoint_meta(folder / CHECKPOINT)
    if meta is None:
        return False  # nothing to go on from
    config, iterations = artefact
    done = meta.get("iteration")
    return meta.get("identity") != config or not isinstance(done, int) or done > iterations


def has_checkpoint(folder: Path) -> bool:
    """Say whether ``folder`` holds a checkpoint."""
    return any((folder / name).exists() for name in (CHECKPOINT, f"{CHECKPOINT}.prev"))


def check_folder(folder: str | Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder whose contents a run would lose or mix; nothing is changed.

    Raises:
        DataError: A file, or a folder with contents that no kdistill run left there.
        ConfigError: It holds an interrupted run or a finished set, and neither ``resume`` nor
            ``force`` is asked for; or a finished set without a checkpoint that ``resume`` could go
            on from.
    """
    folder = Path(folder)
    check_output(folder)
    artefact = recorded_run(folder)
    if force or (resume and (artefact is None or has_checkpoint(folder))):
        return
    if is_unfinished(folder):
        raise ConfigError(
            f"out: expected a folder without an interrupted run, got {folder}; continue it with "
            "resume=True, replace it with "
            "force=True, or choose another folder"
        )
    if artefact is not None:
        wanted = "a checkpoint to go on from" if resume else "a new folder"
        raise ConfigError(
            f"out: expected {wanted}, got {folder} with a finished set{_described(artefact[0])}; "
            "replace it with force=True, "
            "or choose another folder"
        )


def _described(config: dict[str, Any]) -> str:
    run = config.get("run")
    if not isinstance(run, dict) or not {"method", "ipc", "seed"} <= run.keys():
        return ""
    return f" ({run['method']}, {run['ipc']} per class, seed {run['seed']})"


def prepare(folder: Path, *, resume: bool, force: bool) -> None:
    """Make the folder ready for a run; unless it is resumed, checkpoints and snapshots of an earlier run go.

    Raises:
        DataError: The folder cannot be written, or as ``check_folder``.
        ConfigError: As ``check_folder``.
    """
    check_folder(folder, resume=resume, force=force)
    check_writable(folder)
    if not resume:
        for stale in folder.glob(f"{CHECKPOINT}*"):
            stale.unlink()
        snapshots.remove_snapshots(folder)


def check_writable(folder: Path) -> None:
    """Make a folder, and raise DataError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise DataError(
            f"out: expected a folder that can be written, got {folder} ({error.strerror}); choose "
            "another"
        ) from error


def same_artefact(folder: Path, small: DistilledDataset) -> DistilledDataset | None:
    """Return the artefact in ``folder`` if it holds these images already: a finished run keeps its evaluation."""
    if recorded_run(folder) is None:
        return None
    earlier = DistilledDataset.from_pretrained(folder)
    return (
        earlier
        if earlier.images.shape == small.images.shape and torch.equal(earlier.images, small.images)
        else None
    )
