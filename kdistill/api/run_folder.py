"""The folder of a run, named by the user or in the cache: whether it may be used, and its log.

A run without a folder of its own keeps its checkpoint in ``$KDISTILL_CACHE/runs`` until its set is
returned.  That folder is named by settings, data and seed, so that ``resume=True`` finds it again.
The thread count and versions are not part of the name: the checkpoint itself says which of them
differs.
"""

import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts import DistilledDataset, check_output
from kdistill.artifacts.artifact_folder import recorded_run
from kdistill.artifacts.checkpoint import checkpoint_meta, load_checkpoint
from kdistill.artifacts.snapshots import remove_snapshots
from kdistill.cache import cache_folder, digest_of, make_private
from kdistill.errors import ConfigError, DataError
from kdistill.files import append_regular, locked, read_regular, write_atomic
from kdistill.runner import CHECKPOINT
from kdistill.status import note

_log = logging.getLogger("kdistill")
KEPT_DAYS = 30  # a checkpoint that nobody came back for


def has_checkpoint(folder: Path) -> bool:
    """Say whether ``folder`` holds a checkpoint."""
    return any((folder / name).exists() for name in (CHECKPOINT, f"{CHECKPOINT}.prev"))


def is_unfinished(folder: Path) -> bool:
    """Say whether ``folder`` holds an interrupted run.

    That is a checkpoint of a run that the artefact beside it does not record.  An artefact of the
    same run that records fewer iterations counts as none.  Times of files have no part in it: a
    copy of a finished run is finished.
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
            "resume=True, replace it with force=True, or choose another folder"
        )
    if artefact is not None:
        wanted = "a checkpoint to go on from" if resume else "a new folder"
        run, described = artefact[0].get("run"), ""
        if isinstance(run, dict) and {"method", "ipc", "seed"} <= run.keys():
            described = f" ({run['method']}, {run['ipc']} per class, seed {run['seed']})"
        raise ConfigError(
            f"out: expected {wanted}, got {folder} with a finished set{described}; replace it with "
            "force=True, or choose another folder"
        )


def prepare(folder: Path, *, resume: bool, force: bool) -> None:
    """Make the folder ready for a run; a run that is not resumed removes what an earlier one left.

    Raises:
        DataError: The folder cannot be written, or as ``check_folder``.
        ConfigError: As ``check_folder``.
    """
    check_folder(folder, resume=resume, force=force)
    check_writable(folder)
    if not resume:
        for stale in folder.glob(f"{CHECKPOINT}*"):
            stale.unlink()
        remove_snapshots(folder)


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
    """Return the artefact in ``folder`` if it holds these images already, with its evaluation."""
    if recorded_run(folder) is None:
        return None
    earlier = type(small).from_pretrained(folder)
    return earlier if torch.equal(earlier.images, small.images) else None


class JsonLines:
    """A callback that appends one line of numbers to ``metrics.jsonl``.

    A resumed run replaces the lines of the iterations that it does again.
    """

    def __init__(self, path: Path, resume: bool):
        self.path, self.is_first = path, True
        if not resume:
            path.unlink(missing_ok=True)

    def __call__(self, progress: Any) -> None:
        """Append the numbers of ``progress``, all but its images."""
        row = {key: value for key, value in vars(progress).items() if key != "images"}
        try:
            if self.is_first and os.path.lexists(self.path):
                lines = read_regular(self.path).decode(errors="replace").splitlines()
                earlier = [f"{line}\n" for line in lines if _is_before(line, progress.iteration)]
                write_atomic(self.path, "".join(earlier).encode())
            self.is_first = False
            append_regular(self.path, json.dumps({**row, "time": time.time()}) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.path}: expected to append a line, got: {error.strerror}; free some space "
                "or move what is in the way, then continue with resume=True"
            ) from error


def _is_before(line: str, iteration: int) -> bool:
    """Say whether a line is whole and of an earlier iteration; a kill may have cut it short."""
    try:
        return bool(json.loads(line)["iteration"] < iteration)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


@dataclass
class Scratch:
    """The folder of a run in the cache.

    Attributes:
        folder: Held by this process alone; None where the cache cannot be written.
        resumes: Whether there is a checkpoint to go on from.
        is_finished: Set when the set is about to be returned: the folder is then removed.
    """

    folder: Path | None = None
    resumes: bool = False
    is_finished: bool = False


@contextmanager
def scratch_folder(config: Mapping[str, Any], resume: bool) -> Iterator[Scratch]:
    """Give the folder in the cache of the run that ``config`` describes, and say its name.

    It stays after an interrupt, an error or a kill if there is a checkpoint in it.  A run that
    finishes removes it, and what earlier attempts at the same run left.

    Args:
        config: Its ``"run"`` and ``"source"`` name the folder.
        resume: Take the most advanced checkpoint of this run that no other process works on.
    """
    run, source = config["run"], config["source"]
    words = f"{source['name']}-{run['method']}-ipc{run['ipc']}-seed{run['seed']}"
    words = re.sub(r"[^A-Za-z0-9._+-]+", "_", words)[:80].lstrip(".")
    base = f"{words}-{digest_of({'run': run, 'source': source}, 12)}"
    with ExitStack() as locks:
        try:
            root = cache_folder() / "runs"
            make_private(root)  # a checkpoint in it is believed
            _remove(folder for folder in root.iterdir() if _is_old(folder))
            scratch = _claim(root, base, resume, locks)
        except (OSError, RuntimeError, DataError) as error:
            note(
                f"distill: no checkpoint is kept, as the cache cannot be used ({error}); name a "
                "folder with out="
            )
            scratch = Scratch()
        try:
            yield scratch
        finally:
            folder = scratch.folder
            if folder is not None and (scratch.is_finished or not has_checkpoint(folder)):
                shutil.rmtree(folder, ignore_errors=True)
            if folder is not None and scratch.is_finished:
                _remove(_attempts(folder.parent, base))


def _claim(root: Path, base: str, resume: bool, locks: ExitStack) -> Scratch:
    """Return the folder to work in, locked."""
    attempts = [(_iteration(folder), folder) for folder in _attempts(root, base)]
    attempts = sorted((pair for pair in attempts if pair[0] >= 0), reverse=True)
    if resume:
        for iteration, folder in attempts:
            if _lock(folder, locks):
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
        if not has_checkpoint(folder) and _lock(folder, locks):
            break
    note(
        f"distill: checkpoints are kept in {folder} until the set is returned; after an interrupt "
        "or a kill the same call with resume=True goes on from there"
    )
    if attempts and not resume:
        note(
            f"distill: an earlier attempt stopped at iteration {attempts[0][0]:,}; resume=True "
            "would go on from there"
        )
    return Scratch(folder)


def _lock(folder: Path, locks: ExitStack) -> bool:
    """Hold the lock of ``folder`` for as long as ``locks``, unless something else has it."""
    with ExitStack() as own:
        if own.enter_context(locked(folder / CHECKPOINT, wait=False)):
            locks.push(own.pop_all())
            return True
    return False


def _attempts(root: Path, base: str) -> list[Path]:
    names = re.compile(rf"{re.escape(base)}(-.*)?")
    return [folder for folder in root.iterdir() if names.fullmatch(folder.name)]


def _iteration(folder: Path) -> int:
    """Return the iteration of the checkpoint in ``folder``, -1 where none can be read."""
    with suppress(DataError, KeyError, TypeError, ValueError):
        if has_checkpoint(folder):
            return int(load_checkpoint(folder / CHECKPOINT)[1]["iteration"])
    return -1


def _is_old(folder: Path) -> bool:
    """Say whether nothing in a folder of runs was changed lately."""
    with suppress(OSError):
        if folder.is_dir():
            latest = max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
            return latest < time.time() - 86_400.0 * KEPT_DAYS
    return False


def _remove(folders: Iterable[Path]) -> None:
    """Remove folders that no process works in."""
    for folder in list(folders):
        with suppress(OSError, DataError), ExitStack() as locks:
            if _lock(folder, locks):
                shutil.rmtree(folder, ignore_errors=True)
