"""``SetContents``: the checked values of a distilled set, which writers take and readers return."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdistill.artifacts.image_grids import Page, preview
from kdistill.artifacts.tensors import jsonable, utf8
from kdistill.errors import DataError, ShapeError
from kdistill.transforms import Identity, Transform

FILES = ("data.safetensors", "config.json", "metrics.json", "README.md", "preview.png")
# a run leaves these before its artefact
RUN_FILES = ("checkpoint.safetensors", "checkpoint.safetensors.prev", "metrics.jsonl", "snapshots")
GENERATOR = "generator.safetensors"  # the product of a run, where it is no set of images
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SetContents:
    """Tensors and metadata of a distilled set; ``DistilledDataset`` describes every field."""

    images: Tensor
    labels: Tensor
    label_logits: Tensor | None = None
    learned_lr: float | None = None
    classes: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    transform: Transform = field(default_factory=Identity)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, labels, logits = self.images, self.labels, self.label_logits
        _check_shapes(images, labels)
        classes = tuple(utf8(str(name)) for name in self.classes)
        classes = classes or tuple(map(str, range(_num_classes(labels, logits))))
        if logits is not None and (
            logits.shape != (len(images), len(classes)) or not logits.is_floating_point()
        ):
            raise ShapeError(
                f"label_logits: expected float [{len(images)}, {len(classes)}], got {logits.dtype} "
                f"{list(logits.shape)}; one logit per image and class"
            )
        # float8 and unsigned 16-bit tensors cannot be compared or searched as they are
        images, labels = _copied(images, torch.float32), _copied(labels, torch.int64)
        logits = None if logits is None else _copied(logits, torch.float32)
        if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
            raise DataError(
                f"labels: expected values in 0..{len(classes) - 1} for {len(classes)} classes, got "
                f"{int(labels.min())}..{int(labels.max())}; correct the labels or name every class"
            )
        for name, tensor in (("images", images), ("label_logits", logits)):
            if tensor is not None and not tensor.isfinite().all():
                raise DataError(
                    f"{name}: expected finite numbers, got NaN or infinity; the run that made them "
                    "blew up"
                )
        _check_names(self.config, self.files)
        checked = {
            "images": images,
            "labels": labels,
            "label_logits": logits,
            "learned_lr": None if self.learned_lr is None else float(self.learned_lr),
            "classes": classes,
            "config": jsonable(self.config, "config"),
            "metrics": jsonable(self.metrics, "metrics"),
            "files": {name: bytes(content) for name, content in self.files.items()},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each class."""
        return tuple(torch.bincount(self.labels, minlength=self.num_classes).tolist())

    @property
    def ipc(self) -> int:
        """Images per class; the largest number where classes differ."""
        return max(self.counts)

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Side H of the images (the longer one where they are not square)."""
        return max(self.images.shape[2:])

    @property
    def nbytes(self) -> int:
        """Bytes of images, labels and label logits in memory."""
        tensors = (self.images, self.labels, self.label_logits)
        return sum(x.nbytes for x in tensors if x is not None)

    def __len__(self) -> int:
        return len(self.images)

    def learned(self) -> dict[str, Tensor]:
        """Return the tensors that a run learns: images, and label logits and rate if any."""
        lr = self.learned_lr
        tensors = {
            "images": self.images,
            "label_logits": self.label_logits,
            "learned_lr": None if lr is None else torch.tensor(lr, dtype=torch.float64),
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def recorded(self, *path: str) -> Any:
        """Return the entry of the config at ``path``, or None where it says nothing."""
        return lookup(self.config, *path)

    def preview_page(self) -> Page:
        """Return the picture of all images, one row per class."""
        heading = (self.recorded("source", "name"), self.recorded("run", "method"))
        return preview(self.images, self.labels, self.classes, heading)


def lookup(content: Any, *path: str) -> Any:
    """Return the value at ``path`` of nested tables, or None where one of them is missing."""
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _check_shapes(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(
            f"images: expected float [N, C, H, W], got {images.dtype} {list(images.shape)}; divide "
            "bytes by 255"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ShapeError(
            f"labels: expected int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}; one "
            "class per image, soft labels go to label_logits"
        )
    if images.numel() == 0:
        raise DataError(
            f"images: expected at least one image, got {list(images.shape)}; add images"
        )


def _check_names(config: Mapping[str, Any], files: Iterable[str]) -> None:
    if "artifact" in config:
        raise DataError(
            "config: expected no key 'artifact', got one; config.json keeps its own description "
            "there, rename it"
        )
    for name in files:
        if name in FILES + RUN_FILES or not PLAIN_NAME.fullmatch(name):
            raise DataError(
                f"files: expected plain names that are not the artefact's own, got '{name}'; "
                "rename it"
            )


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous CPU copy: later steps of an optimiser must not reach into the set."""
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _num_classes(labels: Tensor, logits: Tensor | None) -> int:
    """Return the number of classes of a set that names none."""
    if logits is not None and logits.ndim == 2:
        return logits.shape[1]
    return max(1, int(labels.long().max()) + 1)
