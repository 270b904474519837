"""The settings of a run, and every check of them that needs no image."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kdistill import methods
from kdistill.artifacts import DistilledDataset
from kdistill.config import from_mapping
from kdistill.errors import ConfigError, DataError, ShapeError, did_you_mean
from kdistill.files import explained


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the result of a run; the ``run`` part of an artefact's ``config.json``.

    Attributes:
        data: What ``load_data`` was given, or the data set's name if that was not text.
        method: Name of the method.
        ipc: Images per class.
        seed: Seed of the run.
        preset: Named settings of the method, applied before ``options``.
        size: Side that images are resized to, or None.
        normalisation: ``"standard"``, ``"zca"`` or ``"none"``.
        validation: Share of the training data held out from distillation, for choosing among
            settings.
        mirrors: Whether the images may be mirrored; None guesses, as ``load_data`` does.
        options: The method's options.
    """

    data: str = ""
    method: str = "dm"
    ipc: int = 10
    seed: int = 0
    preset: str = "fast"
    size: int | None = None
    normalisation: str = "standard"
    validation: float = 0.1
    mirrors: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def resolve(method: str, preset: str, options: Mapping[str, Any]) -> Any:
    """Return the method's option dataclass: paper defaults, then the preset, then ``options``.

    Raises:
        ConfigError: Unknown method, preset or option (suggests the nearest), or a value of the
            wrong type.
    """
    found = methods.get(method)
    if not isinstance(options, Mapping):
        raise ConfigError(
            f"options: expected a table of names and values, got {options!r}; pass a dict"
        )
    if preset not in found.presets:
        raise ConfigError(
            f"preset: expected one of {method}'s, got '{preset}'; "
            f"{did_you_mean(preset, list(found.presets))}"
        )
    return from_mapping(
        found.config, {**found.presets[preset], **options}, where=f"options of {method}"
    )


def check_run(
    run: RunConfig,
    *,
    max_minutes: float | None = None,
    checkpoint_minutes: float = 1.0,
    init: Any = None,
    out: str | Path | None = None,
) -> Any:
    """Return the method's options, after every check of a run that is possible before its images are read.

    Raises:
        ConfigError: Unknown method, preset or option, a number out of range, or a size that the
            network does not take.
        DataError: ``out`` cannot be written.
    """
    config = resolve(run.method, run.preset, run.options)
    check_ranges(run.ipc, run.validation, max_minutes, checkpoint_minutes)
    if isinstance(run.size, int):
        try:
            config.network(SimpleNamespace(channels=3, size=run.size, num_classes=2))
        except ShapeError as error:
            raise ConfigError(
                f"size: expected a side that {config.student} takes, got {run.size}; 32 is usual"
            ) from error
    if init is not None and not isinstance(init, str | Path | DistilledDataset):
        raise ConfigError(
            f"init: expected an earlier set or its folder, got {init!r}; leave it out to begin "
            "with real images"
        )
    if isinstance(init, str | Path) and not Path(init).exists():
        raise ConfigError(
            f"init: expected the folder of an earlier set, got nothing at {init}; check the path"
        )
    if out is not None:
        check_place(out)
    return config


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


def check_ranges(
    ipc: int, validation: float, max_minutes: float | None = None, checkpoint_minutes: float = 1.0
) -> None:
    """Raise ConfigError for a number of a run that is out of range."""
    if max_minutes is not None and not (_is_number(max_minutes) and max_minutes >= 0):
        raise ConfigError(
            f"max_minutes: expected 0 or more, got {max_minutes!r}; leave it out for no limit"
        )
    if not (_is_number(checkpoint_minutes) and checkpoint_minutes >= 0):
        raise ConfigError(
            f"checkpoint_minutes: expected 0 or more, got {checkpoint_minutes!r}; 1 is usual"
        )
    if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
        raise ConfigError(
            f"ipc: expected at least 1 image per class, got {ipc!r}; the field uses 1, 10 and 50"
        )
    if not (_is_number(validation) and 0.0 <= validation < 1.0):
        raise ConfigError(
            f"validation: expected a share in [0, 1), got {validation!r}; 0.1 holds out a tenth"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
