"""``prior convert`` of a published diffusion model: safetensors, digests and a card in a folder.

Read are a CompVis latent-diffusion checkpoint (one file), a folder of diffusers with safetensors,
and one with pickled weights, which are parsed and never unpickled.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kdistill.artifacts.tensors import to_json
from kdistill.errors import DataError
from kdistill.files import new_folder
from kdistill.files.inert_pickle import NotReadable
from kdistill.files.safe_files import write_new
from kdistill.priors.diffusion.diffusers_library import installed_version
from kdistill.priors.diffusion.model import DiffusionModel
from kdistill.priors.diffusion.pretrained.assembly import Parts
from kdistill.priors.diffusion.pretrained.components import (
    Component,
)
from kdistill.priors.diffusion.pretrained.compvis_layout import (
    AutoencoderLayout,
    UNetLayout,
    is_squeezed,
)
from kdistill.priors.diffusion.pretrained.conversion_card import card
from kdistill.priors.diffusion.pretrained.diffusers_folder import (
    CONFIG,
    KIND,
    SCHEDULER,
    SCHEMA_VERSION,
    TABLE,
    load_pretrained,
    read_parts,
    sha256_of,
)
from kdistill.priors.diffusion.pretrained.torch_checkpoint import TorchCheckpoint, is_checkpoint
from kdistill.priors.diffusion.pretrained.weights import (
    PICKLED,
    WEIGHTS,
    present_names,
    read_safetensors,
    read_weights,
)

# the class-conditional model of latent diffusion on ImageNet has 1000 classes and one of none
PUBLISHED_ROWS = 1001
HEADS, SIZE = 1, 256  # of that model
_UNET, _EMA = "model.diffusion_model.", "model_ema."
_CODER, _TABLE = "first_stage_model.", "cond_stage_model.embedding.weight"
_SOURCES = (".bin", ".safetensors", ".json")
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError)


def is_diffusion(source: str | Path) -> bool:
    """Return whether ``convert_diffusion`` is the one to read a source: a folder or an archive."""
    source = Path(source).expanduser()
    return source.is_dir() or is_checkpoint(source)


def convert_diffusion(
    source: str | Path,
    folder: str | Path,
    *,
    licence: str = "",
    heads: int = HEADS,
    size: int = SIZE,
    null_class: int | None = None,
) -> DiffusionModel:
    """Write a published diffusion model as a folder that ``ld3m`` takes, and return the model.

    Args:
        source: A CompVis checkpoint, or a folder of diffusers; nothing in it is run.
        folder: New or empty folder.
        licence: Licence of the weights, for the card.
        heads: Attention heads of a CompVis checkpoint, which no tensor tells.
        size: Side of the images of a CompVis checkpoint.
        null_class: Row of the class table that stands for no class; None takes the last of 1001.

    Raises:
        DataError: The source is damaged, not such a model, or the folder cannot be written.
        MissingExtraError: diffusers is not installed.

    Cost: about twice the weights in memory, and their size in float32 on the disk.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        parts, weights, table = _from_folder(source)
    else:
        parts, weights, table = _from_checkpoint(source, heads, size)
    null = None if table is None else _null_row(len(table), null_class)
    about = {
        "source": source.name,
        "source_sha256": _source_digests(source),
        "licence": licence,
        "null_class": null,
    }
    with new_folder(folder) as new:
        _write(new, parts, weights, table, about)
        weights.clear()  # the load below needs the memory
        model = load_pretrained(new)  # refuses what does not fit together
        write_new(new / "README.md", card(Path(folder).name, model, about).encode())
    return model


def _from_folder(source: Path) -> tuple[Parts, dict[str, dict[str, Tensor]], Tensor | None]:
    parts = read_parts(source)
    weights = {part.name: _any_weights(source / part.name) for part in _networks(parts)}
    table = None
    if not parts.denoiser.is_transformer:
        if not (source / TABLE).exists():
            raise DataError(
                f"{source}: expected the vectors of the classes in {TABLE} (one matrix 'weight'), "
                "got none; models of texts have no classes, others keep them elsewhere"
            )
        table = read_safetensors(source / TABLE).get("weight")
        if table is None or table.ndim != 2:
            raise DataError(
                f"{source / TABLE}: expected one matrix 'weight', got none; save it under this name"
            )
    return parts, weights, table


