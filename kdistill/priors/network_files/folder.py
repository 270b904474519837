"""A generator in a folder: tensors in ``generator.safetensors``, the configuration in ``config.json``."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts.atomic import explained, write_atomic
from kdistill.artifacts.tensors import decode, encode, parse_table, to_json
from kdistill.config import from_mapping, to_mapping
from kdistill.errors import ConfigError, DataError
from kdistill.priors.network_files.limits import excess
from kdistill.priors.stylegan import Generator, StyleGAN2, StyleGAN2Config, StyleGAN3, StyleGAN3Config

TENSORS, CONFIG = "generator.safetensors", "config.json"
SCHEMA_VERSION = 1
KINDS: dict[str, tuple[type[Generator], type]] = {
    "stylegan2": (StyleGAN2, StyleGAN2Config),
    "stylegan3": (StyleGAN3, StyleGAN3Config),
}


def save_generator(generator: Generator, folder: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write a generator; the configuration comes last, so a folder that has one is whole.

    Args:
        generator: It.
        folder: Made if it is missing; an earlier generator in it is replaced.
        about: Where it comes from, for the reader.

    Raises:
        DataError: The place cannot be written, or holds other files named like these.
    """
    folder = Path(folder)
    kind = next(name for name, (cls, _) in KINDS.items() if isinstance(generator, cls))
    data = encode(generator.tensors, {"schema_version": SCHEMA_VERSION, "kind": kind})
    described = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "generator": to_mapping(generator.config),
        "layers": dict(enumerate(("input", *generator.layer_names))),
        "about": dict(about or {}),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with explained(folder, len(data)):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists() and not (folder / TENSORS).exists():
            raise DataError(
                f"{folder}: expected a new folder or an earlier generator, got one with another {CONFIG}; choose another"
            )
        (folder / CONFIG).unlink(missing_ok=True)
        write_atomic(folder / TENSORS, data)
        write_atomic(folder / CONFIG, to_json(described))
    return folder


def load_generator(folder: str | Path, device: torch.device | str = "cpu") -> Generator:
    """Read a generator that ``save_generator`` or ``kdistill prior convert`` wrote.

    Raises:
        DataError: The folder holds none, a file is damaged, or the two do not belong together.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise DataError(f"prior: expected a folder, got the file {folder}; convert it: kdistill prior convert {folder} out/prior")
    try:
        described = parse_table((folder / CONFIG).read_bytes(), folder / CONFIG, "convert the network again")
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise DataError(
            f"prior: expected a generator in {folder}, got: {error.strerror} ({Path(str(error.filename)).name}); "
            "make one with kdistill prior train, or kdistill prior convert"
        ) from error
    kind = described.get("kind")
    if not isinstance(kind, str) or kind not in KINDS or described.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{folder / CONFIG}: expected a generator of this version, got kind {kind!r}; convert the network again")
    if hashlib.sha256(data).hexdigest() != described.get("sha256"):
        raise DataError(f"{folder / TENSORS}: expected the contents that {CONFIG} names, got others; convert the network again")
    tensors, _ = decode(data, folder / TENSORS)
    cls, config = KINDS[kind]
    try:
        generator = cls(from_mapping(config, described.get("generator", {}), where=str(folder / CONFIG)), tensors)
    except ConfigError as error:
        raise DataError(f"{error}; or convert the network again") from error
    too_much = excess(generator)
    if too_much:
        raise DataError(
            f"{folder / CONFIG}: expected a generator in proportion to its tensors, got {too_much}; convert the network again"
        )
    return generator.to(device)
