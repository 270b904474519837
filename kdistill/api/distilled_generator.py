"""``DistilledGenerator``: what a run returns whose product is a generator."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdistill.artifacts import DistilledDataset
from kdistill.data import ImageDataset
from kdistill.errors import ConfigError, DataError
from kdistill.formatting import byte_count
from kdistill.keys import make_key, permutation
from kdistill.methods.init import balanced_labels
from kdistill.priors.base import ImageGenerator
from kdistill.priors.conditional_gan import FILE, ConditionalGenerator, from_bytes, to_bytes
from kdistill.priors.image_generators import class_names, identity, load_image_generator

BYTES_PER_VALUE = 4  # float32


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledGenerator(DistilledDataset):
    """A generator of images, and images drawn from it once.

    It is a ``DistilledDataset`` of the images that were drawn once, so whatever takes a set takes
    it: ``evaluate``, ``compare``, ``export``.  The generator lies beside them in the artefact, as
    ``generator.safetensors``; from it any number of other images of a class is drawn.

    Raises:
        DataError: As for ``DistilledDataset``; or there is no generator, or a damaged one.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if FILE not in self.files:
            raise DataError(
                f"generator: expected an artefact with {FILE}, got a set of images alone; read it "
                "with DistilledDataset"
            )
        network, shape = self.network, tuple(self.images.shape[1:])
        if (network.channels, network.size, network.size) != shape or (
            network.classes != self.num_classes
        ):
            raise DataError(
                f"generator: expected one of {self.num_classes} classes and images {list(shape)}, "
                f"got {network.classes} and {[network.channels, network.size, network.size]}; the "
                "artefact was changed"
            )

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return (
            f"DistilledGenerator({self.num_classes} classes, images {shape}, {len(self)} of them "
            "drawn once)"
        )

    @cached_property
    def network(self) -> ConditionalGenerator:
        """The generator, on the CPU."""
        return from_bytes(self.files[FILE], FILE)

    def sample(self, ipc: int, seed: int = 0) -> DistilledDataset:
        """Return a set of fresh images.

        Args:
            ipc: Images per class, 1 or more.
            seed: Seed of the draw; the same gives the same images, and a larger ``ipc`` others.

        Raises:
            ConfigError: ``ipc`` is out of range, or one of the two is no whole number.
        """
        _check_draw(self.network, ipc, seed)
        labels = balanced_labels(self.num_classes, ipc)
        return DistilledDataset(
            images=self.network.sample(labels, make_key(seed, "sample")),
            labels=labels,
            classes=self.classes,
            config={**self._provenance(), "sample": _drawn(self.network, ipc, seed)},
            transform=self.transform,
        )

    def to_torch(  # type: ignore[override]  # fresh images are no TensorDataset
        self,
        epochs: int | None = None,
        *,
        seed: int = 0,
        normalised: bool = False,
        soft: bool = False,
    ) -> Dataset[Any]:
        """Return a torch ``Dataset``: of the images drawn once, or of others in every epoch.

        Args:
            epochs: Number of epochs of fresh images, as many as were drawn once in each; None takes
                those that were drawn once.
            seed: Seed of fresh images.
            normalised: Normalised images instead of pixel space.
            soft: Refused: a generator has hard labels.

        Raises:
            ConfigError: ``epochs`` is out of range, or it or the seed is no whole number.
            DataError: ``soft``.
        """
        if epochs is None or soft:
            return super().to_torch(normalised=normalised, soft=soft)
        return FreshImages(self, epochs, seed, normalised)

    @classmethod
    def from_run(
        cls, small: DistilledDataset, network: ConditionalGenerator
    ) -> "DistilledGenerator":
        """Return the artefact of a run from the images drawn once and the generator."""
        values = {entry.name: getattr(small, entry.name) for entry in fields(small)}
        return cls(**{**values, "files": {**small.files, FILE: to_bytes(network)}})

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, iteration: int | None = None
    ) -> "DistilledGenerator":
        """Read an artefact folder; nothing in it is executed.

        Raises:
            ConfigError: A snapshot is asked for, which holds images alone.
            DataError: As for ``DistilledDataset``, or the folder holds no generator.
        """
        if iteration is not None:
            raise ConfigError(
                f"iteration: expected none for a generator, got {iteration}; snapshots hold images "
                "alone, read them with DistilledDataset"
            )
        return super().from_pretrained(path)  # type: ignore[return-value]

    def _provenance(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if name != "artifact"}


def redrawn(small: DistilledDataset, ipc: int, seed: int) -> DistilledDataset:
    """Return the artefact of a generator with another number of images, drawn once.

    Raises:
        ConfigError: ``small`` has no generator, or ``ipc`` is out of range.
    """
    if FILE not in small.files:
        raise ConfigError(
            "ipc: expected a generator, which draws any number of images, got a set of "
            f"{small.ipc} images per class; leave ipc out"
        )
    values = {entry.name: getattr(small, entry.name) for entry in fields(small)}
    generator = DistilledGenerator(**values)
    images = replace(generator.sample(ipc, seed), metrics=generator.metrics)
    return DistilledGenerator.from_run(images, generator.network)


