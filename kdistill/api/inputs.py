"""The inputs of verbs: folder, threads, device and images, checked before anything expensive."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset, load_data
from kdistill.errors import ConfigError, DataError
from kdistill.files import explained
from kdistill.status import note


def check_place(out: str | Path) -> None:
    """Raise for a folder that cannot be made or written; nothing is made yet."""
    if not isinstance(out, str | Path):
        raise ConfigError(
            f"out: expected the path of a folder, got {out!r}; leave it out to get the set alone"
        )
    folder = Path(out).absolute()
    with explained(folder):  # a name may be too long to be looked up
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "no permission" if nearest.is_dir() else f"{nearest} is no folder"
        raise DataError(
            f"out: expected a folder that can be written, got {out} ({reason}); choose another"
        )


def use(threads: int | None, device: str | torch.device | None = None) -> None:
    """Set the number of CPU threads, and refuse a device that torch does not have.

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


def load(data: ImageDataset | Any, quiet: bool = False) -> ImageDataset:
    """Return a data set that is in memory, loaded if it is not one yet.

    Raises:
        ConfigError: A data set that is streamed.
    """
    data = data if isinstance(data, ImageDataset) else load_data(data, quiet=quiet)
    data.check_in_memory()
    return data


def training_images(
    data: ImageDataset, validation: float, device: str | torch.device | None = None
) -> ImageDataset:
    """Return the data set without what a run holds out, on its device."""
    return data.holdout(validation)[0].to(device or data.train.images.device)


def check_class_counts(data: ImageDataset, ipc: int) -> None:
    """Say which classes have fewer than ``ipc`` training images.

    Raises:
        DataError: All classes have fewer, or one has none.
    """
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes)
    smallest = int(counts.argmin())
    small = [
        f"'{data.classes[k]}' ({int(counts[k])})"
        for k in (counts < ipc).nonzero().squeeze(1).tolist()
    ]
    if small and int(counts.min()) > 0 and int(counts.max()) >= ipc:
        named = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
        note(
            f"fewer than ipc={ipc} training images of {named}: their {ipc} synthetic images begin "
            "as copies of those, with a little noise"
        )
    elif small:
        raise DataError(
            f"distill: expected at least ipc={ipc} training images per class, got "
            f"{int(counts[smallest])} of '{data.classes[smallest]}'; lower ipc, hold out less with "
            "validation=, or add images"
        )


def initial_images(init: DistilledDataset | str | Path, data: ImageDataset, ipc: int) -> Tensor:
    """Return the images of an earlier set, normalised and class by class."""
    earlier = init if isinstance(init, DistilledDataset) else DistilledDataset.from_pretrained(init)
    wanted = (data.num_classes * ipc, data.channels, data.size, data.size)
    if tuple(earlier.images.shape) != wanted:
        raise ConfigError(
            f"init: expected images {list(wanted)}, got {list(earlier.images.shape)}; use a set of "
            "the same classes, ipc and size"
        )
    unnamed = tuple(map(str, range(data.num_classes)))
    if earlier.classes not in (unnamed, tuple(data.classes)) or set(earlier.counts) != {ipc}:
        raise ConfigError(
            f"init: expected {ipc} images of each of {', '.join(data.classes)}, got "
            f"{list(earlier.counts)} of {', '.join(earlier.classes)}; use a set that was made from "
            "the same classes"
        )
    order = torch.argsort(earlier.labels, stable=True)
    return data.transform.apply(earlier.images[order].to(data.train.images.device))
