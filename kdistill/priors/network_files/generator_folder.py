"""A generator in a folder: its tensors as safetensors, its configuration as JSON."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts.tensors import decode, encode, parse_table, to_json
from kdistill.config import from_mapping, to_mapping
from kdistill.errors import ConfigError, DataError
from kdistill.files import FolderLayout, explained
from kdistill.files.safe_files import JSON_LIMIT
from kdistill.priors.network_files.limits import excess
from kdistill.priors.stylegan import (
    Generator,
    StyleGAN2,
    StyleGAN2Config,
    StyleGAN3,
    StyleGAN3Config,
)

TENSORS, CONFIG = "generator.safetensors", "config.json"
SCHEMA_VERSION = 1
KINDS: dict[str, tuple[type[Generator], type]] = {
    "stylegan2": (StyleGAN2, StyleGAN2Config),
    "stylegan3": (StyleGAN3, StyleGAN3Config),
}


def _other_files(config: bytes) -> Iterable[str]:
    """Return the files beside the two that every generator has, as the configuration names them."""
    return json.loads(config)["files"]


LAYOUT = FolderLayout(files=(TENSORS, CONFIG), last=CONFIG, others=_other_files)


def save_generator(
    generator: Generator,
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
    kind = next(name for name, (cls, _) in KINDS.items() if isinstance(generator, cls))
    data = encode(generator.tensors, {"schema_version": SCHEMA_VERSION, "kind": kind})
    others = dict(files or {})
    described = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "generator": to_mapping(generator.config),
        "layers": dict(enumerate(("input", *generator.layer_names))),
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


def holds_generator(folder: str | Path, generator: Generator) -> bool:
    """Return whether ``folder`` holds a generator with the same tensors."""
    try:
        saved = load_generator(folder).tensors
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


def load_generator(folder: str | Path, device: torch.device | str = "cpu") -> Generator:
    """Read a generator that ``save_generator`` or ``kdistill prior convert`` wrote.

    Raises:
        DataError: The folder holds none, a file is damaged, or the two do not belong together.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise DataError(
            f"prior: expected a folder, got the file {folder}; convert it: kdistill prior convert "
            f"{folder} out/prior"
        )
    return LAYOUT.read_together(folder, lambda: _read_generator(folder)).to(device)


def _read_generator(folder: Path) -> Generator:
    where, hint = folder / CONFIG, "convert the network again"
    described = parse_table(_read(folder, CONFIG, JSON_LIMIT), where, hint)
    kind = _kind(described)
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
    generator_class, config_class = KINDS[kind]
    try:
        config = from_mapping(config_class, described.get("generator", {}), where=str(where))
    except ConfigError as error:
        raise DataError(f"{error}; or {hint}") from error
    generator = generator_class(config, tensors)
    if too_much := excess(generator):
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