def sample_set(
    folder: str | Path, ipc: int, seed: int = 0, device: torch.device | str = "cpu"
) -> DistilledDataset:
    """Return a set of fresh images from the generator of a folder.

    Args:
        folder: Of a run whose product is a generator, or of ``kdistill prior train`` or
            ``convert``; the latter do not say how the data were normalised, so their sets are not.
        ipc: Images per class, 1 or more.
        seed: Seed of the draw.
        device: Where the generator of a prior runs.

    Raises:
        ConfigError: ``ipc`` is out of range, it or the seed is no whole number, or the generator
            has no classes.
        DataError: The folder holds no generator, or a damaged one.
    """
    folder = Path(folder).expanduser()
    if (folder / "data.safetensors").exists():  # the artefact of a run
        return DistilledGenerator.from_pretrained(folder).sample(ipc, seed)
    network = load_image_generator(folder, device)
    _check_draw(network, ipc, seed)
    if not network.classes:
        raise ConfigError(
            f"sample: expected a generator with classes, got one without in {folder}; images "
            "without a label are no training set"
        )
    labels = balanced_labels(network.classes, ipc)
    names = class_names(folder)
    return DistilledDataset(
        images=network.sample(labels, make_key(seed, "sample")),
        labels=labels,
        classes=names if len(names) == network.classes else (),
        config={"sample": _drawn(network, ipc, seed)},
    )


def _drawn(network: ImageGenerator, ipc: int, seed: int) -> dict[str, Any]:
    """Return the record of a draw: what gives the same bits again."""
    return {"generator": identity(network), "ipc": ipc, "seed": seed}


def _check_draw(network: ImageGenerator, ipc: int, seed: int) -> None:
    """Raise ConfigError unless as many images can be drawn and held in memory."""
    if not _is_whole(ipc) or ipc < 1:
        raise ConfigError(
            f"sample: expected at least 1 image per class, as a whole number, got {ipc!r}; the "
            "field uses 1, 10 and 50"
        )
    _check_seed("sample", seed)
    count = max(network.classes, 1) * ipc
    nbytes = count * network.channels * network.size**2 * BYTES_PER_VALUE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > memory:
        raise ConfigError(
            f"sample: expected images that fit in memory ({byte_count(memory)}), got {count:,} "
            f"images of {byte_count(nbytes)}; draw fewer, or several sets with other seeds"
        )


def _check_seed(where: str, seed: int) -> None:
    if not _is_whole(seed):
        raise ConfigError(f"{where}: expected a whole number as seed, got {seed!r}; 0 is usual")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def fresh_images(
    small: DistilledDataset, data: ImageDataset, seed: int
) -> tuple[Callable[[int, int], Tensor], int] | None:
    """Return ``(network, epoch) -> images``, normalised, and the bytes of the generator.

    The images have the labels of ``small``.  None where ``small`` has no generator.
    """
    if FILE not in small.files:
        return None
    network = from_bytes(small.files[FILE], FILE).to(data.train.images.device)

    def draw(net: int, epoch: int) -> Tensor:
        key = make_key(seed, "fresh images", net, epoch)
        return data.transform.apply(network.sample(small.labels, key))

    return draw, sum(x.nbytes for x in network.tensors.values())


class FreshImages(Dataset[tuple[Tensor, int]]):
    """Images of a generator, others in every epoch; read it in order, without shuffling.

    The images of an epoch are drawn at once, shuffled, and kept until one of another epoch is read.

    Args:
        source: The artefact.
        epochs: Number of epochs.
        seed: Seed of the draws.
        normalised: Normalised images instead of pixel space.
    """

    def __init__(self, source: DistilledGenerator, epochs: int, seed: int, normalised: bool):
        if not _is_whole(epochs) or epochs < 1:
            raise ConfigError(
                f"to_torch: expected at least 1 epoch, as a whole number, got {epochs!r}; leave it "
                "out for the images drawn once"
            )
        _check_seed("to_torch", seed)
        self.source, self.epochs, self.ipc = source, epochs, source.ipc
        self.seed, self.normalised = seed, normalised
        self._epoch: int | None = None
        self._images, self._labels = torch.empty(0), torch.empty(0, dtype=torch.int64)

    @property
    def per_epoch(self) -> int:
        """Images of an epoch."""
        return self.ipc * self.source.num_classes

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        epoch, place = divmod(row, self.per_epoch)
        if epoch != self._epoch:
            key = make_key(self.seed, "fresh epoch", epoch)
            labels = balanced_labels(self.source.num_classes, self.ipc)
            images = self.source.network.sample(labels, key)
            order = permutation(make_key(key, "order"), len(labels))
            images = self.source.transform.apply(images) if self.normalised else images
            self._epoch, self._images, self._labels = epoch, images[order], labels[order]
        return self._images[place], int(self._labels[place])
