"""A published diffusion model in a folder: networks of diffusers, scheduler, class table.

Two kinds of folder are understood.  A DiT pipeline has ``transformer/``, ``vae/`` and
``scheduler/``.  A class-conditional latent diffusion model has ``unet/``, ``vae/`` or ``vqvae/``,
``scheduler/`` and ``class_table.safetensors``, which diffusers has no place for.  ``kdistill prior
convert`` writes both, with ``config.json`` (digests of all files, classes, source, licence).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import DataError
from kdistill.files import check_plain, open_regular
from kdistill.priors.diffusion.denoiser import Denoiser, Prediction
from kdistill.priors.diffusion.model import Autoencoder, DiffusionModel
from kdistill.priors.diffusion.pretrained.components import Component, build, new_on_meta
from kdistill.priors.diffusion.pretrained.networks import (
    ClassTable,
    CrossAttentionDenoiser,
    QuantisedAutoencoder,
    TransformerDenoiser,
    VariationalAutoencoder,
    take_class_table,
)
from kdistill.priors.diffusion.pretrained.scheduler_config import read_schedule
from kdistill.priors.diffusion.pretrained.weights import read_json, read_safetensors
from kdistill.priors.diffusion.sampler import SamplerOptions

CONFIG, TABLE = "config.json", "class_table.safetensors"
KIND, SCHEMA_VERSION = "diffusers", 1
DENOISERS, AUTOENCODERS = ("transformer", "unet"), ("vqvae", "vae")
SCHEDULER = Path("scheduler", "scheduler_config.json")
STEPS, GUIDANCE = 20, 3.0  # of samples where nothing else is said; guidance as in LD3M


@dataclass(frozen=True)
class Parts:
    """The networks of a folder, as configurations.

    Attributes:
        denoiser: ``UNet2DConditionModel`` or ``DiTTransformer2DModel``.
        autoencoder: ``VQModel`` or ``AutoencoderKL``.
        scheduler: Contents of ``scheduler_config.json``.
        where: The folder, for messages.
    """

    denoiser: Component
    autoencoder: Component
    scheduler: dict[str, Any]
    where: Path


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
    described = _described(folder)
    if described is not None:
        _check_digests(folder, described["files"])
    check_parts(parts)
    networks = {
        part.name: build(part, folder / part.name) for part in (parts.denoiser, parts.autoencoder)
    }
    table = None if parts.denoiser.is_transformer else _class_table(folder, described)
    return assemble(parts, networks, table, device)


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


def check_parts(parts: Parts) -> None:
    """Run the networks on the meta device, where shapes alone are computed.

    Raises:
        DataError: Denoiser and autoencoder do not fit together.
    """
    model = parts.denoiser
    c, s = model.config["in_channels"], model.config["sample_size"]
    latents = parts.autoencoder.latents
    if c != latents:
        raise DataError(
            f"{parts.where}: expected a denoiser of the autoencoder's {latents} latent channels, "
            f"got one of {c}; they belong to different models"
        )
    if type(s) is not int:
        raise DataError(
            f"{parts.where}: expected one number as sample_size of the denoiser, got {s!r:.40}; "
            "only square latents are supported"
        )
    networks = {part.name: new_on_meta(part) for part in (model, parts.autoencoder)}
    table = None
    if not model.is_transformer:
        table = ClassTable(torch.empty(1, model.config["cross_attention_dim"], device="meta"), None)
    try:
        meta = _adapters(parts, networks, table, "epsilon")
        x = torch.empty(1, c, s, s, device="meta")
        t = torch.zeros(1, dtype=torch.int64, device="meta")
        condition = meta[0].condition(t)
        with torch.no_grad():
            predicted = meta[0].predict(x, t, condition)
            # the codes of a VQ network have no values here
            decoded = networks[parts.autoencoder.name].decode(
                x, **parts.autoencoder.decode_options
            )[0]
            encoded = meta[1].encode(decoded)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"{parts.where}: expected networks that fit together, got: {_short(error)}; "
            "copy the whole model from its source"
        ) from error
    if predicted.shape != x.shape or encoded.shape != x.shape:
        raise DataError(
            f"{parts.where}: expected predictions and encodings of the latents' shape "
            f"{list(x.shape[1:])}, got {list(predicted.shape[1:])} and {list(encoded.shape[1:])}; "
            "sample_size or the autoencoder belong to another model"
        )


def assemble(
    parts: Parts,
    networks: dict[str, nn.Module],
    table: ClassTable | None,
    device: torch.device | str,
) -> DiffusionModel:
    """Return the model of these networks."""
    schedule, prediction = read_schedule(parts.scheduler, parts.where / SCHEDULER)
    networks = {name: network.to(device) for name, network in networks.items()}
    if table is not None:
        table = ClassTable(table.weight.to(device), table.null)
    tensors = {
        f"{name}.{key}": x
        for name, network in networks.items()
        for key, x in network.state_dict().items()
    }
    denoiser, autoencoder = _adapters(parts, networks, table, prediction)
    table = denoiser.table
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


def _adapters(
    parts: Parts, networks: dict[str, Any], table: ClassTable | None, prediction: Prediction
) -> tuple[Any, Autoencoder]:
    network, coder = networks[parts.denoiser.name], networks[parts.autoencoder.name]
    denoiser: Denoiser
    if table is None:
        table = take_class_table(network, parts.where)
        denoiser = TransformerDenoiser(network, table, prediction)
    else:
        denoiser = CrossAttentionDenoiser(network, table, prediction)
    config = parts.autoencoder.config
    scale = float(config["scaling_factor"])
    if parts.autoencoder.is_quantised:
        return denoiser, QuantisedAutoencoder(coder, scale)
    return denoiser, VariationalAutoencoder(coder, scale, float(config.get("shift_factor") or 0.0))


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


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
