"""A conditional generator as tensors and a description, as one file, and read from a folder.

The file is safetensors with the architecture in its metadata.  Nothing in it is executed, and what
the architecture asks for is compared with the tensors that are there before anything is computed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from kdistill.artifacts.artifact_folder import read_file
from kdistill.artifacts.contents import GENERATOR
from kdistill.artifacts.tensors import decode, encode
from kdistill.config import from_mapping, to_mapping
from kdistill.errors import ConfigError, DataError
from kdistill.files import read_regular
from kdistill.optim import State
from kdistill.priors.conditional_gan.conditional_generator import (
    FROZEN,
    ConditionalGenerator,
    ConditionalGeneratorConfig,
)
from kdistill.priors.conditional_gan.critic import Critic

FILE = GENERATOR  # in the folder of an artefact
KIND = "conditional_gan"
HINT = "restore it from a copy, or distil it again"


def to_bytes(generator: ConditionalGenerator) -> bytes:
    """Return the contents of the file; equal generators give equal bytes."""
    description, tensors = save_tensors(generator)
    return encode(tensors, {"kind": KIND, "architecture": description})


def from_bytes(data: bytes, where: str | Path) -> ConditionalGenerator:
    """Return the generator that ``to_bytes`` wrote.

    Raises:
        DataError: The file is damaged, or holds no such generator.
    """
    tensors, metadata = decode(data, where)
    if metadata.get("kind") != KIND:
        raise DataError(
            f"{where}: expected a generator of kind '{KIND}', got {metadata.get('kind')!r}; name "
            "the folder of a run of dim or global_local"
        )
    return load(metadata.get("architecture"), tensors, str(where))


def load_folder(folder: str | Path, device: torch.device | str = "cpu") -> ConditionalGenerator:
    """Return the generator in the folder of an earlier run of ``dim`` or ``global_local``.

    Raises:
        DataError: There is none, or a damaged one.
    """
    where = Path(folder).expanduser() / FILE
    try:
        data = read_file(where.parent, FILE) or read_regular(where)
    except OSError as error:
        raise DataError(
            f"generator: expected a generator in {folder}, got: {error.strerror} ({FILE}); name "
            "the folder of a run of dim or global_local"
        ) from error
    return from_bytes(data, where).to(device)


def save_tensors(generator: ConditionalGenerator) -> tuple[dict[str, Any], State]:
    """Return what ``load`` takes: a description that JSON can hold, and named tensors."""
    critic = {f"critic.{name}": x for name, x in generator.critic.items()}
    network = {f"generator.{name}": x for name, x in generator.tensors.items()}
    return to_mapping(generator.config), network | critic


def load(description: Any, tensors: State, where: str) -> ConditionalGenerator:
    """Return the generator that ``save_tensors`` described.

    Args:
        description: The first part of what ``save_tensors`` returned.
        tensors: The second part.
        where: The file, for messages.

    Raises:
        DataError: The description is not one of a generator; tensors are missing, one too many, of
            another shape, no float32, or not finite.
    """
    if not isinstance(description, Mapping):
        raise DataError(f"{where}: expected a generator's architecture, got none; {HINT}")
    try:
        config = from_mapping(ConditionalGeneratorConfig, description, where=where)
    except ConfigError as error:
        raise DataError(f"{error}; or {HINT}") from error
    expected = {f"generator.{name}": shape for name, shape in config.shapes().items()}
    for name, units in config.norms().items():
        expected |= {f"generator.{name}.{kind}": (units,) for kind in FROZEN}
    expected |= dict(_critic_shapes(config, tensors))
    _check_tensors(expected, tensors, where)
    parts: dict[str, State] = {"generator": {}, "critic": {}}
    for name, x in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = x
    return ConditionalGenerator(config, parts["generator"], parts["critic"])


def _critic_shapes(
    config: ConditionalGeneratorConfig, tensors: State
) -> Iterator[tuple[str, tuple[int, ...]]]:
    first = tensors.get("critic.convs.0.weight")
    if first is not None and first.ndim == 4:
        critic = Critic(
            size=config.size, channels=config.channels, classes=config.classes, width=len(first)
        )
        yield from ((f"critic.{name}", shape) for name, shape in critic.shapes().items())


def _check_tensors(expected: Mapping[str, tuple[int, ...]], tensors: State, where: str) -> None:
    """Raise DataError unless there are exactly these tensors."""
    if different := sorted(expected.keys() ^ tensors.keys()):
        is_missing = different[0] in expected
        raise DataError(
            f"{where}: expected {len(expected)} tensors of a generator, got "
            f"{'none' if is_missing else 'another'} named {different[0]!r}; {HINT}"
        )
    for name, shape in expected.items():
        x = tensors[name]
        if tuple(x.shape) != shape or x.dtype != torch.float32:
            raise DataError(
                f"{where}: expected {name} as float32 {list(shape)}, got {x.dtype} "
                f"{list(x.shape)}; {HINT}"
            )
        if not bool(torch.isfinite(x).all()):
            raise DataError(
                f"{where}: expected finite numbers in {name}, got NaN or infinity; {HINT}"
            )
