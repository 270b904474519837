"""``load_image_generator``: the generator of a folder, of whatever kind."""

import json
from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts.tensors import digest
from kdistill.config import to_mapping
from kdistill.files import read_regular
from kdistill.priors.base import ImageGenerator
from kdistill.priors.conditional_gan.saved_generator import FILE, load_folder
from kdistill.priors.diffusion.model_folder import load_diffusion_model
from kdistill.priors.diffusion.pretrained import holds_pretrained
from kdistill.priors.network_files.generator_folder import CONFIG, load_any_generator


def load_image_generator(folder: str | Path, device: torch.device | str = "cpu") -> ImageGenerator:
    """Return the generator of a folder.

    Args:
        folder: Of ``kdistill prior train`` or ``convert``, of a run of ``dim`` or
            ``global_local``, or a DiT pipeline of diffusers.
        device: Device of the weights.

    Raises:
        DataError: The folder holds none, or a damaged one.
        MissingExtraError: It needs diffusers, which is not installed.
    """
    folder = Path(folder).expanduser()
    if (folder / "data.safetensors").exists() and (folder / FILE).exists():
        return load_folder(folder, device)  # the artefact of a run
    if holds_pretrained(folder):
        return load_diffusion_model(folder, device)
    return load_any_generator(folder).to(device)


def class_names(folder: str | Path) -> tuple[str, ...]:
    """Return the names of the classes that a prior was trained on; none where it does not say."""
    path = Path(folder).expanduser() / CONFIG
    try:
        names = json.loads(read_regular(path))["about"]["source"]["classes"]
    except (OSError, ValueError, LookupError, TypeError):
        return ()
    is_named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_named else ()


def identity(generator: Any) -> dict[str, str]:
    """Return what a record says of a generator: its class, and the sha256 of all that it is."""
    config = generator.config
    described = config if isinstance(config, dict) else to_mapping(config)
    return {
        "kind": type(generator).__name__,
        "sha256": digest(generator.tensors, described),
    }
