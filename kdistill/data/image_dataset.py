"""A labelled image set: training and test images in pixel space, and their normalisation."""

import hashlib
import json
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kdistill.data.splits import HOLDOUT_SEED, stratified_split
from kdistill.data.streamed_images import StreamedImages
from kdistill.errors import ConfigError, DataError, ShapeError
from kdistill.transforms import Identity, Standardise, Transform, Zca


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: ``[N, C, H, W]``, float32, pixel space, values in [0, 1]; a tensor, or
            ``StreamedImages``.
        labels: ``[N]``, int64.
        files: N paths that the images were read from; None for images that are in no files of their
            own.

    Raises:
        ShapeError: Not ``[N, C, H, W]`` floats with ``[N]`` int64 labels, or another number of
            files.
    """

    images: Tensor
    labels: Tensor
    files: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.images.ndim != 4 or not self.images.is_floating_point():
            raise ShapeError(
                f"Split: expected float images [N, C, H, W], got {_brief(self.images)}; use "
                "load_data((X, y))"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ShapeError(
                f"Split: expected int64 labels [{len(self.images)}], got {_brief(self.labels)}; "
                "give one class number per image"
            )
        if self.files is not None and len(self.files) != len(self.images):
            raise ShapeError(
                f"Split: expected {len(self.images)} files, got {len(self.files)}; name one per "
                "image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Split":
        """Return the split of the given row numbers, in that order."""
        streamed = isinstance(self.images, StreamedImages)
        images = self.images.take(rows) if streamed else self.images[rows.to(self.images.device)]
        files = None if self.files is None else tuple(self.files[row] for row in rows.tolist())
        return Split(images, self.labels[rows.to(self.labels.device)], files)

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on ``device``."""
        return Split(self.images.to(device), self.labels.to(device), self.files)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set ready for distillation; made by ``load_data``.

    Attributes:
        train: Images that may be distilled.
        test: Images that only final numbers may be measured on.
        classes: Names; label ``k`` is ``classes[k]``.
        name: Short name.
        source: What ``load_data`` was given, or what kind of object.
        licence: Licence of the data.
        fingerprint: sha256 over shapes, labels and pixels as loaded; ``holdout`` and ``to`` keep
            it.  Computed if left empty; ``"streamed"`` of images that are not in memory.
        transform: Transform to normalised images, fitted on the training images.
        validation: The source's own validation split, if it has one.
        mirrors: Whether a mirrored image belongs to the same class; augmentation mirrors only then.
        notes: What was understood or changed while loading, one phrase each.
        warnings: What is probably wrong with the data, one sentence each.

    Raises:
        ShapeError: The splits differ in image shape.
        DataError: A label has no class name, or no image is left to train on.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    name: str = "data"
    source: str = ""
    licence: str = "unknown"
    fingerprint: str = ""
    transform: Transform = field(default_factory=Identity)
    validation: Split | None = None
    mirrors: bool = True
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        if not len(self.train):
            raise DataError("ImageDataset: expected training images, got none; add images")
        for part, split in self.splits().items():
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise ShapeError(
                    f"ImageDataset: expected {part} images {list(self.train.images.shape[1:])} as "
                    f"in train, got {list(split.images.shape[1:])}; resize one of them"
                )
            outside = (split.labels < 0) | (split.labels >= len(self.classes))
            if outside.any():
                row = int(outside.nonzero()[0])
                raise DataError(
                    f"ImageDataset: expected labels 0..{len(self.classes) - 1}, got "
                    f"{int(split.labels[row])} at {part} image {row}; give a name to every class"
                )
        if not self.fingerprint:
            own = "streamed" if self.is_streamed else fingerprint(*self.splits().values())
            object.__setattr__(self, "fingerprint", own)

    @property
    def is_streamed(self) -> bool:
        """Whether images are read when they are asked for; then only scores can be made of them."""
        return isinstance(self.train.images, StreamedImages)

    def check_in_memory(self) -> None:
        """Raise ConfigError for streamed data, which ``kdistill.score`` alone can use."""
        if self.is_streamed:
            raise ConfigError(
                f"{self.name}: expected images in memory, got streamed ones (for score alone); "
                "leave stream out"
            )

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        """Height of the images; equal to the width in every set that ``load_data`` returns."""
        return self.train.images.shape[2]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def holdout(
        self, fraction: float = 0.1, seed: int = HOLDOUT_SEED
    ) -> tuple["ImageDataset", Split]:
        """Hold out a stratified share of the training images for validation.

        Args:
            fraction: Share held out, in [0, 1); 0 holds nothing out.  A source that came with its
                own validation split gives that one instead of any other share, whatever ``seed``
                says.
            seed: Seed of the draw.

        Returns:
            The data set with a smaller ``train`` (transform, fingerprint and the rest stay), and
            what was held out.

        Raises:
            ConfigError: ``fraction`` is not in [0, 1).
        """
        if fraction == 0.0:
            return self, self.train.take(torch.arange(0))
        if self.validation is not None:
            return replace(self, validation=None), self.validation
        rest, held_out = stratified_split(
            self.train.labels, fraction, seed=seed, purpose="split validation"
        )
        return replace(self, train=self.train.take(rest)), self.train.take(held_out)

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Return the data set with every tensor on ``device``."""
        moved = {part: split.to(device) for part, split in self.splits().items()}
        return replace(self, **moved, transform=self.transform.to(device))

    def training_digest(self) -> str:
        """Return the sha256 of what training on this set depends on.

        That are its training images, labels and transform as they are now.

        Cost: about a second per gigabyte of float32 pixels.
        """
        digest = hashlib.sha256(f"{fingerprint(self.train)} {self.transform.kind}".encode())
        for name, tensor in sorted(self.transform.state().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return in one line what was understood, and anything that was changed."""
        counts = torch.bincount(self.train.labels.cpu(), minlength=self.num_classes)
        low, high = int(counts.min()), int(counts.max())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        parts = [f"{len(self.train):,} training"]
        parts += [f"{len(self.validation):,} validation"] if self.validation is not None else []
        shape = "×".join(map(str, self.train.images.shape[1:]))
        phrases = [
            f"{', '.join(parts)} and {len(self.test):,} test images, {shape}, {self.num_classes} "
            f"classes of {each} training images",
            _normalisation(self.transform),
            *self.notes,
        ]
        return f"{self.name}: {'; '.join(phrases)}"

    def splits(self) -> dict[str, Split]:
        """Return the splits by name; a set without a validation split has none under that."""
        splits = {"train": self.train, "test": self.test}
        return splits if self.validation is None else {**splits, "validation": self.validation}


def fingerprint(*splits: Split) -> str:
    """Return the sha256 over shapes, labels and float32 pixel bytes of the splits, in order.

    Cost: about a second per gigabyte of float32 pixels.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps(list(split.images.shape)).encode())
        digest.update(split.labels.cpu().numpy().astype("<i8", copy=False).tobytes())
        for chunk in split.images.split(1024):
            pixels = chunk.detach().cpu().contiguous().numpy()
            digest.update(pixels.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _normalisation(transform: Transform) -> str:
    if isinstance(transform, Standardise):
        values = (transform.mean.tolist(), transform.std.tolist())
        mean, std = (", ".join(f"{x:.3f}" for x in each) for each in values)
        return f"mean {mean} and std {std} computed"
    return "ZCA fitted, eps 0.1" if isinstance(transform, Zca) else "not normalised"


def _brief(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
