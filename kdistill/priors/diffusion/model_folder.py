"""``load_diffusion_model``: the diffusion model of a folder, whoever made it."""

from pathlib import Path

import torch

from kdistill.errors import DataError
from kdistill.priors.diffusion.model import DiffusionModel
from kdistill.priors.diffusion.pretrained import (
    holds_pretrained,
    load_pretrained,
    refuse_published,
)
from kdistill.priors.network_files.generator_folder import (
    holds_trained_generator,
    load_generator,
)


def load_diffusion_model(folder: str | Path, device: torch.device | str = "cpu") -> DiffusionModel:
    """Return the diffusion model of a folder, frozen and in float32.

    Args:
        folder: Written by ``kdistill prior train --kind diffusion`` or ``kdistill prior convert``,
            or a DiT pipeline of diffusers as published.
        device: Device of the weights.

    Raises:
        ConfigError: The name of a published model, which has no weights.
        DataError: The folder holds none, or a damaged one.
        MissingExtraError: It needs diffusers, which is not installed.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise DataError(
            f"prior: expected a folder, got the file {folder}; convert it: kdistill prior convert "
            f"{folder} out/prior"
        )
    refuse_published(str(folder))
    if holds_pretrained(folder):
        return load_pretrained(folder, device)
    if holds_trained_generator(folder):
        return load_generator(folder, device, DiffusionModel)
    raise DataError(
        f"prior: expected a diffusion model in {folder}, got none; make one with kdistill prior "
        "train --kind diffusion, or kdistill prior convert"
    )
