"""``train_experts``: the expert trajectories of a trajectory method."""

from collections.abc import Mapping
from typing import Any

import torch

from kdistill import methods
from kdistill.api.inputs import load, training_images, use
from kdistill.api.run import RunConfig
from kdistill.config import from_mapping
from kdistill.data import ImageDataset
from kdistill.engine.precision import use_precision
from kdistill.errors import ConfigError
from kdistill.experts import TrajectoryStore
from kdistill.status import quietly


def train_experts(
    data: ImageDataset | Any,
    *,
    method: str = "mtt",
    preset: str = "fast",
    options: Mapping[str, Any] | None = None,
    validation: float = 0.1,
    device: str | torch.device | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> TrajectoryStore:
    """Train the expert trajectories that a trajectory method still needs.

    ``distill`` does this itself; on its own it is for the long part of a run.  Size and time are
    shown before it starts.

    Args:
        data: From ``load_data``, or anything that ``load_data`` takes.
        method: ``"mtt"``, ``"tesla"``, ``"ftd"``, ``"datm"`` or ``"pad"``.
        preset: As for ``distill``.
        options: As for ``distill``; ``experts`` names the folder.
        validation: As for ``distill``: experts must not see what a run holds out.
        device: ``"cpu"`` or ``"cuda"``; None keeps the data's.
        threads: CPU threads; None keeps torch's.
        quiet: Do not show the progress.

    Returns:
        The trajectories.  A killed training goes on where it was, and the files have the same bits.

    Raises:
        ConfigError: The method has no experts, or the folder holds others.
        DataError: The folder is damaged, or cannot be written.

    Cost: ``num_experts * (max_start_epoch - 1 + expert_epochs)`` passes over the data.
    """
    settings = {
        "method": method,
        "preset": preset,
        "validation": validation,
        "options": options or {},
    }
    return train_experts_of(
        from_mapping(RunConfig, settings, where="experts"),
        data,
        device=device,
        threads=threads,
        quiet=quiet,
    )


def train_experts_of(
    config: RunConfig,
    data: ImageDataset | Any,
    *,
    device: str | torch.device | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> TrajectoryStore:
    """Train the experts that a run with these settings needs."""
    config.check()
    experts = methods.get(config.method).experts
    if experts is None:
        raise ConfigError(
            f"experts: expected a method with expert trajectories, got '{config.method}'; such as "
            "mtt, tesla or ftd"
        )
    use(threads, device)
    data = load(data, quiet)
    training = training_images(data, config.validation, device)
    precision = use_precision(config.method_options.precision, training.train.images.device)
    with quietly(quiet), precision:
        return experts.train(config.method_options, training)
