"""Where a run without a folder of its own keeps its checkpoint: ``$KDISTILL_CACHE/runs``, until its set is returned.

The folder is named by settings, data and seed, so that ``resume=True`` finds it again.  The thread
count and versions are not
part of the name: the checkpoint itself says which of them differs.
"""

import itertools
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdistill.artifacts.checkpoint import load_checkpoint
from kdistill.cache import cache_folder, digest_of, make_private
from kdistill.errors import DataError
from kdistill.files import locked
from kdistill.runner import CHECKPOINT
from kdistill.status import note

_log = logging.getLogger("kdistill")
KEPT_DAYS = 30  # a checkpoint that nobody came back for


@dataclass
class Scratch:
    """The folder of one run.

    Attributes:
        folder: Held by this process alone; None where the cache cannot be written.
        resumes: Whether there is a checkpoint to go on from.
        is_finished: Set it when the set is about to be returned: the folder is then removed.
    """

    folder: Path | None = None
    resumes: bool = False
    is_finished: bool = False


@contextmanager
def scratch_folder(config: Mapping[str, Any], resume: bool) -> Iterator[Scratch]:
    """Give the folder of the run that ``config`` describes, and say its name.

    It stays after an interrupt, an error or a kill if there is a checkpoint in it.  A run that
    finishes removes it, and what earlier attempts at the same run left.

    Args:
        config: Its ``"run"`` and ``"source"`` name the folder.
        resume: Take the most advanced checkpoint of this run that no other process works on.
    """
    identity = {key: config[key] for key in ("run", "source")}
    run = config["run"]
    words = re.sub(
        r"[^A-Za-z0-9._+-]+",
        "_",
        f"{config['source']['name']}-{run['method']}-ipc{run['ipc']}-seed{run['seed']}",
    )
    base = f"{words[:80].lstrip('.')}-{digest_of(identity, 12)}"
    with ExitStack() as held:
        try:
            root = cache_folder() / "runs"
            make_private(root)  # a checkpoint in it is believed
            _drop_old(root)
            scratch = _claimed(root, base, resume, held)
        except (OSError, RuntimeError, DataError) as error:
            note(
                f"distill: no checkpoint is kept, as the cache cannot be used ({error}); name a "
                "folder with out="
            )
            scratch = Scratch()
        try:
            yield scratch
        finally:
            if scratch.folder is not None and (
                scratch.is_finished or not _has_checkpoint(scratch.folder)
            ):
                shutil.rmtree(scratch.folder, ignore_errors=True)
            if scratch.is_finished and scratch.folder is not None:
                _remove(_attempts(scratch.folder.parent, base))


def _claimed(root: Path, base: str, resume: bool, held: ExitStack) -> Scratch:
    """Return the folder to work in, locked."""
    there = sorted(((_iteration(folder), folder) for folder in _attempts(root, base)), reverse=True)
    if resume:
        for iteration, folder in there:
            if iteration >= 0 and _take(folder, held):
                note(f"distill: going on from iteration {iteration:,}, kept in {folder}")
                return Scratch(folder, resumes=True)
        _log.warning(
            "resume: no checkpoint of these settings, data and seed in %s; starting from the "
            "beginning",
            root,
        )
    for number in itertools.count(1):
        folder = root / (base if number == 1 else f"{base}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        if not _has_checkpoint(folder) and _take(folder, held):
            break
    note(
        f"distill: checkpoints are kept in {folder} until the set is returned; after an interrupt "
        "or a kill the same call with "
        "resume=True goes on from there"
    )
    if not resume and there and there[0][0] >= 0:
        note(
            f"distill: an earlier attempt stopped at iteration {there[0][0]:,}; resume=True would "
            "go on from there"
        )
    return Scratch(folder)


def _take(folder: Path, held: ExitStack) -> bool:
    """Hold the lock of ``folder`` for as long as ``held``, unless another process or thread has it."""
    with ExitStack() as mine:
        if mine.enter_context(locked(folder / CHECKPOINT, wait=False)):
            held.push(mine.pop_all())
            return True
    return False


def _attempts(root: Path, base: str) -> list[Path]:
    return [
        folder
        for folder in root.glob(f"{base}*")
        if folder.name == base or folder.name[len(base) :][:1] == "-"
    ]


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINT, f"{CHECKPOINT}.prev"))


def _iteration(folder: Path) -> int:
    """Return how far the checkpoint in ``folder`` is, -1 where there is none that can be read."""
    try:
        return (
            int(load_checkpoint(folder / CHECKPOINT)[1]["iteration"])
            if _has_checkpoint(folder)
            else -1
        )
    except (DataError, KeyError, TypeError, ValueError):
        return -1


def _drop_old(root: Path) -> None:
    oldest = time.time() - 86_400.0 * KEPT_DAYS
    stale = []
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(OSError):
            if (
                folder.is_dir()
                and max(entry.stat().st_mtime for entry in (folder, *folder.iterdir())) < oldest
            ):
                stale.append(folder)
    _remove(stale)


def _remove(folders: list[Path]) -> None:
    """Remove folders that no process works in."""
    for folder in folders:
        with suppress(OSError, DataError), ExitStack() as held:
            if _take(folder, held):
                shutil.rmtree(folder, ignore_errors=True)
