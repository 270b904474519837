"""``DistilledDataset``: what a distillation run returns, and what its folder holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from kdistill.artifacts.artifact_folder import FILES, RUN_FILES
from kdistill.artifacts.tensors import jsonable, utf8
from kdistill.errors import DataError, ShapeError
from kdistill.transforms import Identity, Transform

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledDataset:
    """A small synthetic image set with everything that is needed to use it, compare it and make it again.

    Symbols: N images, C channels, H × W pixels, K classes.  Tensors are copied to the CPU; do not
        write into them.

    Attributes:
        images: ``[N, C, H, W]`` float32 in pixel space; [0, 1] is black to white, values outside
            are kept.
        labels: Class of each image, int64 ``[N]`` in ``0..K-1``.
        label_logits: Logits z of learned soft labels ``softmax(z)``, float32 ``[N, K]``, or None.
        learned_lr: Learning rate that was learned along with the images, or None.
        classes: Names; ``"0"``, ``"1"``, ... if not given.
        config: What made the set; ``config["run"]`` makes it again.  JSON content only.
        metrics: What was measured on it.  ``kdistill.evaluate(small, data)`` leaves its result in
            ``metrics["evaluation"]``, and ``save_pretrained`` writes it into ``metrics.json`` and
            the card.  JSON content only.
        transform: What turns pixel space into what networks see.
        files: Other files of the artefact folder by name, such as pictures of the run.

    Raises:
        ShapeError: A tensor has another shape or dtype.
        DataError: No image, a value that is not finite, a label outside ``0..K-1``, metadata that
            JSON cannot hold, a config key ``"artifact"``, or a file whose name is taken.
    """

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
        if images.ndim != 4 or not images.is_floating_point():
            raise ShapeError(
                f"images: expected float [N, C, H, W], got {images.dtype} {list(images.shape)}; "
                "divide bytes by 255"
            )
        if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
            raise ShapeError(
                f"labels: expected int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}; "
                "one class per image, soft labels go to label_logits"
            )
        if images.numel() == 0:
            raise DataError(
                f"images: expected at least one image, got {list(images.shape)}; add images"
            )
        classes = tuple(utf8(str(name)) for name in self.classes) or tuple(
            map(str, range(_width(labels, logits)))
        )
        if logits is not None and (
            logits.shape != (len(images), len(classes)) or not logits.is_floating_point()
        ):
            raise ShapeError(
                f"label_logits: expected float [{len(images)}, {len(classes)}], got {logits.dtype} "
                f"{list(logits.shape)}; "
                "one logit per image and class"
            )
        # float8 and unsigned 16-bit tensors cannot be compared or searched as they are
        images, labels = _own(images, torch.float32), _own(labels, torch.int64)
        logits = None if logits is None else _own(logits, torch.float32)
        if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
            raise DataError(
                f"labels: expected values in 0..{len(classes) - 1} for {len(classes)} classes, "
                f"got {int(labels.min())}..{int(labels.max())}; correct the labels or name every "
                "class"
            )
        for name, tensor in (("images", images), ("label_logits", logits)):
            if tensor is not None and not tensor.isfinite().all():
                raise DataError(
                    f"{name}: expected finite numbers, got NaN or infinity; the run that made them "
                    "blew up"
                )
        if "artifact" in self.config:
            raise DataError(
                "config: expected no key 'artifact', got one; config.json keeps its own "
                "description there, rename it"
            )
        odd = next(
            (
                name
                for name in self.files
                if name in FILES + RUN_FILES or not PLAIN_NAME.fullmatch(name)
            ),
            None,
        )
        if odd is not None:
            raise DataError(
                f"files: expected plain names that are not the artefact's own, got '{odd}'; rename "
                "it"
            )
        settled = {
            "images": images,
            "labels": labels,
            "label_logits": logits,
            "learned_lr": None if self.learned_lr is None else float(self.learned_lr),
            "classes": classes,
            "config": jsonable(self.config, "config"),
            "metrics": jsonable(self.metrics, "metrics"),
            "files": {name: bytes(content) for name, content in self.files.items()},
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def num_classes(self) -> int:
        """K."""
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
        """C."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """H, the side of the images (the longer one where they are not square)."""
        return max(self.images.shape[2:])

    @property
    def nbytes(self) -> int:
        """Bytes of images, labels and label logits in memory."""
        tensors = (self.images, self.labels, self.label_logits)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return image ``[C, H, W]`` in pixel space and label, as a torch ``Dataset`` does."""
        return self.images[row], int(self.labels[row])

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        labels = "hard labels" if self.label_logits is None else "soft labels"
        return f"DistilledDataset({len(self)} images {shape}, {self.num_classes} classes, ipc {self.ipc}, {labels})"

    def record(self, **groups: Any) -> None:
        """Add ``groups`` to the metrics of this very set; a group of the same name is replaced.  Copies of it do not change."""
        object.__setattr__(self, "metrics", jsonable({**self.metrics, **groups}, "metrics"))

    def with_metrics(self, **groups: Any) -> "DistilledDataset":
        """Return a copy whose metrics hold ``groups`` too; a group of the same name is replaced."""
        return replace(self, metrics={**self.metrics, **groups})

    def to_torch(self, *, normalised: bool = False, soft: bool = False) -> TensorDataset:
        """Return ``TensorDataset(images, labels)`` for a ``DataLoader``.

        Args:
            normalised: Give images as networks see them (the recorded transform applied) instead of
                pixel space.
            soft: Give soft labels, probabilities ``[N, K]`` that ``torch.nn.CrossEntropyLoss``
                takes, instead of int64 ``[N]``.

        Raises:
            DataError: ``soft`` without learned labels.
        """
        labels = self.labels.clone()
        if soft:
            if self.label_logits is None:
                raise DataError(
                    "to_torch: expected learned soft labels, got a set with hard labels only; "
                    "leave soft=False"
                )
            labels = self.label_logits.softmax(1)
        images = self.transform.apply(self.images) if normalised else self.images
        return TensorDataset(images.clone(), labels)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the artefact folder: ``data.safetensors``, ``config.json``, ``metrics.json``, ``README.md``, ``preview.png``.

        Equal sets give bit-identical ``data.safetensors`` and ``config.json``.  An artefact that is
        there is replaced as a whole, even if the process is killed on the way; other files in the
        folder stay.

        Raises:
            DataError: The folder holds something else than a kdistill run, cannot be written, or
                the disk is full.
        """
        from kdistill.artifacts.artifact_folder import save

        return save(self, path)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, iteration: int | None = None
    ) -> "DistilledDataset":
        """Read an artefact folder; nothing in it is executed.

        Args:
            path: The folder.
            iteration: Return the set as it was after so many iterations, where the run left a
                snapshot of it.

        Raises:
            ConfigError: There is no snapshot of that iteration.
            DataError: The folder or a file is missing, truncated, changed since it was saved, or of
                another schema version.
        """
        from kdistill.artifacts.artifact_folder import load
        from kdistill.artifacts.snapshot_folder import load_snapshot

        return load(path) if iteration is None else load_snapshot(path, iteration)

    def to_imagefolder(self, path: str | Path) -> Path:
        """Write ``<path>/<class>/<image>.png`` in 8 bits; values outside [0, 1] are clipped, soft labels are left out."""
        return self.export(path, to="imagefolder")

    def to_npz(self, path: str | Path) -> Path:
        """Write one ``.npz`` with ``x_train`` (float32 NCHW in pixel space), ``y_train``, ``classes`` and what was learned.

        ``load_data`` reads it too, with the pixels clipped to [0, 1] and without what was learned.
        """
        return self.export(path, to="npz")

    def export(self, path: str | Path, to: str) -> Path:
        """Write the set in a format that other programs read (``docs/guide/artifacts.md`` describes each).

        Args:
            path: Folder, or file for ``npz`` and (if it ends in ``.pt``) ``eccv24``; must not
                exist, or be empty.
            to: ``"imagefolder"``, ``"npz"``, ``"ddranking"``, ``"mtt"``, ``"eccv24"`` or ``"hf"``.

        Returns:
            The path that was written; ``npz`` gets its ending where it has none.

        Raises:
            ConfigError: Unknown format.
            DataError: The set does not fit the format, or the place is occupied or cannot be
                written.
            MissingExtraError: ``"hf"`` without pyarrow.
        """
        from kdistill.artifacts.export import export

        return export(self, path, to)

    def preview(self) -> Image.Image:
        """Return the grid of all images, one row per class, clipped to [0, 1]."""
        from kdistill.artifacts.preview import preview

        return preview(self)

    def show(self) -> None:
        """Show the preview: inline in a notebook, else in the system's image viewer."""
        picture = self.preview()
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            get_ipython = None
        if get_ipython is not None and get_ipython() is not None:
            display(picture)
        else:
            picture.show(title=repr(self))

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.preview().save(buffer, format="png")
        return buffer.getvalue()


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous CPU copy: later steps of an optimiser must not reach into the set."""
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _width(labels: Tensor, logits: Tensor | None) -> int:
    return (
        logits.shape[1]
        if logits is not None and logits.ndim == 2
        else max(1, int(labels.long().max()) + 1)
    )
