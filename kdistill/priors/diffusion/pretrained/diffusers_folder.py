"""A published diffusion model in a folder: networks of diffusers, scheduler, class table.

Two kinds of folder are understood.  A DiT pipeline has ``transformer/``, ``vae/`` and
``scheduler/``.  A class-conditional latent diffusion model has ``unet/``, ``vae/`` or ``vqvae/``,
``scheduler/`` and ``class_table.safetensors``, which diffusers has no place for.  ``kdistill prior
convert`` writes both, with ``config.json`` (digests of all files, classes, source, licence).
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import DataError
from kdistill.files import check_plain, open_regular
from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.model import DiffusionModel
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule
from kdistill.priors.diffusion.pretrained.assembly import Parts, adapters, check_parts
from kdistill.priors.diffusion.pretrained.components import Component, build
from kdistill.priors.diffusion.pretrained.diffusers_adapters import ClassTable
from kdistill.priors.diffusion.pretrained.scheduler_config import read_schedule
from kdistill.priors.diffusion.pretrained.weights import read_json, read_safetensors
from kdistill.priors.diffusion.sampler import SamplerOptions

CONFIG, TABLE = "config.json", "class_table.safetensors"
KIND, SCHEMA_VERSION = "diffusers", 1
DENOISERS, AUTOENCODERS = ("transformer", "unet"), ("vqvae", "vae")
SCHEDULER = Path("scheduler", "scheduler_config.json")
STEPS, GUIDANCE = 20, 3.0  # of samples where nothing else is said; guidance as in LD3M


def holds_pretrained(folder: Path) -> bool:
    """Return whether a folder has the networks of a published diffusion model in subfolders."""
    return any((folder / name / CONFIG).exists() for name in DENOISERS)


def load_pretrained(folder: Path, device: torch.device | str = "cpu") -> DiffusionModel:
    """Return the diffusion model of a folder, frozen and in float32; nothing is downloaded.

    Raises:
        DataError: A part is missing, damaged, of another version, or does not fit the others.
        MissingExtraError: diffusers is not installed.
    """
    parts = read_parts(folder)
    schedule = read_schedule(parts.scheduler, folder / SCHEDULER)
    described = _described(folder)
    if described is not None:
        _check_digests(folder, described["files"])
    check_parts(parts)
    networks = {
        part.name: build(part, folder / part.name) for part in (parts.denoiser, parts.autoencoder)
    }
    table = None if parts.denoiser.is_transformer else _class_table(folder, described)
    return assemble(parts, networks, table, schedule, device)


def read_parts(folder: Path) -> Parts:
    """Return the configurations of a folder.

    Raises:
        DataError: A part is missing or of a kind that is not understood.
    """
    if not (folder / SCHEDULER).exists():
        raise DataError(
            f"{folder}: expected {SCHEDULER} beside the networks, got none; copy it from the "
            "source of the model"
        )
    return Parts(
        denoiser=_component(folder, DENOISERS),
        autoencoder=_component(folder, AUTOENCODERS),
        scheduler=read_json(folder / SCHEDULER),
        where=folder,
    )


def _component(folder: Path, names: tuple[str, ...]) -> Component:
    present = [name for name in names if (folder / name).is_dir()]
    if not present:
        raise DataError(
            f"{folder}: expected a folder {' or '.join(f'{name}/' for name in names)}, got none; "
            "copy the whole model from its source"
        )
    return Component.read(present[0], read_json(folder / present[0] / CONFIG), folder / present[0])


def assemble(
    parts: Parts,
    networks: dict[str, nn.Module],
    table: ClassTable | None,
    trained: tuple[NoiseSchedule, Prediction],
    device: torch.device | str,
) -> DiffusionModel:
    """Return the model of these networks.

    Args:
        parts: Configurations of the networks.
        networks: The networks by their subfolders.
        table: Vectors of the classes; None of a DiT, which holds its own.
        trained: The noise schedule, and what the denoiser predicts.
        device: Device of the model.
    """
    schedule, prediction = trained
    networks = {name: network.to(device) for name, network in networks.items()}
    if table is not None:
        table = ClassTable(table.weight.to(device), table.null)
    denoiser, autoencoder = adapters(parts, networks, table, prediction)
    table = denoiser.table
    # after a DiT gave up its copies of the table
    tensors = {
        f"{name}.{key}": x
        for name, network in networks.items()
        for key, x in network.state_dict().items()
    }
    tensors["class_table"] = table.weight.detach()
    c, s = parts.denoiser.config["in_channels"], parts.denoiser.config["sample_size"]
    channels = parts.autoencoder.config["out_channels"]
    return DiffusionModel(
        denoiser=denoiser,
        autoencoder=autoencoder,
        schedule=schedule,
        latent_shape=(c, s, s),
        classes=table.classes,
        channels=channels,
        size=s * parts.autoencoder.factor,
        sampler=SamplerOptions(steps=STEPS, guidance=1.0 if table.null is None else GUIDANCE),
        tensors=tensors,
        config={
            "denoiser": parts.denoiser.config,
            "autoencoder": parts.autoencoder.config,
            "scheduler": parts.scheduler,
            "null_class": table.null,
        },
    )


def _described(folder: Path) -> dict[str, Any] | None:
    """Return what ``prior convert`` wrote about the folder, or None."""
    where = folder / CONFIG
    if not where.exists():
        return None
    described = read_json(where)
    version = described.get("schema_version")
    if described.get("kind") != KIND or version != SCHEMA_VERSION:
        raise DataError(
            f"{where}: expected a converted diffusion model of this version, got kind "
            f"{described.get('kind')!r:.40}, version {version!r:.40}; convert the model again"
        )
    if not isinstance(described.get("files"), dict):
        raise DataError(f"{where}: expected the digests of all files, got none; convert it again")
    return described


def _check_digests(folder: Path, files: dict[str, Any]) -> None:
    for name, digest in sorted(files.items()):
        path = folder.joinpath(*(check_plain(part, folder / CONFIG) for part in name.split("/")))
        if sha256_of(path) != digest:
            raise DataError(
                f"{path}: expected the contents that {CONFIG} names, got others; convert the "
                "model again"
            )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_regular(path, follow=True) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: expected a file of the model, got: {error.strerror}; convert it again"
        ) from error


def _class_table(folder: Path, described: dict[str, Any] | None) -> ClassTable:
    """Return the table of the classes of a UNet."""
    path = folder / TABLE
    if not path.exists() or described is None:
        raise DataError(
            f"{folder}: expected {TABLE} and {CONFIG} of a class-conditional model, got none; "
            "convert the model with kdistill prior convert (models of texts have no classes)"
        )
    tensors: dict[str, Tensor] = read_safetensors(path)
    weight, null = tensors.get("weight"), described.get("null_class")
    rows = 0 if weight is None or weight.ndim != 2 else len(weight)
    if (
        weight is None
        or rows == 0
        or not (null is None or (type(null) is int and null == rows - 1))
    ):
        raise DataError(
            f"{path}: expected a matrix whose last row may be that of no class, got {rows} "
            f"rows and null class {null!r:.40}; convert the model again"
        )
    return ClassTable(weight, null)
