"""A generator in a folder: its tensors as safetensors, its configuration as JSON."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from kdistill.artifacts.tensors import decode, encode, parse_table, to_json
from kdistill.config import from_mapping, to_mapping
from kdistill.errors import ConfigError, DataError
from kdistill.files import FolderLayout, explained
from kdistill.files.safe_files import JSON_LIMIT
from kdistill.priors.diffusion import DiffusionModel
from kdistill.priors.diffusion.pretrained.diffusers_folder import holds_pretrained
from kdistill.priors.diffusion.trained_model import DiffusionConfig, trained_model
from kdistill.priors.network_files.limits import excess
from kdistill.priors.stylegan import (
    Generator,
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN3,
    StyleGAN3Config,
)

TENSORS, CONFIG = "generator.safetensors", "config.json"
ARTEFACT = "data.safetensors"  # of a run, whose folder also has a config.json
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Kind:
    """What a folder can hold.

    Attributes:
        network: Class of the generator.
        config: Class of its configuration.
        make: ``(configuration, tensors) -> generator``.
    """

    network: type
    config: type
    make: Callable[[Any, dict[str, torch.Tensor]], Any]


KINDS = {
    "stylegan2": Kind(StyleGAN2, StyleGAN2Config, StyleGAN2),
    "stylegan3": Kind(StyleGAN3, StyleGAN3Config, StyleGAN3),
    "diffusion": Kind(DiffusionModel, DiffusionConfig, trained_model),
}
G = TypeVar("G", Generator, DiffusionModel)
USES = {Generator: ("a StyleGAN", "glad or hglad"), DiffusionModel: ("a diffusion model", "ld3m")}


def _other_files(config: bytes) -> Iterable[str]:
    """Return the files beside the two that every generator has, as the configuration names them."""
    return json.loads(config)["files"]


LAYOUT = FolderLayout(files=(TENSORS, CONFIG), last=CONFIG, others=_other_files)


def save_generator(
    generator: Generator | DiffusionModel,
    folder: str | Path,
    provenance: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a generator; an earlier one is replaced as a whole, even by a process that is killed.

    Args:
        generator: The generator to write.
        folder: Its folder, made if it is missing; files that are not the generator's stay.
        provenance: What the generator was made from, for readers of ``config.json``.
        files: Contents of further files that belong to it, such as its card, by file name.

    Raises:
        ConfigError: Another process works in the folder.
        DataError: The place cannot be written, or holds other files named like these.
    """
    folder = Path(folder)
    kind = next(name for name, kind in KINDS.items() if isinstance(generator, kind.network))
    data = encode(generator.tensors, {"schema_version": SCHEMA_VERSION, "kind": kind})
    others = dict(files or {})
    described = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        **_described(generator),
        "about": dict(provenance or {}),
        "files": sorted(others),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with explained(folder, len(data)):
        if LAYOUT.has(folder, CONFIG) and not _is_generator(folder):
            raise DataError(
                f"{folder}: expected a new folder or an earlier generator, got one with another "
                f"{CONFIG}; choose another folder"
            )
        LAYOUT.write(folder, {TENSORS: data, CONFIG: to_json(described), **others})
    return folder


def _described(generator: Generator | DiffusionModel) -> dict[str, Any]:
    if isinstance(generator, DiffusionModel):
        return {"generator": generator.config}
    layers = dict(enumerate(("input", *generator.layer_names)))
    return {"generator": to_mapping(generator.config), "layers": layers}


def holds_generator(folder: str | Path, generator: Generator | DiffusionModel) -> bool:
    """Return whether ``folder`` holds a generator with the same tensors."""
    try:
        saved = load_any_generator(Path(folder).expanduser()).tensors
    except DataError:
        return False
    return saved.keys() == generator.tensors.keys() and all(
        torch.equal(x, generator.tensors[name].cpu()) for name, x in saved.items()
    )


def _is_generator(folder: Path) -> bool:
    with suppress(OSError, ValueError, RecursionError):
        return _kind(json.loads(LAYOUT.read(folder, CONFIG, limit=JSON_LIMIT))) is not None
    return LAYOUT.has(folder, TENSORS)  # its configuration was damaged


def _kind(described: Any) -> str | None:
    kind = described.get("kind") if isinstance(described, dict) else None
    return kind if isinstance(kind, str) and kind in KINDS else None


def load_generator(
    folder: str | Path, device: torch.device | str = "cpu", family: type[G] = Generator
) -> G:
    """Read a generator that ``save_generator`` or ``kdistill prior convert`` wrote.

    Args:
        folder: Its folder.
        device: Device of the tensors.
        family: ``Generator`` for a StyleGAN, ``DiffusionModel`` for a diffusion model.

    Raises:
        DataError: The folder holds none, or one of the other family; a file is damaged, or the two
            do not belong together.
    """
    folder = Path(folder).expanduser()
    # a published diffusion model has its networks in subfolders, and a loader of its own
    generator = None if holds_pretrained(folder) else load_any_generator(folder)
    if not isinstance(generator, family):
        other = next(name for name in USES if name is not family)
        raise DataError(
            f"prior: expected {USES[family][0]}, got {USES[other][0]} in {folder}; use it with "
            f"--method {USES[other][1]}"
        )
    return generator.to(device)


def holds_trained_generator(folder: Path) -> bool:
    """Return whether a folder has the two files of a generator of this program."""
    return (folder / TENSORS).exists() and (folder / CONFIG).exists()


def load_any_generator(folder: Path) -> Generator | DiffusionModel:
    """Return the generator of a folder, a StyleGAN or a trained diffusion model, on the CPU.

    Raises:
        DataError: As ``load_generator``.
    """
    if folder.is_file():
        raise DataError(
            f"prior: expected a folder, got the file {folder}; convert it: kdistill prior convert "
            f"{folder} out/prior"
        )
    return LAYOUT.read_together(folder, lambda: _read_generator(folder))


def _read_generator(folder: Path) -> Generator | DiffusionModel:
    where, hint = folder / CONFIG, "convert the network again"
    described = parse_table(_read(folder, CONFIG, JSON_LIMIT), where, hint)
    kind = _kind(described)
    if kind is None and (folder / ARTEFACT).exists():
        raise DataError(
            f"prior: expected a generator to distil with, got the result of a run in {folder}; "
            "make one with kdistill prior train"
        )
    if kind is None or described.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{where}: expected a generator of this version, got kind {described.get('kind')!r}; "
            f"{hint}"
        )
    size = described.get("bytes")  # the first versions did not write it
    data = _read(folder, TENSORS, size if type(size) is int else None)
    if hashlib.sha256(data).hexdigest() != described.get("sha256"):
        raise DataError(
            f"{folder / TENSORS}: expected the contents that {CONFIG} names, got others; {hint}"
        )
    tensors, _ = decode(data, folder / TENSORS)
    try:
        config = from_mapping(KINDS[kind].config, described.get("generator", {}), where=str(where))
    except ConfigError as error:
        raise DataError(f"{error}; or {hint}") from error
    generator = KINDS[kind].make(config, tensors)
    if too_much := None if kind == "diffusion" else excess(generator):
        raise DataError(
            f"{where}: expected a generator in proportion to its tensors, got {too_much}; {hint}"
        )
    return generator


def _read(folder: Path, name: str, limit: int | None) -> bytes:
    try:
        return LAYOUT.read(folder, name, limit=limit)
    except OSError as error:
        raise DataError(
            f"prior: expected a generator in {folder}, got: {error.strerror} ({name}); make one "
            "with kdistill prior train, or kdistill prior convert"
        ) from error