def _any_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a network, from safetensors or else from a pickle that is parsed."""
    is_safe = any(folder.glob("*.safetensors*"))
    if is_safe or not (folder / PICKLED).exists():
        return read_weights(folder)
    with TorchCheckpoint(folder / PICKLED) as checkpoint:
        return present_names({name: checkpoint.read(name) for name in checkpoint.tensors})


def _from_checkpoint(
    path: Path, heads: int, size: int
) -> tuple[Parts, dict[str, dict[str, Tensor]], Tensor]:
    with TorchCheckpoint(path) as checkpoint:
        try:
            return _read_compvis(checkpoint, heads, size)
        except (NotReadable, *_DAMAGED) as error:
            if isinstance(error, DataError):
                raise
            reason = error if isinstance(error, NotReadable) else f"{type(error).__name__}: {error}"
            raise DataError(
                f"{path}: expected a class-conditional latent-diffusion checkpoint, got "
                f"{' '.join(str(reason).split())[:160]}; other models are not supported"
            ) from error


def _read_compvis(
    checkpoint: TorchCheckpoint, heads: int, size: int
) -> tuple[Parts, dict[str, dict[str, Tensor]], Tensor]:
    names = checkpoint.tensors
    unet_names = {
        name.removeprefix(_UNET): _averaged(name, names) for name in names if name.startswith(_UNET)
    }
    coder_names = {name.removeprefix(_CODER): name for name in names if name.startswith(_CODER)}
    if not unet_names or _TABLE not in names:
        raise NotReadable(f"no {_UNET if not unet_names else _TABLE}")
    scale = float(checkpoint.read("scale_factor")) if "scale_factor" in names else None
    coder = AutoencoderLayout(_shapes(checkpoint, coder_names), 1.0 if scale is None else scale)
    if scale is None and coder.network == "AutoencoderKL":
        raise NotReadable("a variational autoencoder without scale_factor")
    side = size // 2 ** (len(coder.config["block_out_channels"]) - 1)
    unet = UNetLayout(_shapes(checkpoint, unet_names), heads, side)
    weights = {
        "unet": {new: checkpoint.read(unet_names[old]) for new, old in unet.names.items()},
        "vqvae": {
            new: _matrix(new, checkpoint.read(coder_names[old])) for new, old in coder.names.items()
        },
    }
    if coder.network == "AutoencoderKL":
        weights["vae"] = weights.pop("vqvae")
    parts = Parts(
        denoiser=_component("unet", "UNet2DConditionModel", unet.config, checkpoint.path),
        autoencoder=_component([*weights][1], coder.network, coder.config, checkpoint.path),
        scheduler=_scheduler(checkpoint),
        where=checkpoint.path,
    )
    return parts, weights, checkpoint.read(_TABLE)


def _averaged(name: str, names: Mapping[str, Any]) -> str:
    """Return the name of the averaged weight where there is one; it has no dots."""
    averaged = _EMA + name.removeprefix("model.").replace(".", "")
    return averaged if averaged in names else name


def _shapes(checkpoint: TorchCheckpoint, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {short: checkpoint.tensors[name].size for short, name in names.items()}


def _matrix(name: str, x: Tensor) -> Tensor:
    return x.flatten(1) if is_squeezed(name) else x


def _component(name: str, network: str, config: dict[str, Any], where: Path) -> Component:
    return Component.read(name, {"_class_name": network, **config}, where)


def _scheduler(checkpoint: TorchCheckpoint) -> dict[str, Any]:
    """Return the scheduler whose noise schedule is that of the checkpoint's ``betas``."""
    betas = checkpoint.read("betas").double()
    first, last = float(betas[0]), float(betas[-1])
    roots = torch.linspace(first**0.5, last**0.5, len(betas), dtype=torch.float64)
    if not torch.allclose(roots.square(), betas, rtol=1e-4):
        raise NotReadable("betas whose roots do not rise linearly")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(betas),
        # seven digits: the file has float32
        "beta_start": float(f"{first:.7g}"),
        "beta_end": float(f"{last:.7g}"),
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _null_row(rows: int, null_class: int | None) -> int | None:
    if null_class is None:
        return rows - 1 if rows == PUBLISHED_ROWS else None
    if null_class != rows - 1:
        raise DataError(
            f"null_class: expected {rows - 1}, the last row of the table of classes, got "
            f"{null_class}; leave it out for a model without one"
        )
    return null_class


def _networks(parts: Parts) -> tuple[Component, Component]:
    return parts.denoiser, parts.autoencoder


def _write(
    folder: Path,
    parts: Parts,
    weights: dict[str, dict[str, Tensor]],
    table: Tensor | None,
    about: dict[str, Any],
) -> None:
    version = installed_version()
    for part in _networks(parts):
        described = {"_class_name": part.network, "_diffusers_version": version, **part.config}
        (folder / part.name).mkdir()
        write_new(folder / part.name / CONFIG, to_json(described))
        _save(weights[part.name], folder / part.name / WEIGHTS)
    if table is not None:
        _save({"weight": table}, folder / TABLE)
    (folder / SCHEDULER).parent.mkdir()
    write_new(folder / SCHEDULER, to_json({"_diffusers_version": version, **parts.scheduler}))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    described = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
        **about,
    }
    write_new(folder / CONFIG, to_json(described))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path, {"format": "pt"})
    except SafetensorError as error:
        raise DataError(
            f"{path}: expected a place that can be written, got: {error}; check the path and the "
            "free space"
        ) from error


def _source_digests(source: Path) -> dict[str, str]:
    if source.is_file():
        return {source.name: sha256_of(source)}
    files = sorted(path for path in source.rglob("*") if path.suffix in _SOURCES and path.is_file())
    return {path.relative_to(source).as_posix(): sha256_of(path) for path in files}
