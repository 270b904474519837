"""``DistilledDataset``: what a distillation run returns, and what its folder holds."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from kdistill.artifacts.artifact_folder import read_artifact, write_artifact
from kdistill.artifacts.contents import SetContents
from kdistill.artifacts.export import export
from kdistill.artifacts.snapshots import load_snapshot
from kdistill.artifacts.tensors import jsonable
from kdistill.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledDataset(SetContents):
    """A small synthetic image set with all that is needed to use it, compare it and make it again.

    Symbols: N images, C channels, H × W pixels, K classes.  Tensors are copied to the CPU; do not
        write into them.

    Attributes:
        images: ``[N, C, H, W]`` float32 in pixel space; [0, 1] is black to white, values outside
            are kept.
        labels: Class of each image, int64 ``[N]`` in ``0..K-1``.
        label_logits: Logits z of learned soft labels ``softmax(z)``, float32 ``[N, K]``, or None.
        learned_lr: Learning rate that was learned along with the images, or None.
        classes: Names; ``"0"``, ``"1"``, ... where there are none.
        config: What made the set; ``config["run"]`` makes it again.  JSON content only.
        metrics: What was measured on it.  ``kdistill.evaluate(small, data)`` leaves its result in
            ``metrics["evaluation"]``, and ``save_pretrained`` writes it into ``metrics.json`` and
            the card.  JSON content only.
        transform: Normalisation from pixel space to what networks are trained on.
        files: Other files of the artefact folder by name, such as pictures of the run.

    Raises:
        ShapeError: A tensor has another shape or dtype.
        DataError: No image, a value that is not finite, a label outside ``0..K-1``, metadata that
            JSON cannot hold, a config key ``"artifact"``, or a file whose name is taken.
    """

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return image ``[C, H, W]`` in pixel space and label, as a torch ``Dataset`` does."""
        return self.images[row], int(self.labels[row])

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        labels = "hard labels" if self.label_logits is None else "soft labels"
        return (
            f"DistilledDataset({len(self)} images {shape}, {self.num_classes} classes, ipc "
            f"{self.ipc}, {labels})"
        )

    def record(self, **groups: Any) -> None:
        """Add ``groups`` to the metrics of this set, not of copies; equal names are replaced."""
        object.__setattr__(self, "metrics", jsonable({**self.metrics, **groups}, "metrics"))

    def with_metrics(self, **groups: Any) -> "DistilledDataset":
        """Return a copy whose metrics hold ``groups`` too; a group of the same name is replaced."""
        return replace(self, metrics={**self.metrics, **groups})

    def to_torch(self, *, normalised: bool = False, soft: bool = False) -> TensorDataset:
        """Return ``TensorDataset(images, labels)`` for a ``DataLoader``.

        Args:
            normalised: Normalised images (the recorded transform applied) instead of pixel space.
            soft: Soft labels, probabilities ``[N, K]`` that ``torch.nn.CrossEntropyLoss`` takes,
                instead of int64 ``[N]``.

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
        """Write the artefact folder.

        It holds ``data.safetensors``, ``config.json``, ``metrics.json``, ``README.md`` and
        ``preview.png``.  Equal sets give bit-identical ``data.safetensors`` and ``config.json``.
        An earlier artefact is replaced as a whole, even if the process is killed on the way; other
        files in the folder stay.

        Raises:
            DataError: The folder holds something else than a kdistill run, cannot be written, or
                the disk is full.
        """
        return write_artifact(self, path)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, iteration: int | None = None
    ) -> "DistilledDataset":
        """Read an artefact folder; nothing in it is executed.

        Args:
            path: The folder.
            iteration: Iterations after which the run kept a snapshot of the set; None is the
                finished set.

        Raises:
            ConfigError: There is no snapshot of that iteration.
            DataError: The folder or a file is missing, truncated, changed since it was saved, or of
                another schema version.
        """
        last = read_artifact(path, cls)
        return last if iteration is None else load_snapshot(path, iteration, last)

    def to_imagefolder(self, path: str | Path) -> Path:
        """Write ``<path>/<class>/<image>.png`` in 8 bits, clipped to [0, 1], with hard labels."""
        return self.export(path, to="imagefolder")

    def to_npz(self, path: str | Path) -> Path:
        """Write one ``.npz`` file.

        It holds ``x_train`` (float32 NCHW in pixel space), ``y_train``, ``classes`` and, where they
        were learned, ``label_logits`` and ``learned_lr``.  ``load_data`` reads it too, with the
        pixels clipped to [0, 1] and without what was learned.
        """
        return self.export(path, to="npz")

    def export(self, path: str | Path, to: str) -> Path:
        """Write the set in a format that other programs read.

        ``docs/guide/artifacts.md`` describes each.

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
        return export(self, path, to)

    def preview(self) -> Image.Image:
        """Return the grid of all images, one row per class, clipped to [0, 1]."""
        return self.preview_page().picture

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
        return self.preview_page().png()
