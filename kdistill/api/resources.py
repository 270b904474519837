"""Folder, threads and device of a verb, checked before anything expensive."""

import os
from pathlib import Path

import torch

from kdistill.errors import ConfigError, DataError
from kdistill.files import explained


def check_place(out: str | Path) -> None:
    """Raise for a folder that cannot be made or written; nothing is made yet."""
    if not isinstance(out, str | Path):
        raise ConfigError(
            f"out: expected the path of a folder, got {out!r}; leave it out to get the set alone"
        )
    folder = Path(out).absolute()
    with explained(folder):  # a name may be too long to be looked up
        there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "no permission" if there.is_dir() else f"{there} is no folder"
        raise DataError(
            f"out: expected a folder that can be written, got {out} ({reason}); choose another"
        )


def use(threads: int | None, device: str | torch.device | None = None) -> None:
    """Set the number of CPU threads, and refuse a device that is not there.

    Raises:
        ConfigError: Fewer than one thread or more than the machine can serve, or a device that this
            torch does not have.
    """
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ConfigError(
                f"threads: expected a whole number of at least 1, got {threads!r}; leave it out "
                "for all"
            )
        if threads > (most := max(64, 4 * (os.cpu_count() or 1))):
            raise ConfigError(
                f"threads: expected at most {most} on this machine, got {threads}; leave it out "
                "for one per core"
            )
        torch.set_num_threads(threads)
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device: expected one that this torch can use, got '{device}' ({reason}); try cpu"
            ) from error
